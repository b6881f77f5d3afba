#include "server/frontend/grpc_calls.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "server/frontend/call_log.h"
#include "server/frontend/error_mapping.h"

namespace longstride::frontend {
namespace {

int64_t Nanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::string_view Find(const grpc::CallbackServerContext& context, const char* name) {
  const auto it = context.client_metadata().find(name);
  if (it == context.client_metadata().end()) return {};
  return {it->second.data(), it->second.size()};
}

bool IsIdentifier(std::string_view text) {
  return !text.empty() && text.size() <= 128 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

// "ipv4:10.0.0.7:51234" without the port.
std::string PeerAddress(const std::string& peer) { return peer.substr(0, peer.rfind(':')); }

// The trailing metadata names the field at fault; it can be added until Finish.
void AddErrorDetail(const absl::Status& status, grpc::CallbackServerContext* context) {
  const ApiError error = ToApiError(status);
  if (!error.param.empty()) context->AddTrailingMetadata("longstride-error-param", error.param);
  if (error.retry_after_seconds.has_value()) {
    context->AddTrailingMetadata("retry-after", StrCat(*error.retry_after_seconds));
  }
}

const grpc::Status kCancelled(grpc::StatusCode::CANCELLED, "the call was cancelled");

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

CallScope::CallScope(GrpcShared* shared, std::string_view route, bool streamed)
    : shared_(shared), route_(route), streamed_(streamed), start_nanos_(Nanos()) {
  shared_->calls.fetch_add(1);
  if (streamed_) shared_->observer->StreamOpened(Transport::kGrpc);
}

CallScope::~CallScope() {
  shared_->calls.fetch_sub(1);
  CallReport report;
  report.transport = Transport::kGrpc;
  report.route = route_;
  report.method = "rpc";
  report.status = code_.load();
  report.seconds = static_cast<double>(Nanos() - start_nanos_) * 1e-9;
  report.request_bytes = request_bytes_.load();
  report.response_bytes = response_bytes_.load();
  report.streamed = streamed_;
  report.client_gone = report.status == grpc::StatusCode::CANCELLED;
  if (streamed_) shared_->observer->StreamClosed(Transport::kGrpc);
  shared_->observer->CallDone(report);
  LogCall(report, request_id_, client_);
}

absl::StatusOr<CallContext> AdmitCall(grpc::CallbackServerContext* context, GrpcShared* shared) {
  CallContext out;
  const std::string_view id = Find(*context, "x-request-id");
  out.request_id = IsIdentifier(id) ? std::string(id) : shared->service->NewId("req-");
  context->AddInitialMetadata("x-request-id", out.request_id);
  if (const auto model = shared->service->model(); model != nullptr) {
    context->AddInitialMetadata("x-longstride-plan", model->plan_digest);
  }
  if (shared->keys.required()) {
    const auto name = shared->keys.CheckAuthorization(Find(*context, "authorization"));
    if (!name.has_value()) {
      shared->observer->AuthenticationFailed(Transport::kGrpc);
      return absl::UnauthenticatedError(
          "no valid API key; send it as metadata 'authorization: Bearer KEY'");
    }
    out.client = *name;
    out.authenticated = true;
  } else {
    const std::string_view client = Find(*context, "x-longstride-client");
    out.client = IsIdentifier(client) ? std::string(client) : PeerAddress(context->peer());
  }
  if (shared->calls.load() > shared->max_calls) {
    return absl::ResourceExhaustedError(
        StrCat("the server has all of its ", shared->max_calls, " calls under way; retry"));
  }
  const auto deadline = context->deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    out.deadline = absl::FromChrono(deadline);
  }
  return out;
}

namespace {

// ---- Generate ----

class GenerateCall final : public grpc::ServerWriteReactor<pb::GenerateEvent>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(grpc::CallbackServerContext* context, GrpcShared* shared)
      : context_(context), shared_(shared), scope_(shared, "Generate", true) {}

  void Begin(const pb::GenerateRequest* request) {
    self_ = shared_from_this();
    scope_.AddRequestBytes(static_cast<int64_t>(request->ByteSizeLong()));
    auto admitted = AdmitCall(context_, shared_);
    if (!admitted.ok()) return End(admitted.status());
    scope_.set_caller(*admitted);
    // `request` belongs to gRPC until OnDone, which cannot come before Finish.
    shared_->service->workers().Post(
        [self = self_, request, caller = *std::move(admitted)] { self->Submit(request, caller); });
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      writing_ = false;
      if (!ok) gone_ = true;
    }
    Pump();
  }

  void OnCancel() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      gone_ = true;
      if (generation_ != nullptr) generation_->Cancel();
    }
    // The generation may be in Drain on another thread: Pump drops it under the lock.
    Pump();
  }

  void OnDone() override { self_.reset(); }

  void Notify() {
    if (scheduled_.exchange(true, std::memory_order_acq_rel)) return;
    shared_->service->workers().Post([self = shared_from_this()] {
      self->scheduled_.store(false, std::memory_order_release);
      self->Pump();
    });
  }

 private:
  void Submit(const pb::GenerateRequest* request, const CallContext& caller) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (gone_ || finished_) return;
      submitting_ = true;  // keeps Finish away while `request` is being read
    }
    const bool logprobs = request->output().has_logprobs();
    std::optional<std::string> echo;
    absl::StatusOr<std::unique_ptr<Generation>> started = Start(*request, caller, &echo);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      submitting_ = false;
      if (started.ok()) {
        generation_ = *std::move(started);
        writer_.emplace(generation_->info().model->tokenizer, logprobs);
        QueueOpening(echo);
      } else if (!ended_.has_value()) {
        ended_ = started.status();
      }
    }
    Pump();
  }

  absl::StatusOr<std::unique_ptr<Generation>> Start(const pb::GenerateRequest& request,
                                                    const CallContext& caller,
                                                    std::optional<std::string>* echo) {
    ASSIGN_OR_RETURN(NativeGenerate native, FromProto(request));
    auto notify = [weak = weak_from_this()] {
      if (const auto strong = weak.lock()) strong->Notify();
    };
    if (native.is_chat) {
      return shared_->service->Chat(std::move(native.chat), caller, std::move(notify));
    }
    const bool echoes = native.completion.echo;
    ASSIGN_OR_RETURN(
        std::unique_ptr<Generation> generation,
        shared_->service->Complete(std::move(native.completion), caller, std::move(notify)));
    if (echoes) {
      const GenerationInfo& info = generation->info();
      ASSIGN_OR_RETURN(*echo, info.model->tokenizer->Decode(info.prompts.front(), true));
    }
    return generation;
  }

  void QueueOpening(const std::optional<std::string>& echo) {
    const GenerationInfo& info = generation_->info();
    pb::GenerateEvent& accepted = outbox_.emplace_back();
    accepted.set_id(info.id);
    accepted.mutable_accepted()->set_model(info.model->name);
    accepted.mutable_accepted()->set_system_fingerprint(info.model->Fingerprint());
    accepted.mutable_accepted()->set_prompt_tokens(info.prompt_lengths.front());
    if (!echo.has_value()) return;
    for (int32_t choice = 0; choice < info.num_choices; ++choice) {
      pb::GenerateEvent& event = outbox_.emplace_back();
      event.set_id(info.id);
      event.mutable_delta()->set_choice(choice);
      event.mutable_delta()->set_text(*echo);
    }
  }

  // Drains only when nothing waits to be written: a slow reader leaves its events in the engine's
  // handle, where they merge.
  void Pump() {
    std::unique_ptr<Generation> dropped;
    std::lock_guard<std::mutex> lock(mutex_);
    if (finished_) return;
    if (gone_) {
      dropped = std::move(generation_);
      outbox_.clear();
      if (!writing_ && !submitting_) FinishLocked(kCancelled);
      return;
    }
    if (writing_) return;
    if (outbox_.empty() && generation_ != nullptr) DrainLocked();
    if (!outbox_.empty()) {
      current_ = std::move(outbox_.front());
      outbox_.pop_front();
      writing_ = true;
      scope_.AddResponseBytes(static_cast<int64_t>(current_.ByteSizeLong()));
      StartWrite(&current_);
      return;
    }
    if (ended_.has_value() && !submitting_) {
      dropped = std::move(generation_);
      if (ended_->ok()) {
        FinishLocked(grpc::Status::OK);
      } else {
        AddErrorDetail(*ended_, context_);
        FinishLocked(ToGrpcStatus(*ended_));
      }
    }
  }

  void DrainLocked() {
    const int64_t start = Nanos();
    int64_t tokens = 0;
    events_.clear();
    generation_->Drain(&events_);
    for (GenerationEvent& event : events_) {
      if (event.kind == GenerationEvent::Kind::kFinished) ended_ = event.status;
      tokens += static_cast<int64_t>(event.tokens.size());
      pb::GenerateEvent out;
      if (writer_->Write(generation_->info(), &event, &out)) outbox_.push_back(std::move(out));
    }
    if (tokens > 0) shared_->observer->TokensWritten(Transport::kGrpc, tokens, Nanos() - start);
  }

  void End(const absl::Status& status) {
    std::lock_guard<std::mutex> lock(mutex_);
    AddErrorDetail(status, context_);
    FinishLocked(ToGrpcStatus(status));
  }

  void FinishLocked(const grpc::Status& status) {
    if (finished_) return;
    finished_ = true;
    scope_.set_code(status.error_code());
    Finish(status);
  }

  grpc::CallbackServerContext* const context_;
  GrpcShared* const shared_;
  CallScope scope_;
  std::shared_ptr<GenerateCall> self_;  // until OnDone
  std::atomic<bool> scheduled_{false};
  std::mutex mutex_;
  std::unique_ptr<Generation> generation_;
  std::optional<ProtoWriter> writer_;
  std::vector<GenerationEvent> events_;
  std::deque<pb::GenerateEvent> outbox_;
  pb::GenerateEvent current_;          // of the write under way
  std::optional<absl::Status> ended_;  // after the outbox is empty
  bool writing_ = false;
  bool submitting_ = false;
  bool gone_ = false;
  bool finished_ = false;
};

// ---- Unary calls ----

// Finishes once, whoever comes first: the answer or the cancel. `response` may only be written
// inside Finish's `fill`, which does not run after a cancel.
class UnaryCall : public grpc::ServerUnaryReactor, public std::enable_shared_from_this<UnaryCall> {
 public:
  UnaryCall(grpc::CallbackServerContext* context, std::string_view route, GrpcShared* shared)
      : context_(context), shared_(shared), scope_(shared, route, false) {}

  void Hold() { self_ = shared_from_this(); }
  void set_caller(const CallContext& caller) { scope_.set_caller(caller); }
  GrpcShared* shared() const { return shared_; }
  grpc::CallbackServerContext* context() const { return context_; }

  void Answer(const absl::Status& status, const std::function<void()>& fill) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (finished_) return;
    finished_ = true;
    if (status.ok()) {
      fill();
    } else {
      AddErrorDetail(status, context_);
    }
    scope_.set_code(static_cast<int32_t>(status.code()));
    grpc::ServerUnaryReactor::Finish(ToGrpcStatus(status));
  }

  void OnCancelled(std::function<void()> cancel) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!finished_) {
        cancel_ = std::move(cancel);
        return;
      }
    }
    cancel();
  }

  void OnCancel() override {
    std::function<void()> cancel;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      cancel = std::move(cancel_);
      cancel_ = nullptr;
      if (!finished_) {
        finished_ = true;
        scope_.set_code(grpc::StatusCode::CANCELLED);
        grpc::ServerUnaryReactor::Finish(kCancelled);
      }
    }
    if (cancel) cancel();
  }

  void OnDone() override {
    std::shared_ptr<UnaryCall> self;
    std::function<void()> cancel;
    std::lock_guard<std::mutex> lock(mutex_);
    cancel = std::move(cancel_);
    cancel_ = nullptr;
    self = std::move(self_);
  }

 private:
  grpc::CallbackServerContext* const context_;
  GrpcShared* const shared_;
  CallScope scope_;
  std::mutex mutex_;
  std::function<void()> cancel_;
  bool finished_ = false;
  std::shared_ptr<UnaryCall> self_;  // until OnDone
};

std::shared_ptr<UnaryCall> MakeUnary(grpc::CallbackServerContext* context, std::string_view route,
                                     GrpcShared* shared) {
  auto call = std::make_shared<UnaryCall>(context, route, shared);
  call->Hold();
  return call;
}

using Starter = std::function<absl::StatusOr<std::unique_ptr<Generation>>(
    const CallContext&, std::function<void()> notify)>;
using Filler = std::function<void(const GenerationInfo&, CollectedAnswer*)>;

// Admits, starts a generation on a worker, collects it and fills the response.
void RunCollected(const std::shared_ptr<UnaryCall>& call, bool keep_tokens, Starter start,
                  Filler fill) {
  auto admitted = AdmitCall(call->context(), call->shared());
  if (!admitted.ok()) return call->Answer(admitted.status(), nullptr);
  call->set_caller(*admitted);
  InferenceService* service = call->shared()->service;
  service->workers().Post([call, service, keep_tokens, caller = *std::move(admitted),
                           start = std::move(start), fill = std::move(fill)] {
    auto collector = std::make_shared<AnswerCollector>(&service->workers(), keep_tokens);
    auto notify = [weak = std::weak_ptr<AnswerCollector>(collector)] {
      if (const auto strong = weak.lock()) strong->Notify();
    };
    auto generation = start(caller, std::move(notify));
    if (!generation.ok()) return call->Answer(generation.status(), nullptr);
    call->OnCancelled([collector] { collector->Cancel(); });
    collector->Start(*std::move(generation),
                     [call, fill](const GenerationInfo& info, CollectedAnswer answer) {
                       const absl::Status status = answer.status;
                       call->Answer(status, [&] { fill(info, &answer); });
                     });
  });
}

}  // namespace

grpc::ServerWriteReactor<pb::GenerateEvent>* StartGenerate(grpc::CallbackServerContext* context,
                                                           const pb::GenerateRequest* request,
                                                           GrpcShared* shared) {
  auto call = std::make_shared<GenerateCall>(context, shared);
  call->Begin(request);
  return call.get();
}

grpc::ServerUnaryReactor* StartGenerateOnce(grpc::CallbackServerContext* context,
                                            const pb::GenerateRequest* request,
                                            pb::GenerateResponse* response, GrpcShared* shared) {
  auto call = MakeUnary(context, "GenerateOnce", shared);
  const bool logprobs = request->output().has_logprobs();
  const bool echo = request->output().echo();
  // Translated here and now: a worker could not tell whether `request` is still there.
  auto native = std::make_shared<absl::StatusOr<NativeGenerate>>(FromProto(*request));
  RunCollected(
      call, true,
      [shared, native](const CallContext& caller, std::function<void()> notify)
          -> absl::StatusOr<std::unique_ptr<Generation>> {
        if (!native->ok()) return native->status();
        NativeGenerate& generate = **native;
        return generate.is_chat
                   ? shared->service->Chat(std::move(generate.chat), caller, std::move(notify))
                   : shared->service->Complete(std::move(generate.completion), caller,
                                               std::move(notify));
      },
      [response, logprobs, echo](const GenerationInfo& info, CollectedAnswer* answer) {
        ProtoWriter(info.model->tokenizer, logprobs).Write(info, answer, response);
        if (!echo) return;
        const auto prompt = info.model->tokenizer->Decode(info.prompts.front(), true);
        if (!prompt.ok()) return;
        for (pb::Choice& choice : *response->mutable_choices()) {
          choice.set_text(*prompt + choice.text());
        }
      });
  return call.get();
}

grpc::ServerUnaryReactor* StartEmbed(grpc::CallbackServerContext* context,
                                     const pb::EmbedRequest* request, pb::EmbedResponse* response,
                                     GrpcShared* shared) {
  auto call = MakeUnary(context, "Embed", shared);
  auto native = std::make_shared<EmbedRequest>(FromProto(*request));
  const bool normalize = native->normalize;
  RunCollected(
      call, false,
      [shared, native](const CallContext& caller, std::function<void()> notify) {
        return shared->service->Embed(std::move(*native), caller, std::move(notify));
      },
      [response, normalize](const GenerationInfo& info, CollectedAnswer* answer) {
        response->set_model(info.model->name);
        response->set_prompt_tokens(answer->usage.prompt_tokens);
        for (std::vector<float>& vector : answer->vectors) {
          if (normalize) Normalize(&vector);
          response->add_embeddings()->mutable_values()->Assign(vector.begin(), vector.end());
        }
      });
  return call.get();
}

grpc::ServerUnaryReactor* StartClassify(grpc::CallbackServerContext* context,
                                        const pb::ClassifyRequest* request,
                                        pb::ClassifyResponse* response, GrpcShared* shared) {
  auto call = MakeUnary(context, "Classify", shared);
  auto native = std::make_shared<ClassifyRequest>(FromProto(*request));
  RunCollected(
      call, false,
      [shared, native](const CallContext& caller, std::function<void()> notify) {
        return shared->service->Classify(std::move(*native), caller, std::move(notify));
      },
      [response](const GenerationInfo& info, CollectedAnswer* answer) {
        response->set_model(info.model->name);
        response->set_prompt_tokens(answer->usage.prompt_tokens);
        for (const std::vector<float>& scores : answer->vectors) {
          pb::Classification* entry = response->add_classifications();
          entry->set_label(info.model->labels[BestLabel(scores)]);
          entry->mutable_probabilities()->Assign(scores.begin(), scores.end());
        }
        response->mutable_labels()->Assign(info.model->labels.begin(), info.model->labels.end());
      });
  return call.get();
}

grpc::ServerUnaryReactor* StartSimple(grpc::CallbackServerContext* context, std::string_view route,
                                      GrpcShared* shared, SimpleWork work) {
  auto call = MakeUnary(context, route, shared);
  auto admitted = AdmitCall(context, shared);
  if (!admitted.ok()) {
    call->Answer(admitted.status(), nullptr);
    return call.get();
  }
  call->set_caller(*admitted);
  shared->service->workers().Post([call, work = std::move(work)] {
    const auto fill = work();
    call->Answer(fill.status(), [&] { (*fill)(); });
  });
  return call.get();
}

}  // namespace longstride::frontend

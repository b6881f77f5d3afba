#include "server/engine/engine.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "config/base/logging.h"
#include "model/text/stream_decoder.h"
#include "server/engine/announcer.h"
#include "server/engine/engine_core.h"

namespace longstride::engine {
namespace {

class TokenizerStream : public TextStream {
 public:
  TokenizerStream(const model::Tokenizer& tokenizer, model::StreamDecoderOptions options)
      : decoder_(tokenizer, options) {}
  // A model may have more rows than its tokenizer has tokens: those have no text.
  std::string Push(int32_t token) override {
    absl::StatusOr<std::string> text = decoder_.Push(token);
    return text.ok() ? *std::move(text) : std::string();
  }
  std::string Flush() override { return decoder_.Flush(); }

 private:
  model::StreamDecoder decoder_;
};

class TokenizerStreams : public TextStreamFactory {
 public:
  explicit TokenizerStreams(const model::Tokenizer* tokenizer) : tokenizer_(tokenizer) {}
  std::unique_ptr<TextStream> NewStream(bool skip_special, bool at_text_start,
                                        const std::vector<int32_t>& keep) const override {
    return std::make_unique<TokenizerStream>(
        *tokenizer_, model::StreamDecoderOptions{.skip_special = skip_special,
                                                 .keep = keep,
                                                 .at_text_start = at_text_start});
  }

 private:
  const model::Tokenizer* tokenizer_;
};

// What front-end threads leave for the engine's thread. Handles share it, so that they may outlive
// the engine.
struct Inbox {
  std::mutex mutex;
  std::condition_variable wake;
  bool has_news = false;
  bool stop = false;
  bool draining = false;
  bool stopped = false;
  std::vector<std::unique_ptr<PreparedRequest>> submissions;
  std::vector<Cancellation> cancellations;
  RequestNumber next_number = 1;
  // Submitted and not admitted yet, as far as the engine's thread has told.
  int32_t queued_requests = 0;
  int64_t queued_tokens = 0;

  void WakeLocked() {
    has_news = true;
    wake.notify_one();
  }
  void Wake() {
    const std::lock_guard lock(mutex);
    WakeLocked();
  }
};

class Handle : public RequestHandle {
 public:
  Handle(RequestNumber number, std::shared_ptr<Inbox> inbox, std::shared_ptr<OutputQueue> output)
      : number_(number), inbox_(std::move(inbox)), output_(std::move(output)) {}
  ~Handle() override {
    output_->Detach();
    if (!done_) Send(FinishReason::kCancelled, AbortCause::kDisconnect);
  }
  bool Drain(std::vector<OutputEvent>* events) override {
    const bool more = output_->Drain(events);
    if (!more) done_ = true;
    return more;
  }
  bool Wait(absl::Duration timeout) override { return output_->Wait(timeout); }
  void Cancel(FinishReason reason) override {
    Send(reason, reason == FinishReason::kDeadline ? AbortCause::kDeadline
                 : reason == FinishReason::kError  ? AbortCause::kShutdown
                                                   : AbortCause::kClient);
  }

 private:
  void Send(FinishReason reason, AbortCause cause) {
    const std::lock_guard lock(inbox_->mutex);
    if (inbox_->stopped) return;
    inbox_->cancellations.push_back({.number = number_, .reason = reason, .cause = cause});
    inbox_->WakeLocked();
  }

  const RequestNumber number_;
  const std::shared_ptr<Inbox> inbox_;
  const std::shared_ptr<OutputQueue> output_;
  std::atomic<bool> done_{false};
};

class ThreadedEngine : public Engine {
 public:
  ThreadedEngine(const EngineOptions& options, Executor* executor,
                 const model::Tokenizer* tokenizer, EngineObserver* observer, const Clock* clock)
      : options_(options),
        observer_(observer),
        clock_(clock),
        streams_(tokenizer),
        core_(options, executor, tokenizer == nullptr ? nullptr : &streams_, observer, clock,
              [this](auto* queues) { announcer_.Announce(queues); }),
        inbox_(std::make_shared<Inbox>()) {
    status_.health = Health::kReady;
    thread_ = std::thread([this] { Run(); });
  }
  ~ThreadedEngine() override { Stop(); }

  absl::StatusOr<std::unique_ptr<RequestHandle>> Submit(GenerationRequest request,
                                                        std::function<void()> notify) override;
  int32_t max_request_tokens() const override { return core_.max_request_tokens(); }
  EngineStatus Status() const override;
  void BeginDrain() override;
  bool WaitIdle(absl::Duration timeout) override;
  void Stop() override;

 private:
  void Run();
  void TakeNews();
  void Publish();
  void Sleep();
  absl::Status Refuse(std::string_view reason, absl::Status status) const {
    observer_->Rejected(reason);
    return status;
  }

  const EngineOptions options_;
  EngineObserver* const observer_;
  const Clock* const clock_;
  const TokenizerStreams streams_;
  Announcer announcer_;
  EngineCore core_;
  const std::shared_ptr<Inbox> inbox_;
  mutable std::mutex status_mutex_;
  mutable std::condition_variable idle_;
  EngineStatus status_;
  bool is_idle_ = true;
  std::mutex stop_mutex_;
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<RequestHandle>> ThreadedEngine::Submit(
    GenerationRequest request, std::function<void()> notify) {
  {
    const std::lock_guard lock(status_mutex_);
    if (status_.health == Health::kFailed) {
      return Refuse("failed", absl::UnavailableError(status_.reason));
    }
  }
  auto prepared = core_.Prepare(std::move(request));
  if (!prepared.ok()) return Refuse("invalid", prepared.status());
  PreparedRequest& p = **prepared;
  p.output = std::make_shared<OutputQueue>(std::move(notify),
                                           [inbox = inbox_] { inbox->Wake(); });
  const auto tokens = static_cast<int64_t>(p.request.prompt.size());

  const std::lock_guard lock(inbox_->mutex);
  if (inbox_->draining || inbox_->stop) {
    return Refuse("draining", absl::UnavailableError("the server is shutting down"));
  }
  if (inbox_->queued_requests >= options_.max_queued_requests) {
    return Refuse("queue_requests", absl::ResourceExhaustedError(StrCat(
                                        inbox_->queued_requests, " requests are waiting, at most ",
                                        options_.max_queued_requests, " may; try again later")));
  }
  // A prompt longer than the whole bound may still wait alone.
  if (inbox_->queued_tokens > 0 && inbox_->queued_tokens + tokens > options_.max_queued_prompt_tokens) {
    return Refuse("queue_tokens",
                  absl::ResourceExhaustedError(
                      StrCat(inbox_->queued_tokens, " prompt tokens are waiting and this prompt has ",
                             tokens, ", at most ", options_.max_queued_prompt_tokens,
                             " may wait; try again later")));
  }
  p.number = inbox_->next_number++;
  ++inbox_->queued_requests;
  inbox_->queued_tokens += tokens;
  auto handle = std::make_unique<Handle>(p.number, inbox_, p.output);
  inbox_->submissions.push_back(*std::move(prepared));
  inbox_->WakeLocked();
  return handle;
}

EngineStatus ThreadedEngine::Status() const {
  const std::lock_guard lock(status_mutex_);
  return status_;
}

void ThreadedEngine::BeginDrain() {
  {
    const std::lock_guard lock(inbox_->mutex);
    inbox_->draining = true;
  }
  const std::lock_guard lock(status_mutex_);
  if (status_.health == Health::kReady) status_.health = Health::kDraining;
}

bool ThreadedEngine::WaitIdle(absl::Duration timeout) {
  const auto nothing_submitted = [this] {
    const std::lock_guard lock(inbox_->mutex);
    return inbox_->submissions.empty();
  };
  std::unique_lock lock(status_mutex_);
  const auto idle = [&] { return is_idle_ && nothing_submitted(); };
  if (timeout == absl::InfiniteDuration()) {
    idle_.wait(lock, idle);
    return true;
  }
  return idle_.wait_for(lock, absl::ToChronoNanoseconds(timeout), idle);
}

void ThreadedEngine::Stop() {
  const std::lock_guard stopping(stop_mutex_);
  {
    const std::lock_guard lock(inbox_->mutex);
    inbox_->stop = true;
    inbox_->WakeLocked();
  }
  if (thread_.joinable()) thread_.join();
}

void ThreadedEngine::TakeNews() {
  std::vector<std::unique_ptr<PreparedRequest>> submissions;
  std::vector<Cancellation> cancellations;
  {
    // Both at once: a request is either in the inbox or keeps the engine from being idle.
    const std::lock_guard status(status_mutex_);
    const std::lock_guard lock(inbox_->mutex);
    is_idle_ = is_idle_ && inbox_->submissions.empty();
    submissions.swap(inbox_->submissions);
    cancellations.swap(inbox_->cancellations);
    inbox_->has_news = false;
  }
  for (auto& submission : submissions) core_.Enqueue(std::move(submission));
  for (const Cancellation& cancellation : cancellations) core_.Cancel(cancellation);
}

void ThreadedEngine::Publish() {
  {
    const std::lock_guard lock(inbox_->mutex);
    inbox_->queued_requests =
        core_.num_waiting() + static_cast<int32_t>(inbox_->submissions.size());
    inbox_->queued_tokens = core_.num_waiting_tokens();
    for (const auto& submission : inbox_->submissions) {
      inbox_->queued_tokens += static_cast<int64_t>(submission->request.prompt.size());
    }
  }
  const std::lock_guard lock(status_mutex_);
  status_.waiting_requests = core_.num_waiting();
  status_.waiting_prompt_tokens = core_.num_waiting_tokens();
  status_.running_requests = core_.num_running();
  status_.kv_utilization = core_.kv_utilization();
  if (!core_.failure().ok() && status_.health != Health::kFailed) {
    status_.health = Health::kFailed;
    status_.reason = std::string(ToStd(core_.failure().message()));
  }
  is_idle_ = core_.idle();
  if (is_idle_) idle_.notify_all();
}

// Until something arrives, a deadline passes or a stalled reader's time is up.
void ThreadedEngine::Sleep() {
  const absl::Time next = core_.NextWakeup();
  std::unique_lock lock(inbox_->mutex);
  const auto news = [this] { return inbox_->has_news || inbox_->stop; };
  if (next == absl::InfiniteFuture()) {
    inbox_->wake.wait(lock, news);
  } else {
    inbox_->wake.wait_for(lock, absl::ToChronoNanoseconds(next - clock_->Now()), news);
  }
}

void ThreadedEngine::Run() {
  for (;;) {
    TakeNews();
    {
      const std::lock_guard lock(inbox_->mutex);
      if (inbox_->stop) break;
    }
    const bool worked = core_.Step();
    Publish();
    if (!worked) Sleep();
  }
  {
    // Nothing is sent to an engine that has stopped; what was on its way is answered too.
    const std::lock_guard lock(inbox_->mutex);
    inbox_->stopped = true;
  }
  TakeNews();
  core_.CancelAll(absl::UnavailableError("the server is shutting down"), AbortCause::kShutdown);
  Publish();
  const std::lock_guard lock(status_mutex_);
  if (status_.health != Health::kFailed) status_.health = Health::kStopped;
}

}  // namespace

std::unique_ptr<Engine> StartEngine(const EngineOptions& options, Executor* executor,
                                    const model::Tokenizer* tokenizer, EngineObserver* observer,
                                    const Clock* clock) {
  return std::make_unique<ThreadedEngine>(options, executor, tokenizer, observer, clock);
}

}  // namespace longstride::engine

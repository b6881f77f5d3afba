#include "server/frontend/inference_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "config/base/logging.h"
#include "server/frontend/audited_generation.h"
#include "server/frontend/chat_rendering.h"
#include "server/frontend/vector_generation.h"
#include "server/frontend/error_mapping.h"

namespace longstride::frontend {
namespace {

std::string Indexed(std::string_view name, std::size_t i, std::size_t count) {
  return count == 1 ? std::string(name) : StrCat(name, "[", i, "]");
}

// A text that breaks the tokenizer's limits is the request's fault: never a code that SDKs retry.
absl::Status AsRequestFault(const absl::Status& status, std::string_view param) {
  if (absl::IsInternal(status)) return status;
  return InvalidParam(param, ToStd(status.message()));
}

void LogPrompt(const engine::GenerationRequest& request, const ServedModel& model) {
  const auto text = model.tokenizer->Decode(request.prompt, /*skip_special=*/false);
  Log(LogLevel::kInfo, "prompt", {{"id", request.id}, {"text", text.value_or("")}});
}

}  // namespace

InferenceService::InferenceService(const ServiceOptions& options, const Clock* clock,
                                   FrontendObserver* observer, AuditLog* audit)
    : options_(options),
      clock_(clock),
      observer_(observer),
      audit_(audit),
      random_(std::random_device{}()),
      workers_(options.worker_threads) {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device()};
  random_.seed(seed);
}

InferenceService::~InferenceService() { Stop(); }

void InferenceService::SetModel(ServedModel model, engine::Engine* engine) {
  if (audit_ != nullptr) audit_->Append("start", AuditStart(model));
  std::lock_guard<std::mutex> lock(mutex_);
  served_.model = std::make_shared<const ServedModel>(std::move(model));
  served_.engine = engine;
  if (state_ == ServiceState::kLoading) state_ = ServiceState::kReady;
}

void InferenceService::SetFailed(std::string reason) {
  std::lock_guard<std::mutex> lock(mutex_);
  state_ = ServiceState::kFailed;
  failure_ = std::move(reason);
}

void InferenceService::BeginDrain() {
  std::lock_guard<std::mutex> lock(mutex_);
  state_ = ServiceState::kDraining;
}

void InferenceService::Stop() { workers_.Stop(); }

ServiceState InferenceService::state() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (state_ == ServiceState::kReady &&
      served_.engine->Status().health == engine::Health::kFailed) {
    return ServiceState::kFailed;
  }
  return state_;
}

absl::Status InferenceService::Ready() const {
  switch (state()) {
    case ServiceState::kReady:
      return audit_ == nullptr ? absl::OkStatus() : audit_->Accepting();
    case ServiceState::kLoading:
      return WithRetryAfter(absl::UnavailableError("the model is loading; retry shortly"), 2);
    case ServiceState::kDraining:
      return absl::UnavailableError("the server is shutting down; retry on another replica");
    case ServiceState::kFailed:
      break;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  std::string reason = failure_;
  if (reason.empty() && served_.engine != nullptr) reason = served_.engine->Status().reason;
  return absl::UnavailableError(
      StrCat("the model cannot serve", reason.empty() ? "" : ": ", reason));
}

std::shared_ptr<const ServedModel> InferenceService::model() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return served_.model;
}

engine::EngineStatus InferenceService::engine_status() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return served_.engine == nullptr ? engine::EngineStatus() : served_.engine->Status();
}

absl::StatusOr<InferenceService::Served> InferenceService::Find(const std::string& name) const {
  RETURN_IF_ERROR(Ready());
  std::lock_guard<std::mutex> lock(mutex_);
  if (!name.empty() && name != served_.model->name) {
    return WithErrorCode(
        WithParam(absl::NotFoundError(StrCat("the model '", name.substr(0, 128),
                                             "' is not served here; the served model is '",
                                             served_.model->name, "'")),
                  "model"),
        "model_not_found");
  }
  return served_;
}

absl::StatusOr<InferenceService::Served> InferenceService::FindGenerator(
    const std::string& name) const {
  ASSIGN_OR_RETURN(Served served, Find(name));
  if (served.model->causal) return served;
  return InvalidParam("model", StrCat("the model '", served.model->name,
                                      "' is an encoder and generates no text; use /v1/embeddings",
                                      served.model->labels.empty() ? "" : " or /v1/classify"));
}

absl::StatusOr<std::shared_ptr<const ServedModel>> InferenceService::FindModel(
    const std::string& name) const {
  ASSIGN_OR_RETURN(Served served, Find(name));
  return served.model;
}

uint64_t InferenceService::Random() {
  std::lock_guard<std::mutex> lock(random_mutex_);
  return random_();
}

std::string InferenceService::NewId(std::string_view prefix) {
  return StrCat(prefix, absl::Hex(Random(), absl::kZeroPad16),
                absl::Hex(static_cast<uint32_t>(Random()), absl::kZeroPad8));
}

absl::StatusOr<std::vector<int32_t>> InferenceService::EncodePrompt(const PromptInput& prompt,
                                                                    const ServedModel& model,
                                                                    bool add_special,
                                                                    bool parse_special,
                                                                    std::string_view param) const {
  if (prompt.is_ids) return ValidatePromptIds(prompt.ids, model, param);
  const int64_t start = clock_->MonotonicNanos();
  auto ids = model.tokenizer->Encode(std::string_view(prompt.text),
                                     {.add_special = add_special, .parse_special = parse_special});
  if (!ids.ok()) return AsRequestFault(ids.status(), param);
  observer_->Tokenized(static_cast<int64_t>(ids->size()),
                       static_cast<double>(clock_->MonotonicNanos() - start) * 1e-9);
  return ids;
}

absl::Status InferenceService::Prepare(const GenerationFields& fields,
                                       const ValidationContext& validation,
                                       const CallContext& context, engine::GenerationRequest* out) {
  out->sampling.seed = Random();
  RETURN_IF_ERROR(ValidateFields(fields, validation, out));
  out->client = context.client;
  // Prefixes are never shared between the holders of different keys: timing would tell one what the
  // other has asked.
  if (context.authenticated) out->cache_salt = StrCat(context.client, "\x1f", out->cache_salt);
  out->deadline = context.deadline;
  if (fields.timeout_seconds.has_value()) {
    const absl::Time end = clock_->Now() + absl::Seconds(*fields.timeout_seconds);
    out->deadline = out->deadline.has_value() ? std::min(*out->deadline, end) : end;
  }
  if (fields.progress) out->progress_interval_tokens = options_.progress_interval_tokens;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Generation>> InferenceService::SubmitAll(
    std::string_view api, const CallContext& context, const Served& served, GenerationInfo info,
    std::vector<engine::GenerationRequest> requests, const OutputParserFactory& make_parser,
    std::function<void()> notify) {
  std::string record;
  if (audit_ != nullptr) record = AuditRequest(api, info, context, requests, audit_->text());
  std::vector<std::unique_ptr<engine::RequestHandle>> handles;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].id = requests.size() == 1 ? info.id : StrCat(info.id, "-", i);
    if (options_.log_prompts) LogPrompt(requests[i], *served.model);
    // An error drops the handles of the prompts before, which cancels them.
    auto handle = served.engine->Submit(std::move(requests[i]), notify);
    if (!handle.ok()) return handle.status();
    handles.push_back(*std::move(handle));
  }
  auto generation = MakeGeneration(std::move(info), std::move(handles), make_parser);
  if (audit_ == nullptr) return generation;
  return AuditGeneration(std::move(generation), std::move(record), audit_, std::move(notify));
}

absl::StatusOr<std::unique_ptr<Generation>> InferenceService::Complete(
    CompletionRequest request, const CallContext& context, std::function<void()> notify) {
  ASSIGN_OR_RETURN(const Served served, FindGenerator(request.model));
  const std::size_t count = request.prompts.size();
  if (count == 0 || static_cast<int64_t>(count) > options_.limits.max_prompts) {
    return InvalidParam("prompt", StrCat("'prompt' holds ", count, " prompts; allowed is 1 to ",
                                         options_.limits.max_prompts));
  }
  const ValidationContext validation{
      .model = served.model.get(), .limits = &options_.limits, .chat = false, .echo = request.echo};
  engine::GenerationRequest common;
  RETURN_IF_ERROR(Prepare(request.fields, validation, context, &common));

  GenerationInfo info;
  info.id = NewId("cmpl-");
  info.created = clock_->Now();
  info.model = served.model;
  info.num_choices = common.num_choices;
  std::vector<engine::GenerationRequest> requests;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string param = Indexed("prompt", i, count);
    engine::GenerationRequest one = common;
    ASSIGN_OR_RETURN(one.prompt,
                     EncodePrompt(request.prompts[i], *served.model, request.add_special_tokens,
                                  request.parse_special_tokens, param));
    absl::Status fits = ValidateLengths(request.fields, validation, &one);
    if (!fits.ok()) return count == 1 ? fits : WithParam(fits, param);
    info.prompt_lengths.push_back(static_cast<int32_t>(one.prompt.size()));
    info.prompts.push_back(one.prompt);
    requests.push_back(std::move(one));
  }
  return SubmitAll("completion", context, served, std::move(info), std::move(requests), nullptr,
                   std::move(notify));
}

absl::StatusOr<std::unique_ptr<Generation>> InferenceService::Chat(ChatRequest request,
                                                                   const CallContext& context,
                                                                   std::function<void()> notify) {
  ASSIGN_OR_RETURN(const Served served, FindGenerator(request.model));
  RETURN_IF_ERROR(ValidateChat(request, options_.limits));
  const ValidationContext validation{
      .model = served.model.get(), .limits = &options_.limits, .chat = true, .echo = false};
  engine::GenerationRequest one;
  RETURN_IF_ERROR(Prepare(request.fields, validation, context, &one));

  const int64_t start = clock_->MonotonicNanos();
  ASSIGN_OR_RETURN(RenderedChat rendered, RenderChat(request, *served.model, clock_->Now(),
                                                     [this] { return NewId("call_"); }));
  observer_->Tokenized(static_cast<int64_t>(rendered.ids.size()),
                       static_cast<double>(clock_->MonotonicNanos() - start) * 1e-9);
  one.prompt = std::move(rendered.ids);
  one.keep_special_token_ids = std::move(rendered.keep_token_ids);
  RETURN_IF_ERROR(ValidateLengths(request.fields, validation, &one));

  GenerationInfo info;
  info.id = NewId("chatcmpl-");
  info.created = clock_->Now();
  info.model = served.model;
  info.num_choices = one.num_choices;
  info.prompt_lengths.push_back(static_cast<int32_t>(one.prompt.size()));
  info.prompts.push_back(one.prompt);
  std::vector<engine::GenerationRequest> requests;
  requests.push_back(std::move(one));
  return SubmitAll("chat", context, served, std::move(info), std::move(requests),
                   rendered.make_parser, std::move(notify));
}

absl::StatusOr<std::unique_ptr<Generation>> InferenceService::Embed(EmbedRequest request,
                                                                    const CallContext& context,
                                                                    std::function<void()> notify) {
  ASSIGN_OR_RETURN(const Served served, Find(request.model));
  if (request.dimensions.has_value() && *request.dimensions != served.model->dim) {
    return InvalidParam(
        "dimensions", StrCat("'dimensions' is ", *request.dimensions, "; this model's embeddings ",
                             "have ", served.model->dim, " and cannot be shortened"));
  }
  GenerationFields fields;
  fields.priority = request.priority;
  fields.timeout_seconds = request.timeout_seconds;
  fields.cache_salt = request.cache_salt;
  return SubmitInputs(served, engine::RequestKind::kEmbed, fields, request.inputs,
                      request.add_special_tokens, context, std::move(notify));
}

absl::StatusOr<std::unique_ptr<Generation>> InferenceService::Classify(
    ClassifyRequest request, const CallContext& context, std::function<void()> notify) {
  ASSIGN_OR_RETURN(const Served served, Find(request.model));
  if (served.model->labels.empty()) {
    return InvalidParam("model",
                        StrCat("the model '", served.model->name,
                               "' has no classifier; serve a checkpoint for sequence classification"));
  }
  GenerationFields fields;
  fields.priority = request.priority;
  fields.timeout_seconds = request.timeout_seconds;
  return SubmitInputs(served, engine::RequestKind::kClassify, fields, request.inputs,
                      request.add_special_tokens, context, std::move(notify));
}

absl::StatusOr<std::unique_ptr<Generation>> InferenceService::SubmitInputs(
    const Served& served, engine::RequestKind kind, GenerationFields fields,
    const std::vector<PromptInput>& inputs, bool add_special, const CallContext& context,
    std::function<void()> notify) {
  const std::size_t count = inputs.size();
  if (count == 0 || static_cast<int64_t>(count) > options_.limits.max_vector_inputs) {
    return InvalidParam("input", StrCat("'input' holds ", count, " inputs; allowed is 1 to ",
                                        options_.limits.max_vector_inputs));
  }
  fields.max_tokens = 0;
  const ValidationContext validation{
      .model = served.model.get(), .limits = &options_.limits, .chat = false, .echo = true};
  engine::GenerationRequest common;
  common.kind = kind;
  RETURN_IF_ERROR(Prepare(fields, validation, context, &common));

  GenerationInfo info;
  info.id = NewId(kind == engine::RequestKind::kEmbed ? "embd-" : "classify-");
  info.created = clock_->Now();
  info.model = served.model;
  std::vector<engine::GenerationRequest> requests;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string param = Indexed("input", i, count);
    if (inputs[i].is_ids ? inputs[i].ids.empty() : inputs[i].text.empty()) {
      return InvalidParam(param, StrCat("'", param, "' is empty; send a text or token ids"));
    }
    engine::GenerationRequest one = common;
    one.id = count == 1 ? info.id : StrCat(info.id, "-", i);
    ASSIGN_OR_RETURN(one.prompt,
                     EncodePrompt(inputs[i], *served.model, add_special, false, param));
    absl::Status fits = ValidateLengths(fields, validation, &one);
    if (!fits.ok()) return WithParam(fits, param);
    info.prompt_lengths.push_back(static_cast<int32_t>(one.prompt.size()));
    requests.push_back(std::move(one));
  }
  std::string record;
  if (audit_ != nullptr) {
    const bool embeds = kind == engine::RequestKind::kEmbed;
    record = AuditRequest(embeds ? "embedding" : "classification", info, context, requests,
                          audit_->text());
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Generation> generation,
                   StartVectors(std::move(info), std::move(requests),
                                options_.max_vectors_in_flight, served.engine, notify));
  if (audit_ == nullptr) return generation;
  return AuditGeneration(std::move(generation), std::move(record), audit_, std::move(notify));
}

namespace {

absl::StatusOr<TokenizeResult> MakeTokenizeResult(std::vector<int32_t> ids,
                                                  const ServedModel& model, bool with_pieces) {
  TokenizeResult result;
  result.max_context = model.max_context;
  if (with_pieces) {
    for (const int32_t id : ids) {
      ASSIGN_OR_RETURN(const std::string_view bytes, model.tokenizer->TokenBytes(id));
      result.pieces.push_back({id, std::string(bytes)});
    }
  }
  result.ids = std::move(ids);
  return result;
}

}  // namespace

absl::StatusOr<TokenizeResult> InferenceService::Tokenize(const TokenizeRequest& request) const {
  ASSIGN_OR_RETURN(const Served served, Find(request.model));
  PromptInput input;
  input.text = request.text;
  ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                   EncodePrompt(input, *served.model, request.add_special_tokens,
                                request.parse_special_tokens, "prompt"));
  return MakeTokenizeResult(std::move(ids), *served.model, request.with_pieces);
}

absl::StatusOr<TokenizeResult> InferenceService::TokenizeChat(const ChatRequest& request,
                                                              bool with_pieces) const {
  ASSIGN_OR_RETURN(const Served served, Find(request.model));
  RETURN_IF_ERROR(ValidateChat(request, options_.limits));
  ASSIGN_OR_RETURN(RenderedChat rendered,
                   RenderChat(request, *served.model, clock_->Now(), nullptr));
  return MakeTokenizeResult(std::move(rendered.ids), *served.model, with_pieces);
}

absl::StatusOr<std::string> InferenceService::Detokenize(const DetokenizeRequest& request) const {
  ASSIGN_OR_RETURN(const Served served, Find(request.model));
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   ValidatePromptIds(request.ids, *served.model, "tokens"));
  return served.model->tokenizer->Decode(ids, request.skip_special_tokens);
}

}  // namespace longstride::frontend

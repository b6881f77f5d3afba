// Protocol-neutral admission: validates, renders, tokenises, submits. Both transports call it, so
// both give the same results and the same errors.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "config/base/clock.h"
#include "config/base/status.h"
#include "server/engine/engine.h"
#include "server/frontend/api_types.h"
#include "server/frontend/audit_log.h"
#include "server/frontend/generation.h"
#include "server/frontend/observer.h"
#include "server/frontend/served_model.h"
#include "server/frontend/validation.h"
#include "server/frontend/worker_pool.h"

namespace longstride::frontend {

struct ServiceOptions {
  RequestLimits limits;
  int32_t worker_threads = 2;
  int32_t progress_interval_tokens = 512;  // of the progress events that a request asks for
  int32_t max_vectors_in_flight = 32;   // inputs of one request that are submitted at a time
  bool log_prompts = false;                // write prompts to the log, as the model sees them
};

enum class ServiceState { kLoading, kReady, kDraining, kFailed };

// Thread-safe. The calls that take a request do real work (tokenising a million tokens takes a
// while): make them on workers().
class InferenceService {
 public:
  // All must outlive the service and its generations. `audit` (or null) records every request that
  // the engine took.
  InferenceService(const ServiceOptions& options, const Clock* clock, FrontendObserver* observer,
                   AuditLog* audit = nullptr);
  ~InferenceService();

  // Before this every request is refused as UNAVAILABLE. What `model` borrows and `engine` must
  // outlive all generations.
  void SetModel(ServedModel model, engine::Engine* engine);
  // Loading failed for good; the reason is told to clients.
  void SetFailed(std::string reason);
  // New requests are refused as UNAVAILABLE; those under way go on.
  void BeginDrain();
  // Stops the workers; requests that wait there are dropped.
  void Stop();

  ServiceState state() const;
  // UNAVAILABLE while loading or draining, or while requests cannot be recorded, with a reason.
  absl::Status Ready() const;
  // The served model whatever the state; null while loading.
  std::shared_ptr<const ServedModel> model() const;
  // The served model if `name` is it, or empty. NOT_FOUND names what is served.
  absl::StatusOr<std::shared_ptr<const ServedModel>> FindModel(const std::string& name) const;
  engine::EngineStatus engine_status() const;

  // `notify` is called from another thread whenever the generation may have something to drain,
  // possibly before these return. RESOURCE_EXHAUSTED: the queue is full.
  absl::StatusOr<std::unique_ptr<Generation>> Complete(CompletionRequest request,
                                                       const CallContext& context,
                                                       std::function<void()> notify);
  absl::StatusOr<std::unique_ptr<Generation>> Chat(ChatRequest request, const CallContext& context,
                                                   std::function<void()> notify);
  absl::StatusOr<std::unique_ptr<Generation>> Embed(EmbedRequest request,
                                                    const CallContext& context,
                                                    std::function<void()> notify);
  absl::StatusOr<std::unique_ptr<Generation>> Classify(ClassifyRequest request,
                                                       const CallContext& context,
                                                       std::function<void()> notify);

  absl::StatusOr<TokenizeResult> Tokenize(const TokenizeRequest& request) const;
  // Template and tokenise without inference.
  absl::StatusOr<TokenizeResult> TokenizeChat(const ChatRequest& request, bool with_pieces) const;
  absl::StatusOr<std::string> Detokenize(const DetokenizeRequest& request) const;

  WorkerPool& workers() { return workers_; }
  const ServiceOptions& options() const { return options_; }
  FrontendObserver& observer() { return *observer_; }
  const Clock& clock() const { return *clock_; }
  // "chatcmpl-" and 24 random hex digits.
  std::string NewId(std::string_view prefix);

 private:
  struct Served {
    std::shared_ptr<const ServedModel> model;
    engine::Engine* engine = nullptr;
  };

  absl::StatusOr<Served> Find(const std::string& name) const;
  // INVALID_ARGUMENT: it is an encoder.
  absl::StatusOr<Served> FindGenerator(const std::string& name) const;
  absl::StatusOr<std::vector<int32_t>> EncodePrompt(const PromptInput& prompt,
                                                    const ServedModel& model, bool add_special,
                                                    bool parse_special,
                                                    std::string_view param) const;
  // Fills what does not depend on the prompt.
  absl::Status Prepare(const GenerationFields& fields, const ValidationContext& validation,
                       const CallContext& context, engine::GenerationRequest* out);
  absl::StatusOr<std::unique_ptr<Generation>> SubmitAll(
      std::string_view api, const CallContext& context, const Served& served, GenerationInfo info,
      std::vector<engine::GenerationRequest> requests, const OutputParserFactory& make_parser,
      std::function<void()> notify);
  // One vector for each input.
  absl::StatusOr<std::unique_ptr<Generation>> SubmitInputs(
      const Served& served, engine::RequestKind kind, GenerationFields fields,
      const std::vector<PromptInput>& inputs, bool add_special, const CallContext& context,
      std::function<void()> notify);
  uint64_t Random();

  const ServiceOptions options_;
  const Clock* const clock_;
  FrontendObserver* const observer_;
  AuditLog* const audit_;  // or null
  mutable std::mutex mutex_;
  Served served_;
  ServiceState state_ = ServiceState::kLoading;
  std::string failure_;
  std::mutex random_mutex_;
  std::mt19937_64 random_;
  WorkerPool workers_;
};

}  // namespace longstride::frontend

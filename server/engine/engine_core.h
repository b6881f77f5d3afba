// The engine without its thread: requests in, one step at a time, events out. Deterministic given its
// clock and executor, so that it runs under a simulator.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "config/base/clock.h"
#include "config/base/status.h"
#include "model/model_input.h"
#include "model/sampler.h"
#include "server/engine/engine.h"
#include "server/engine/executor.h"
#include "server/engine/observer.h"
#include "server/engine/options.h"
#include "server/engine/output_processor.h"
#include "server/engine/output_queue.h"
#include "server/engine/request.h"
#include "server/engine/scheduler.h"

namespace longstride::engine {

using RequestNumber = int64_t;  // ascending in order of arrival

// A validated request with what could be computed off the engine's thread.
struct PreparedRequest {
  RequestNumber number = 0;
  GenerationRequest request;
  std::shared_ptr<OutputQueue> output;
  absl::Time arrival;
  uint8_t rope_variant = 0;
  Hash128 root_key;
  std::vector<Hash128> keys;
};

struct Cancellation {
  RequestNumber number = 0;
  FinishReason reason = FinishReason::kCancelled;
  AbortCause cause = AbortCause::kClient;
};

class EngineCore {
 public:
  // Calls Notify of the queues, now or soon, and empties the list.
  using AnnounceFn = std::function<void(std::vector<std::shared_ptr<OutputQueue>>*)>;

  // All pointers must outlive it. `text` may be null: tokens then have no text. `announce` may be
  // null: readers are then notified by the calling thread.
  EngineCore(const EngineOptions& options, Executor* executor, const TextStreamFactory* text,
             EngineObserver* observer, const Clock* clock, AnnounceFn announce = nullptr);
  ~EngineCore();

  // Checks a request against the model and the pool and computes its prefix keys. Thread-safe.
  // INVALID_ARGUMENT: see Engine::Submit.
  absl::StatusOr<std::unique_ptr<PreparedRequest>> Prepare(GenerationRequest request) const;
  // The longest prompt + max_tokens of one request that the context and the page budget allow.
  int32_t max_request_tokens() const { return max_request_tokens_; }

  // Everything below: one thread.
  void Enqueue(std::unique_ptr<PreparedRequest> prepared);
  void Cancel(const Cancellation& cancellation);
  void CancelAll(const absl::Status& status, AbortCause cause);
  // One step; false where there was nothing to do.
  bool Step();
  // When Step may have something to do again though nothing new arrives (a deadline, a stalled
  // reader's time); InfiniteFuture: never.
  absl::Time NextWakeup() const;

  bool idle() const { return requests_.empty(); }
  // Not OK: the executor is gone, and all requests with it.
  const absl::Status& failure() const { return failure_; }
  int32_t num_waiting() const { return num_waiting_; }
  int64_t num_waiting_tokens() const { return num_waiting_tokens_; }
  int32_t num_running() const { return static_cast<int32_t>(requests_.size()) - num_waiting_; }
  double kv_utilization() const;
  // The output of a request that still lives, or null.
  OutputQueue* output(RequestNumber number) const;

  Scheduler& scheduler() { return *scheduler_; }
  const CostModel& cost_model() const { return cost_model_; }
  const StepPlan& last_plan() const { return plan_; }
  absl::Status CheckIntegrity() const;

 private:
  struct Choice;
  struct Request;
  struct RunContext;

  Request* RequestOf(SequenceId id);
  absl::Status Validate(const GenerationRequest& request) const;
  std::unique_ptr<Sequence> NewSequence(const PreparedRequest& prepared, int32_t choice) const;

  void ExpireDeadlines();
  void CheckStalledReaders();
  void SetStalled(Request* request, bool stalled);
  void NoteAdmissions();
  void NotePeaks();
  absl::Status MovePages();
  absl::Status CopyPages(std::span<const model::PageCopy> copies);
  void FailCopies(const absl::Status& status);
  std::set<RequestNumber> NumbersOfRuns() const;
  void FailStep(const absl::Status& status, const std::set<RequestNumber>& numbers);
  void HandleOutput(StepReport* report);
  void HandleRun(const RunContext& run, StepReport* report);
  void ReportProgress(Request* request, int32_t processed);
  void ScorePrompt(const RunContext& run);
  model::Pooling PoolingOf(const Request& request) const;
  void Pool(const RunContext& run);
  // Asks the model for the tokens that it may choose by itself.
  void AskForTokens();
  model::SamplingContext ContextOf(const Request& request, const Sequence& sequence) const;
  void SampleChoices(const RunContext& run, StepReport* report);
  void SampleChoice(Request* request, Sequence* sequence, std::span<float> logits);
  void TakeToken(Request* request, Sequence* sequence, const model::SampledToken& sampled);
  void Fork(Request* request, Sequence* parent, std::span<const float> logits);
  void FinishPrefillOnly(Request* request);
  void FailInvalidLogits(Request* request);
  void Emit(Request* request, OutputEvent event);
  void EmitDelta(Request* request, int32_t choice);
  void EndChoice(Request* request, int32_t choice, const OutputProcessor::Ending& ending);
  void Finish(Request* request, FinishReason reason, absl::Status status, AbortCause cause);
  void FlushOutputs();
  void Report(StepReport* report);

  const EngineOptions options_;
  Executor* const executor_;
  const TextStreamFactory* const text_;
  EngineObserver* const observer_;
  const Clock* const clock_;
  const AnnounceFn announce_;
  AttendedKeysFn attended_keys_;
  int32_t max_context_ = 0;
  int32_t max_request_tokens_ = 0;

  std::unique_ptr<Scheduler> scheduler_;
  CostModel cost_model_;
  model::Sampler sampler_;
  std::map<RequestNumber, std::unique_ptr<Request>> requests_;
  std::set<std::pair<absl::Time, RequestNumber>> deadlines_;
  std::set<RequestNumber> stalled_;  // their readers let the queue fill up
  std::vector<std::shared_ptr<OutputQueue>> touched_;  // outputs with news of this step
  std::vector<Request*> touched_requests_;
  std::vector<std::unique_ptr<Request>> finished_;     // ended in this step
  bool unreported_ = false;  // a request ended and no report has said so
  int32_t num_waiting_ = 0;
  int64_t num_waiting_tokens_ = 0;
  absl::Status failure_;
  int64_t next_error_ = 1;
  int apply_failures_ = 0;  // in a row
  int32_t step_generated_ = 0;  // since the last report

  StepPlan plan_;
  model::ModelInput input_;
  model::ModelOutput output_;
  std::vector<int64_t> choice_of_run_;  // index into input_.choices, -1: none
  std::vector<float> row_;  // copy of a row of logits for a further choice
  absl::Time now_;
};

}  // namespace longstride::engine

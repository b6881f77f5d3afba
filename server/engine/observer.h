// What the engine tells the outside about its work; metrics implement it. Called on the engine
// thread (Rejected: on the submitter's); implementations must be cheap and thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "model/model_input.h"
#include "server/engine/request.h"

namespace longstride::engine {

struct GroupPages {
  int64_t free = 0;       // of the budget, in this group's page size
  int64_t used = 0;       // held by running sequences (shared pages counted once)
  int64_t cached = 0;     // held by the prefix cache alone: evictable
  int64_t snapshot = 0;   // of `cached`: window snapshots at cut points
  int64_t bytes_used = 0;
  int64_t in_host = 0;    // moved to host memory
};

struct StepReport {
  int32_t decode_tokens = 0;
  int32_t prefill_tokens = 0;
  int32_t recomputed_tokens = 0;   // prefill work done before, lost to preemption
  int32_t num_sequences = 0;
  int32_t generated_tokens = 0;    // sampled in this step
  int64_t plan_ns = 0;     // PlanStep
  int64_t forward_ns = 0;  // the executor
  int64_t sample_ns = 0;   // sampling, with detokenisation and stop strings of the tokens sampled
  int64_t emit_ns = 0;     // everything else
  model::StepTimes model;
  std::optional<kernels::StepRun> repeatable;         // ModelOutput's
  std::optional<kernels::KernelTimes> kernel_times;  // ModelOutput's
  int32_t chosen_on_device = 0;  // of the tokens sampled
  std::vector<model::PatternCounters> counters;
  std::optional<model::ShadowReport> shadow;  // ModelOutput's
  int32_t running = 0;
  int32_t waiting = 0;
  int64_t waiting_prompt_tokens = 0;
  std::vector<GroupPages> groups;
  double kv_utilization = 0;
};

enum class PageFreeCause { kWindow, kEvict, kFinish, kAbort, kPreempt };
enum class AbortCause { kNone, kClient, kDisconnect, kDeadline, kSlowClient, kShutdown };

struct FinishReport {
  FinishReason reason = FinishReason::kStop;
  AbortCause abort = AbortCause::kNone;
  RequestUsage usage;
  int32_t num_choices = 1;
  int32_t max_tokens = 0;
  double ttft_seconds = -1;   // -1: no token was produced
  double e2e_seconds = 0;
  RequestKind kind = RequestKind::kGenerate;
};

class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void Submitted(const GenerationRequest& request) {}
  virtual void Rejected(std::string_view reason) {}  // queue_requests, queue_tokens, draining, …
  virtual void Admitted(double queue_seconds, int32_t prompt_tokens, int32_t cached_tokens) {}
  // Of cached_tokens: in pages that hold another request's generated tokens.
  virtual void GeneratedPrefixHit(int32_t tokens) {}
  virtual void FirstToken(double ttft_seconds) {}
  virtual void InterToken(double seconds) {}         // between two emissions of one choice
  virtual void Preempted(int32_t tokens_lost) {}
  virtual void PagesFreed(int32_t group, PageFreeCause cause, int64_t pages) {}
  // Contents of pages moved to host memory or back, in the time given.
  virtual void PagesCopied(bool to_host, int64_t bytes, double seconds) {}
  virtual void ClientStalled(double seconds) {}
  virtual void InvalidLogits() {}
  virtual void StepDone(const StepReport& report) {}
  virtual void Finished(const FinishReport& report) {}
};

}  // namespace longstride::engine

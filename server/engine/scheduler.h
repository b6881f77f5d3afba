// Decides what each step computes, and keeps the books: which sequence runs, waits or is preempted,
// and which pages it holds.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "config/base/status.h"
#include "model/cache_group.h"
#include "model/model_input.h"
#include "server/engine/cost_model.h"
#include "server/engine/fair_share.h"
#include "server/engine/observer.h"
#include "server/engine/page_allocator.h"
#include "server/engine/prefix_cache.h"
#include "server/engine/sequence.h"

namespace longstride::engine {

struct SchedulerLimits {
  int32_t max_running_sequences = 64;
  // Positions that are shared and kept together: a page, or where the plan pools the queries of a
  // prompt's tiles, such a tile (whole pages).
  int32_t unit_tokens = kernels::kPageTokens;
  // Then a chunk of a prompt ends at the end of a unit or of the prompt, nowhere else.
  bool whole_units = false;
  int32_t max_step_tokens = 512;
  int32_t max_step_logits = 512;
  int32_t max_concurrent_prefills = 4;  // prompts that need more than one step
  absl::Duration inter_token_bound = absl::Milliseconds(400);
  absl::Duration priority_ageing = absl::Seconds(60);  // waiting this long is worth one priority
  int32_t reserve_tokens = 1024;
  int32_t max_preemptions = 3;          // then a sequence comes back with room for all it may need
  int32_t max_bypasses = 16;            // admissions past one that waits for pages
  int32_t window_snapshot_interval = 2048;
  bool share_generated_pages = true;
};

// Attended keys of one query, mean over layers (Executor::AttendedKeys).
using AttendedKeysFn = std::function<double(int64_t position, model::NumericsClass numerics)>;

// Sum of AttendedKeys over [begin, end) of a sequence whose prompt has `num_prompt` tokens, by
// Simpson's rule.
double SumAttendedKeys(const AttendedKeysFn& attended_keys, int64_t begin, int64_t end,
                       int64_t num_prompt);

struct Admission {
  SequenceId id = 0;
  int32_t cached_tokens = 0;     // prefix found in the cache
  int32_t generated_tokens = 0;  // of these, another request's output
  std::vector<int32_t> nodes{};  // PrefixCache nodes of the match
};

struct PlannedRun {
  SequenceId id = 0;
  int32_t first_position = 0;
  int32_t num_tokens = 0;
  int32_t num_logits = 0;
  model::NumericsClass numerics = model::NumericsClass::kPrompt;
  bool decode = false;
};

// What one step does, in this order: preempt, admit, run.
struct StepPlan {
  std::vector<SequenceId> preempt;
  std::vector<Admission> admit;
  std::vector<PlannedRun> runs;
  std::vector<SequenceId> bypassed;  // waited for pages while a later one was admitted
  StepWork work;
  double predicted_seconds = 0;

  bool empty() const { return runs.empty() && preempt.empty(); }
};

// Everything that planning may look at. `prefix_cache` may be null.
struct SchedulerState {
  std::vector<model::CacheGroup> groups;
  std::unique_ptr<PageAllocator> allocator;
  std::unique_ptr<PrefixCache> prefix_cache;
  std::map<SequenceId, std::unique_ptr<Sequence>> sequences;
  std::vector<Sequence*> running;  // by id
  std::vector<Sequence*> waiting;  // by id
  FairShare fair_share;
  int64_t steps = 0;
};

// The next step. Pure: the same arguments give the same plan, and nothing changes.
StepPlan PlanStep(const SchedulerState& state, const SchedulerLimits& limits, const StepCost& cost,
                  const AttendedKeysFn& attended_keys, absl::Time now);

// Bytes that admission reserves for a sequence (with its forks): what it holds at its peak while it
// grows to its tokens + min(what it may still generate, the reserve).
int64_t ReserveBytes(const std::vector<model::CacheGroup>& groups, const SchedulerLimits& limits,
                     const Sequence& sequence);
// The number of tokens behind ReserveBytes.
int32_t ReserveTarget(const SchedulerLimits& limits, const Sequence& sequence);

// Engine thread only.
class Scheduler {
 public:
  // `observer` hears of freed pages.
  Scheduler(SchedulerState state, const SchedulerLimits& limits, EngineObserver* observer);

  const SchedulerState& state() const { return state_; }
  const SchedulerLimits& limits() const { return limits_; }
  PageAllocator& allocator() { return *state_.allocator; }
  PrefixCache* prefix_cache() { return state_.prefix_cache.get(); }
  FairShare& fair_share() { return state_.fair_share; }
  // Copies between pages and host memory that must be made before the next step computes, those to
  // host memory first, before any page gives its memory back.
  std::vector<model::PageCopy> TakeCopies();

  Sequence* Find(SequenceId id);
  // A new sequence, waiting.
  Sequence* Add(std::unique_ptr<Sequence> sequence);
  // A further choice of `parent`, whose prompt is computed: shares its whole pages and runs on from
  // there. `fork` has tokens and parameters but no pages.
  Sequence* Fork(Sequence* parent, std::unique_ptr<Sequence> fork);
  // Ends a sequence in any state and gives its pages back.
  void Remove(SequenceId id, PageFreeCause cause);

  // Commits a plan made from the current state: all of it, or nothing and an error.
  absl::Status Apply(const StepPlan& plan, absl::Time now);
  // The run was computed: moves on, shares whole pages, takes window snapshots and gives back pages
  // that no later query sees. Sampled tokens are appended by the caller afterwards.
  void Complete(const PlannedRun& run);
  // Ends a step; keeps the prefix cache within its bounds.
  void EndStep();
  void SetStalled(Sequence* sequence, bool stalled) { sequence->stalled = stalled; }
  // Gives up every page that only the prefix cache holds.
  void FlushCache();

  // INTERNAL where references, page tables and the allocator disagree.
  absl::Status CheckIntegrity() const;

 private:
  // A node's page of a group that comes back from host memory for an admission.
  struct Restored {
    int32_t node, group, page;
  };
  void TakeMatch(const Admission& admission, Sequence* sequence);
  absl::Status RestoreMatch(const Admission& admission, Sequence* sequence,
                            std::vector<Restored>* restored);
  // A page with one reference, at the expense of what only the prefix cache holds.
  absl::StatusOr<int32_t> AllocatePage(int32_t group);
  absl::Status AllocateFor(const PlannedRun& run, Sequence* sequence,
                           std::vector<std::vector<int32_t>>* fresh);
  void Share(Sequence* sequence, int32_t computed_before);
  void FreeDeadPages(Sequence* sequence);
  void KeepTail(Sequence* sequence);
  bool Release(int32_t group, int32_t page);  // whether nobody holds the page any more
  void ReleasePages(Sequence* sequence, PageFreeCause cause);
  void ForgetPages(Sequence* sequence);
  void ReportEvictions();

  SchedulerState state_;
  SchedulerLimits limits_;
  EngineObserver* observer_;
};

}  // namespace longstride::engine

// An executor without a model that knows what the real one would find in the cache. Its "keys" are
// hashes of everything up to their position (scope, prompt, output); on every run it checks, through
// the page tables alone, that each position that the run's queries see holds exactly that hash.
// Wrong sharing, pages freed too early, stale or doubly written pages all show up as a mismatch.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "config/base/clock.h"
#include "server/engine/executor.h"
#include "server/engine/output_processor.h"
#include "server/engine/scheduler.h"

namespace longstride::engine {

struct FakeExecutorOptions {
  std::vector<model::CacheGroup> groups;
  int64_t kv_budget_bytes = 0;
  std::vector<int32_t> host_slots;  // by group
  int32_t vocab_size = 48;
  int32_t hidden_dim = 4;
  int32_t max_context = 4096;
  int32_t max_step_tokens = 256;
  std::vector<int32_t> variant_lengths;
  bool variants_by_prompt = false;
  // Above 1: a prompt's keys depend on the prompt to the end of their tile of this many positions.
  int32_t chunk_alignment = 1;
  bool one_numerics_class = true;  // false: keys depend on their class too
  bool causal = true;
  model::Pooling classify_pooling = model::Pooling::kMean;
  int32_t num_labels = 0;
  // Virtual time of a step.
  double seconds_per_step = 2e-3;
  double seconds_per_token = 1e-4;
  double seconds_per_key = 1e-7;
};

class FakeExecutor : public Executor {
 public:
  FakeExecutor(const FakeExecutorOptions& options, FakeClock* clock);

  // Where the runs' sequences are looked up; plan: the step's.
  void Watch(const Scheduler* scheduler, const StepPlan* plan) {
    scheduler_ = scheduler;
    plan_ = plan;
  }

  const ExecutorInfo& info() const override { return info_; }
  double AttendedKeys(int64_t position, model::NumericsClass numerics) const override;
  absl::Status Forward(const model::ModelInput& input, model::ModelOutput* output) override;
  void Decommit(int32_t group, std::span<const int32_t> pages) override;
  std::vector<float> Embed(std::span<const float> pooled) override {
    return {pooled.begin(), pooled.end()};
  }
  // The pooled states again, behind a mark.
  std::vector<float> Classify(std::span<const float> pooled) override {
    std::vector<float> scores = {-1.0f};
    scores.insert(scores.end(), pooled.begin(), pooled.end());
    return scores;
  }
  absl::Status CopyPages(std::span<const model::PageCopy> copies) override;
  bool healthy() const override { return healthy_; }

  void FailNextCopy() { fail_next_copy_ = true; }
  // The next Forward fails (after it may have written half of the step's keys).
  void FailNext() { fail_next_ = true; }
  void Break() { healthy_ = false; }
  // Stretches the time of the next step.
  void DelayNext(double factor) { delay_ = factor; }
  void InvalidateNextLogits() { invalid_next_ = true; }

  const std::vector<std::string>& errors() const { return errors_; }
  int64_t positions_checked() const { return positions_checked_; }
  int64_t steps() const { return steps_; }

  // The function that it computes: hash of all tokens so far to the next logits and hidden state.
  static uint64_t Chain(uint64_t before, int32_t token);
  static uint64_t ChainStart(const Hash128& root_key, uint8_t rope_variant);
  static float Logit(uint64_t chain, int32_t token);
  static float Hidden(uint64_t chain, int32_t dim);

 private:
  struct Known {  // of a sequence, extended as it grows
    std::vector<uint64_t> chain;
    std::vector<uint64_t> keys;  // what the cache holds of each position
  };
  const std::vector<uint64_t>& ChainOf(const Sequence& sequence);
  const std::vector<uint64_t>& KeysOf(const Sequence& sequence);
  void CheckRun(const model::ModelInput& input, size_t index, const Sequence& sequence);
  void Write(const model::ModelInput& input, size_t index, const Sequence& sequence);
  void Error(const std::string& text);

  FakeExecutorOptions options_;
  ExecutorInfo info_;
  FakeClock* clock_;
  const Scheduler* scheduler_ = nullptr;
  const StepPlan* plan_ = nullptr;
  std::vector<std::vector<uint64_t>> shadow_;  // [group][page * 64 + slot]
  std::vector<std::vector<uint64_t>> host_;    // [group][slot * 64 + slot of the page]
  std::map<SequenceId, Known> known_;
  std::vector<float> logits_;
  std::vector<float> hidden_;
  std::vector<std::string> errors_;
  int64_t positions_checked_ = 0;
  int64_t steps_ = 0;
  bool fail_next_ = false;
  bool fail_next_copy_ = false;
  bool healthy_ = true;
  bool invalid_next_ = false;
  double delay_ = 1.0;
};

// Tokens spell short strings; some are halves of a character.
class FakeText : public TextStreamFactory {
 public:
  static const std::string& Bytes(int32_t token);
  // Whole characters of `bytes`; what is left over at the end becomes U+FFFD if `at_end`.
  static std::string TakeCharacters(std::string* bytes, bool at_end);
  std::unique_ptr<TextStream> NewStream(bool skip_special, bool at_text_start,
                                        const std::vector<int32_t>& keep) const override;
};

model::CacheGroup MakeGroup(std::string name, model::Retention retention, int64_t page_bytes);

}  // namespace longstride::engine

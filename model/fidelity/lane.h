// A lane: one plan over a loaded model's weights, with a cache and one sequence of its own. Lanes
// of one model compute the same text side by side without holding the weights twice. Pages are
// handed out and given back as the engine does, so that a lane runs the paged path that serves.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "config/base/status.h"
#include "model/model.h"

namespace longstride::model::fidelity {

struct LaneOptions {
  kernels::KvDType kv_dtype = kernels::KvDType::kF16;
  int32_t max_tokens = 0;   // longest sequence
  int32_t step_tokens = 0;  // most tokens of one Append
};

class Lane {
 public:
  // `model` must outlive the lane. RESOURCE_EXHAUSTED where its cache does not fit memory.
  static absl::StatusOr<std::unique_ptr<Lane>> Create(Model* model, SparsityPlan plan,
                                                      const LaneOptions& options);

  // Forgets the sequence and the most pages it held.
  void Reset();
  // Appends 1 to step_tokens tokens; logits of the last `num_logits` of them.
  absl::Status Append(std::span<const int32_t> tokens, int32_t num_logits,
                      NumericsClass numerics = NumericsClass::kPrompt);
  // Takes the last tokens back, at most those of the last Append.
  void CutTo(int32_t length);

  const ModelOutput& output() const { return output_; }  // of the last Append
  // Logits of row r of the last Append's num_logits.
  // until the next (also where another lane of the device runs in between).
  const float* Logits(int32_t row) const { return logits_.row<float>(row); }
  const SparsityPlan& plan() const { return plan_; }
  Decoder& decoder() { return *decoder_; }
  int32_t length() const { return length_; }
  int32_t step_tokens() const { return options_.step_tokens; }
  // Bytes of the pages held now, and of the most held since Reset.
  int64_t kv_bytes() const;
  int64_t max_kv_bytes() const { return max_kv_bytes_; }
  // Keys that the plan let queries read, of those that dense causal attention reads, over all Appends.
  double keys_share() const {
    return keys_total_ == 0 ? 1.0
                            : static_cast<double>(keys_visible_) / static_cast<double>(keys_total_);
  }

 private:
  Lane() = default;
  void FreeDeadPages();
  void Grow(int32_t length);

  SparsityPlan plan_;
  LaneOptions options_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Decoder> decoder_;
  ModelInput input_;
  ModelOutput output_;
  kernels::TensorView logits_;
  std::vector<float> copied_logits_;  // where the device's own do not outlive its next step
  bool on_host_ = true;
  std::vector<std::vector<int32_t>> free_;  // [group] physical pages, the next to use last
  std::vector<int64_t> held_;               // [group] pages of the sequence
  int32_t length_ = 0;
  int32_t last_begin_ = 0;  // length before the last Append
  int64_t max_kv_bytes_ = 0;
  int64_t keys_visible_ = 0, keys_total_ = 0;
  uint8_t rope_variant_ = 0;
};

}  // namespace longstride::model::fidelity

// What a served plan misses, measured while it serves: for a sampled generated token, in a few
// layers, attention is computed once more with the baseline's pattern over the pages that are there
// and compared with what the plan attended. Queries and cached keys are those of the served plan,
// so that errors of earlier layers and tokens stay unseen: a lower bound of the divergence.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "kernels/backend.h"
#include "model/attention_observer.h"
#include "model/model_input.h"
#include "model/sparsity/sparsity_plan.h"

namespace longstride::model::fidelity {

// Not thread-safe: the engine's thread. Backends that compute in host memory only.
class LiveShadow : public AttentionObserver {
 public:
  static constexpr int32_t kLayersPerStep = 2;  // bounds the cost of a sampled step

  // `baseline`: the checkpoint's own plan; backend and `plan` must outlive this. INVALID_ARGUMENT:
  // the backend keeps its cache in device memory, or the model has dual chunk attention.
  static absl::StatusOr<std::unique_ptr<LiveShadow>> Create(kernels::Backend* backend,
                                                            const SparsityPlan* plan,
                                                            SparsityPlan baseline,
                                                            double sample_rate);

  // Whether this step is to be observed: the sample_rate-th part of the steps that generate, evenly
  // spread. Chooses one generated row and kLayersPerStep layers, in turn.
  bool Begin(const ModelInput& input);
  void OnAttention(const AttentionCall& call) override;
  // What the step gave.
  ShadowReport Take();

  const std::string& baseline_digest() const { return baseline_.digest; }
  bool measures(int32_t layer, size_t segment) const {
    return watched_[static_cast<size_t>(layer)][segment] != nullptr;
  }
  // Layers of which some heads are measured.
  const std::vector<int32_t>& layers() const { return layers_; }
  // Why some heads are not, "" where all are.
  const std::string& reason() const { return reason_; }

 private:
  LiveShadow(kernels::Backend* backend, const SparsityPlan* plan, SparsityPlan baseline,
             double sample_rate);
  void Watch(size_t layer, const HeadSegment& segment);
  absl::Status Measure(const AttentionCall& call, const SparsePattern& baseline, int64_t row,
                       int64_t position);
  // The keys that the row reads under both patterns, as lists of tokens.
  void SelectCommon(const AttentionCall& call, const SparsePattern& baseline, int64_t row,
                    int64_t position);

  kernels::Backend* backend_;
  const SparsityPlan* plan_;
  const SparsityPlan baseline_;
  const double sample_rate_;
  std::vector<std::vector<const SparsePattern*>> watched_;  // [layer][segment], null: not measured
  std::vector<int32_t> layers_;
  std::string reason_;

  double due_ = 0;
  int64_t num_sampled_ = 0;
  // The step being observed.
  int32_t sequence_ = 0;
  std::vector<int32_t> step_layers_;
  ShadowReport report_;
  SelectionBuilder baseline_keys_, common_keys_;
  std::vector<float> baseline_out_, common_out_, baseline_lse_, common_lse_;
};

}  // namespace longstride::model::fidelity

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

// Not thread-safe: the engine's thread. What a device computes is asked for while the step runs and
// read when it has ended: nothing waits in between.
class LiveShadow : public AttentionObserver {
 public:
  static constexpr int32_t kLayersPerStep = 2;  // bounds the cost of a sampled step

  // `baseline`: the checkpoint's own plan; `backend`, which must be the observed decoder's where it
  // is a device, and `plan` must outlive this. INVALID_ARGUMENT: the model has dual chunk attention.
  // RESOURCE_EXHAUSTED: no memory for results.
  static absl::StatusOr<std::unique_ptr<LiveShadow>> Create(kernels::Backend* backend,
                                                            const SparsityPlan* plan,
                                                            SparsityPlan baseline,
                                                            double sample_rate);

  // Whether this step is to be observed: the sample_rate-th part of the steps that generate, evenly
  // spread. Chooses one generated row and kLayersPerStep layers, in turn.
  bool Begin(const ModelInput& input);
  void OnAttention(const AttentionCall& call) override;
  // What the step gave. REQUIRES: the step has succeeded; none has begun since.
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
  // Attention of one row in one segment's heads. The arrays that a step was given must stay as they
  // are until it ends, so every sample of a step has its own.
  struct Sample {
    ShadowSample result;
    SelectionBuilder baseline_keys, common_keys;
    kernels::Buffer
        memory;  // the backend's: two outputs [heads, head_dim], two log-sum-exps [heads]
    int64_t heads = 0, dim = 0;
    kernels::TensorView served, computed;  // in host memory when the step has ended
    std::vector<float> served_copy;        // where the served output is overwritten before that
  };

  LiveShadow(kernels::Backend* backend, const SparsityPlan* plan, SparsityPlan baseline,
             double sample_rate);
  absl::Status AllocateSamples();
  void Watch(size_t layer, const HeadSegment& segment);
  absl::Status Measure(const AttentionCall& call, const SparsePattern& baseline, int64_t row,
                       int64_t position);
  // The keys that the row reads under both patterns: of lists in host memory, as lists of tokens;
  // the plan's list itself, with the baseline's edges, where that lies elsewhere.
  kernels::KvSelection SelectCommon(const AttentionCall& call, const SparsePattern& baseline,
                                    int64_t row, int64_t position, Sample* sample);
  void ListCommonTokens(const AttentionCall& call, const SparsePattern& baseline, int64_t row,
                        int64_t position, Sample* sample);
  void Finish(Sample* sample);

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
  std::vector<std::unique_ptr<Sample>> samples_;
  size_t num_samples_ = 0;
};

}  // namespace longstride::model::fidelity

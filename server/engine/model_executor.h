#pragma once

#include <vector>

#include "model/fidelity/live_shadow.h"
#include "model/model.h"
#include "server/engine/executor.h"

namespace longstride::engine {

// Runs steps on one loaded model.
class ModelExecutor : public Executor {
 public:
  // Both must outlive it; `shadow` (or null) watches the steps that it samples.
  explicit ModelExecutor(model::Model* model, model::fidelity::LiveShadow* shadow = nullptr);

  const ExecutorInfo& info() const override { return info_; }
  double AttendedKeys(int64_t position, model::NumericsClass numerics) const override;
  absl::Status Forward(const model::ModelInput& input, model::ModelOutput* output) override;
  std::vector<float> Embed(std::span<const float> pooled) override;
  std::vector<float> Classify(std::span<const float> pooled) override;
  absl::Status CopyPages(std::span<const model::PageCopy> copies) override;
  void Decommit(int32_t group, std::span<const int32_t> pages) override;
  bool healthy() const override { return model_->backend().healthy(); }

 private:
  struct WeightedPattern {
    const model::SparsePattern* pattern;
    double weight;  // share of all layers' query heads
  };

  model::Model* model_;
  model::fidelity::LiveShadow* shadow_;
  ExecutorInfo info_;
  std::vector<WeightedPattern> patterns_;
};

}  // namespace longstride::engine

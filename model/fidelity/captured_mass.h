// How much of the baseline's attention a plan keeps: the share of the softmax mass of the
// baseline's own queries that lies on keys which the plan reads too. Computed plainly, in float32,
// from the queries and the cached keys of a few sampled rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/attention_observer.h"

namespace longstride::model::fidelity {

// Keys read per layer, as the kernels counted them; hands each call on to `next`.
class LayerCounters : public AttentionObserver {
 public:
  struct Layer {
    int64_t keys_total = 0;    // (row, head, key) triples that dense causal attention reads
    int64_t keys_visible = 0;  // that the plan allows
    int64_t keys_read = 0;     // whose score was computed
  };

  explicit LayerCounters(size_t num_layers, AttentionObserver* next = nullptr)
      : layers_(num_layers), next_(next) {}
  void OnAttention(const AttentionCall& call) override;
  const std::vector<Layer>& layers() const { return layers_; }

 private:
  std::vector<Layer> layers_;
  AttentionObserver* next_;
};

// Watches the baseline. On a layer that the baseline itself limits, the mass is that of the keys it
// reads there (the others are not in its cache); attention sinks that are no keys do not count.
class CapturedMass : public AttentionObserver {
 public:
  struct Cell {
    std::vector<double> window_sums;  // of the shares of the window's sampled rows
    double least = 1;                 // of all sampled rows
  };

  // Both plans of one model; they must outlive this.
  CapturedMass(const SparsityPlan* baseline, std::vector<const SparsityPlan*> plans);

  // Rows at these ascending positions of the window that follows are measured.
  void BeginWindow(std::vector<int32_t> positions);
  void OnAttention(const AttentionCall& call) override;

  // False where queries and keys lie on a device, a plan chooses keys by queries, or a query is
  // rotated in several ways (dual chunk attention): nothing was measured.
  bool available() const { return available_; }
  int64_t rows_per_head() const;  // sampled
  const std::vector<double>& window_rows() const { return window_rows_; }
  int32_t num_layers() const { return static_cast<int32_t>(baseline_.size()); }
  int32_t num_heads(int32_t layer) const {
    return static_cast<int32_t>(baseline_[static_cast<size_t>(layer)].size());
  }
  const Cell& cell(size_t plan, int32_t layer, int32_t head) const {
    return cells_[plan][static_cast<size_t>(layer)][static_cast<size_t>(head)];
  }
  // Mean share of a layer's heads under a plan; 1 where nothing was measured.
  double LayerMean(size_t plan, int32_t layer) const;

 private:
  using HeadPatterns = std::vector<std::vector<const SparsePattern*>>;  // [layer][head]
  static HeadPatterns PatternsOf(const SparsityPlan& plan);
  void MeasureRow(const AttentionCall& call, int64_t row, int32_t sequence, int64_t position);
  void AddShares(int32_t layer, int32_t head, int64_t position, const float* scores);

  HeadPatterns baseline_;
  std::vector<HeadPatterns> plans_;
  std::vector<std::vector<std::vector<Cell>>> cells_;  // [plan][layer][head]
  std::vector<int32_t> positions_;
  std::vector<double> window_rows_;  // sampled positions of each window
  std::vector<float> key_, scores_;
  std::vector<double> weights_;
  bool available_ = true;
};

}  // namespace longstride::model::fidelity

#include "model/fidelity/captured_mass.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "config/base/check.h"
#include "kernels/quant.h"

namespace longstride::model::fidelity {
namespace {

using kernels::KvDType;

// One key of one head of a page as float32.
void DecodeKey(const kernels::PagedKv& cache, int32_t page, int32_t head, int64_t slot,
               float* out) {
  const char* base =
      static_cast<const char*>(cache.k) + page * cache.page_stride + head * cache.head_stride;
  const int32_t n = cache.head_dim;
  switch (cache.dtype) {
    case KvDType::kF32: {
      const float* row = reinterpret_cast<const float*>(base) + slot * n;
      std::copy(row, row + n, out);
      break;
    }
    case KvDType::kF16: {
      const uint16_t* row = reinterpret_cast<const uint16_t*>(base) + slot * n;
      for (int32_t d = 0; d < n; ++d) out[d] = kernels::HalfToFloat(row[d]);
      break;
    }
    case KvDType::kBF16: {
      const uint16_t* row = reinterpret_cast<const uint16_t*>(base) + slot * n;
      for (int32_t d = 0; d < n; ++d) out[d] = kernels::Bfloat16ToFloat(row[d]);
      break;
    }
    case KvDType::kFp8: {
      const uint8_t* row = reinterpret_cast<const uint8_t*>(base) + slot * n;
      for (int32_t d = 0; d < n; ++d) out[d] = kernels::E4m3ToFloat(row[d]) * cache.k_scale;
      break;
    }
    case KvDType::kQ8: {
      const int8_t* row = reinterpret_cast<const int8_t*>(base) + slot * n;
      const float* scales =
          reinterpret_cast<const float*>(base + int64_t{kernels::kPageTokens} * n);
      for (int32_t d = 0; d < n; ++d) out[d] = static_cast<float>(row[d]) * scales[slot];
      break;
    }
  }
}

float Dot(const float* a, const float* b, int32_t n) {
  constexpr int32_t kLanes = 8;
  float sums[kLanes] = {};
  int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int32_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  float sum = 0;
  for (; i < n; ++i) sum += a[i] * b[i];
  return std::accumulate(sums, sums + kLanes, sum);
}

}  // namespace

void LayerCounters::OnAttention(const AttentionCall& call) {
  Layer& layer = layers_[static_cast<size_t>(call.layer)];
  layer.keys_total += call.keys_total;
  layer.keys_visible += call.counters.keys_visible;
  layer.keys_read += call.counters.keys_read;
  if (next_ != nullptr) next_->OnAttention(call);
}

CapturedMass::CapturedMass(const SparsityPlan* baseline, std::vector<const SparsityPlan*> plans)
    : baseline_(PatternsOf(*baseline)), available_(baseline->one_softmax()) {
  for (const SparsityPlan* plan : plans) {
    // Which keys a query-dependent pattern reads is not known from positions alone.
    if (!plan->one_numerics_class) available_ = false;
    plans_.push_back(PatternsOf(*plan));
    std::vector<std::vector<Cell>>& cells = cells_.emplace_back();
    for (size_t l = 0; l < baseline_.size(); ++l) {
      LS_CHECK_EQ(plans_.back()[l].size(), baseline_[l].size());
      cells.emplace_back(baseline_[l].size());
    }
  }
}

CapturedMass::HeadPatterns CapturedMass::PatternsOf(const SparsityPlan& plan) {
  HeadPatterns out;
  for (const LayerPlan& layer : plan.layers) {
    std::vector<const SparsePattern*>& heads = out.emplace_back();
    for (const HeadSegment& segment : layer.segments) {
      heads.insert(heads.end(), static_cast<size_t>(segment.query.count),
                   plan.patterns[static_cast<size_t>(segment.pattern)].get());
    }
  }
  return out;
}

void CapturedMass::BeginWindow(std::vector<int32_t> positions) {
  LS_CHECK(std::is_sorted(positions.begin(), positions.end()));
  positions_ = std::move(positions);
  window_rows_.push_back(static_cast<double>(positions_.size()));
  for (auto& layers : cells_) {
    for (auto& heads : layers) {
      for (Cell& cell : heads) cell.window_sums.push_back(0);
    }
  }
}

int64_t CapturedMass::rows_per_head() const {
  return static_cast<int64_t>(std::accumulate(window_rows_.begin(), window_rows_.end(), 0.0));
}

double CapturedMass::LayerMean(size_t plan, int32_t layer) const {
  const int64_t rows = rows_per_head() * num_heads(layer);
  if (rows == 0 || !available_) return 1;
  double sum = 0;
  for (const Cell& cell : cells_[plan][static_cast<size_t>(layer)]) {
    sum += std::accumulate(cell.window_sums.begin(), cell.window_sums.end(), 0.0);
  }
  return sum / static_cast<double>(rows);
}

void CapturedMass::OnAttention(const AttentionCall& call) {
  if (!available_) return;
  if (call.params->q.device != kernels::Device::kCpu) {
    available_ = false;
    return;
  }
  for (const QueryRun& run : call.runs) {
    const int64_t end = run.first_position + run.num_rows;
    auto at = std::lower_bound(positions_.begin(), positions_.end(), run.first_position);
    for (; at != positions_.end() && *at < end; ++at) {
      MeasureRow(call, run.row_begin + (*at - run.first_position), run.sequence, *at);
    }
  }
}

void CapturedMass::MeasureRow(const AttentionCall& call, int64_t row, int32_t sequence,
                              int64_t position) {
  const kernels::AttentionParams& p = *call.params;
  const HeadSegment& segment = *call.segment;
  const int32_t* pages = p.page_table.pages + sequence * p.page_table.stride;
  const int32_t per_kv = segment.query.count / segment.kv.count;
  const int64_t keys = position + 1;
  key_.resize(static_cast<size_t>(p.cache.head_dim));
  scores_.resize(static_cast<size_t>(per_kv * keys));
  for (int32_t kv = 0; kv < segment.kv.count; ++kv) {
    for (int64_t j = 0; j < keys; ++j) {
      const int32_t page = pages[j / kernels::kPageTokens];
      if (page == kernels::kNoPage) continue;  // no pattern sees it: a score is never asked for
      DecodeKey(p.cache, page, kv, j % kernels::kPageTokens, key_.data());
      for (int32_t h = 0; h < per_kv; ++h) {
        const float* q =
            p.q.ptr<float>() + row * p.q.strides[0] + (kv * per_kv + h) * p.q.strides[1];
        float score = p.scale * Dot(q, key_.data(), p.cache.head_dim);
        if (p.softcap > 0) score = p.softcap * std::tanh(score / p.softcap);
        scores_[static_cast<size_t>(h * keys + j)] = score;
      }
    }
    for (int32_t h = 0; h < per_kv; ++h) {
      AddShares(call.layer, segment.query.first + kv * per_kv + h, position,
                scores_.data() + h * keys);
    }
  }
}

void CapturedMass::AddShares(int32_t layer, int32_t head, int64_t position, const float* scores) {
  const auto l = static_cast<size_t>(layer);
  const auto h = static_cast<size_t>(head);
  const SparsePattern& base = *baseline_[l][h];
  float max = -std::numeric_limits<float>::infinity();
  weights_.assign(static_cast<size_t>(position + 1), 0);
  for (int64_t j = 0; j <= position; ++j) {
    if (base.Visible(head, position, j)) max = std::max(max, scores[j]);
  }
  double total = 0;
  for (int64_t j = 0; j <= position; ++j) {
    if (!base.Visible(head, position, j)) continue;
    weights_[static_cast<size_t>(j)] = std::exp(static_cast<double>(scores[j] - max));
    total += weights_[static_cast<size_t>(j)];
  }
  for (size_t plan = 0; plan < plans_.size(); ++plan) {
    const SparsePattern& pattern = *plans_[plan][l][h];
    double kept = 0;
    for (int64_t j = 0; j <= position; ++j) {
      const double weight = weights_[static_cast<size_t>(j)];
      if (weight > 0 && pattern.Visible(head, position, j)) kept += weight;
    }
    Cell& cell = cells_[plan][l][h];
    cell.window_sums.back() += kept / total;
    cell.least = std::min(cell.least, kept / total);
  }
}

}  // namespace longstride::model::fidelity

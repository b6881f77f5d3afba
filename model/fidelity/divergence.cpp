#include "model/fidelity/divergence.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "config/base/check.h"
#include "model/sampler_kernels.h"

namespace longstride::model::fidelity {

RowComparer::RowComparer(int32_t vocab_size) : vocab_size_(vocab_size) {
  LS_CHECK_GT(vocab_size, 0);
  const auto blocks = static_cast<size_t>((vocab_size - 1) / sampling::kBlock + 1);
  maxima_.resize(blocks);
  sums_.resize(blocks);
}

RowSummary RowComparer::Summarize(const float* logits) {
  sampling::BlockMaxima(logits, vocab_size_, maxima_.data());
  const auto block = std::max_element(maxima_.begin(), maxima_.end());  // the first of equals
  RowSummary row{.max = *block};
  const auto begin = static_cast<int32_t>(block - maxima_.begin()) * sampling::kBlock;
  const int32_t end = std::min(vocab_size_, begin + sampling::kBlock);
  row.top = static_cast<int32_t>(std::find(logits + begin, logits + end, row.max) - logits);
  sampling::BlockExpSums(logits, vocab_size_, row.max, 1.0f, sums_.data());
  const double sum = std::accumulate(sums_.begin(), sums_.end(), 0.0);
  row.log_sum_exp = static_cast<double>(row.max) + std::log(sum);
  return row;
}

double RowComparer::Kl(const float* p, const RowSummary& p_row, const float* q,
                       const RowSummary& q_row) {
  sampling::BlockExpDifferences(p, q, vocab_size_, p_row.max, sums_.data());
  const double sum = std::accumulate(sums_.begin(), sums_.end(), 0.0);
  const double weight = std::exp(p_row.log_sum_exp - static_cast<double>(p_row.max));
  return std::max(0.0, sum / weight - (p_row.log_sum_exp - q_row.log_sum_exp));
}

PositionDivergence RowComparer::Compare(const float* base, const RowSummary& base_row,
                                        const float* other, int32_t next_token, int32_t position) {
  const RowSummary other_row = Summarize(other);
  return {.position = position,
          .kl = static_cast<float>(Kl(base, base_row, other, other_row)),
          .base_nll = static_cast<float>(-base_row.LogProbability(base[next_token])),
          .other_nll = static_cast<float>(-other_row.LogProbability(other[next_token])),
          .same_top = base_row.top == other_row.top};
}

}  // namespace longstride::model::fidelity

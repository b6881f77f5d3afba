// What the positions of a comparison say together: overall and by position.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/fidelity/divergence.h"
#include "model/fidelity/statistics.h"

namespace longstride::model::fidelity {

struct DivergenceSummary {
  int64_t positions = 0;
  Estimate kl;        // mean KL(baseline || other), nats
  Estimate same_top;  // share of positions with the same likeliest token
  Estimate base_perplexity, other_perplexity;
  Estimate perplexity_ratio;  // other / baseline, from the paired difference of log-likelihoods
  double kl_median = 0, kl_p99 = 0, kl_p999 = 0, kl_max = 0;
};

struct PositionBucket {
  int32_t begin = 0;  // positions [begin, end); powers of two
  int32_t end = 0;
  DivergenceSummary summary;
};

// Units of the intervals are windows.
DivergenceSummary SummarizeDivergence(std::span<const std::vector<PositionDivergence>> windows,
                                      const BootstrapOptions& options);
// [0, 64), [64, 128), [128, 256), … as far as there are positions.
std::vector<PositionBucket> SummarizeByPosition(
    std::span<const std::vector<PositionDivergence>> windows, const BootstrapOptions& options);

}  // namespace longstride::model::fidelity

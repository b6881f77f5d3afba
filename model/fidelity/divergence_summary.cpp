#include "model/fidelity/divergence_summary.h"

#include <algorithm>
#include <cmath>

namespace longstride::model::fidelity {
namespace {

constexpr int32_t kFirstBucket = 64;

// Of the positions [begin, end) of each window; windows without any are no units.
DivergenceSummary Summarize(std::span<const std::vector<PositionDivergence>> windows, int32_t begin,
                            int32_t end, const BootstrapOptions& options) {
  std::vector<double> count, kl, same, base, other, change, all_kl;
  for (const auto& window : windows) {
    double n = 0, kl_sum = 0, same_sum = 0, base_sum = 0, other_sum = 0;
    for (const PositionDivergence& p : window) {
      if (p.position < begin || p.position >= end) continue;
      n += 1;
      kl_sum += static_cast<double>(p.kl);
      same_sum += p.same_top ? 1 : 0;
      base_sum += static_cast<double>(p.base_nll);
      other_sum += static_cast<double>(p.other_nll);
      all_kl.push_back(static_cast<double>(p.kl));
    }
    if (n == 0) continue;
    count.push_back(n);
    kl.push_back(kl_sum);
    same.push_back(same_sum);
    base.push_back(base_sum);
    other.push_back(other_sum);
    change.push_back(other_sum - base_sum);
  }
  const auto exponential = [](double x) { return std::exp(x); };
  DivergenceSummary out{.positions = static_cast<int64_t>(all_kl.size())};
  out.kl = BootstrapRatio(kl, count, options);
  out.same_top = BootstrapRatio(same, count, options);
  out.base_perplexity = Transform(BootstrapRatio(base, count, options), exponential);
  out.other_perplexity = Transform(BootstrapRatio(other, count, options), exponential);
  out.perplexity_ratio = Transform(BootstrapRatio(change, count, options), exponential);
  out.kl_median = Quantile(&all_kl, 0.5);
  out.kl_p99 = Quantile(&all_kl, 0.99);
  out.kl_p999 = Quantile(&all_kl, 0.999);
  out.kl_max = Quantile(&all_kl, 1);
  return out;
}

}  // namespace

DivergenceSummary SummarizeDivergence(std::span<const std::vector<PositionDivergence>> windows,
                                      const BootstrapOptions& options) {
  return Summarize(windows, 0, std::numeric_limits<int32_t>::max(), options);
}

std::vector<PositionBucket> SummarizeByPosition(
    std::span<const std::vector<PositionDivergence>> windows, const BootstrapOptions& options) {
  int32_t last = -1;
  for (const auto& window : windows) {
    for (const PositionDivergence& p : window) last = std::max(last, p.position);
  }
  std::vector<PositionBucket> out;
  int64_t end = kFirstBucket;
  for (int64_t begin = 0; begin <= last; begin = end, end *= 2) {
    const auto from = static_cast<int32_t>(begin);
    const auto to = static_cast<int32_t>(std::min<int64_t>(end, int64_t{last} + 1));
    out.push_back({from, to, Summarize(windows, from, to, options)});
  }
  return out;
}

}  // namespace longstride::model::fidelity

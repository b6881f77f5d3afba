#include "model/fidelity/statistics.h"

#include <algorithm>
#include <cmath>

#include "config/base/check.h"

namespace longstride::model::fidelity {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): the same sequence with every standard library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // Uniform in [0, n): the high word of a 64x64-bit product (bias below n / 2^64).
  uint64_t Below(uint64_t n) {
    state_ += 0x9e3779b97f4a7c15ULL;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    z ^= z >> 31;
    return static_cast<uint64_t>((static_cast<__uint128_t>(z) * n) >> 64);
  }

 private:
  uint64_t state_;
};

double Ratio(double numerator, double denominator) {
  return denominator > 0 ? numerator / denominator : 0;
}

}  // namespace

Estimate BootstrapRatio(std::span<const double> numerators, std::span<const double> denominators,
                        const BootstrapOptions& options) {
  LS_CHECK_EQ(numerators.size(), denominators.size());
  const size_t n = numerators.size();
  double numerator = 0;
  double denominator = 0;
  for (size_t i = 0; i < n; ++i) {
    numerator += numerators[i];
    denominator += denominators[i];
  }
  Estimate out{.value = Ratio(numerator, denominator), .units = static_cast<int64_t>(n)};
  if (n < 2) return out;
  Random random(options.seed);
  std::vector<double> ratios(static_cast<size_t>(options.resamples));
  for (double& ratio : ratios) {
    double top = 0;
    double bottom = 0;
    for (size_t i = 0; i < n; ++i) {
      const auto unit = static_cast<size_t>(random.Below(n));
      top += numerators[unit];
      bottom += denominators[unit];
    }
    ratio = Ratio(top, bottom);
  }
  const double tail = (1 - options.level) / 2;
  const double low = Quantile(&ratios, tail);
  out.interval = {low, Quantile(&ratios, 1 - tail)};
  return out;
}

Estimate Transform(const Estimate& estimate, double (*increasing)(double)) {
  Estimate out = estimate;
  out.value = increasing(estimate.value);
  if (estimate.interval) {
    out.interval = {increasing(estimate.interval->low), increasing(estimate.interval->high)};
  }
  return out;
}

double McNemarExact(int64_t only_first, int64_t only_second) {
  const int64_t n = only_first + only_second;
  const int64_t fewer = std::min(only_first, only_second);
  if (n == 0) return 1;
  // log C(n, k) - n log 2, summed from the tail.
  const double log_total = static_cast<double>(n) * std::log(2.0);
  double tail = 0;
  for (int64_t k = 0; k <= fewer; ++k) {
    const double log_choose = std::lgamma(static_cast<double>(n) + 1) -
                              std::lgamma(static_cast<double>(k) + 1) -
                              std::lgamma(static_cast<double>(n - k) + 1);
    tail += std::exp(log_choose - log_total);
  }
  return std::min(1.0, 2 * tail);
}

double Quantile(std::vector<double>* values, double q) {
  if (values->empty()) return 0;
  const double at = q * static_cast<double>(values->size() - 1);
  const auto below = static_cast<size_t>(std::floor(at));
  const auto nth = values->begin() + static_cast<std::ptrdiff_t>(below);
  std::nth_element(values->begin(), nth, values->end());
  const double low = *nth;
  if (below + 1 == values->size()) return low;
  const double high = *std::min_element(nth + 1, values->end());
  return low + (at - static_cast<double>(below)) * (high - low);
}

}  // namespace longstride::model::fidelity

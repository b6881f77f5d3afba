// Estimates with confidence intervals, for comparing two ways of serving a model on the same text.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace longstride::model::fidelity {

struct Interval {
  double low = 0;
  double high = 0;
};

struct Estimate {
  double value = 0;
  std::optional<Interval> interval;  // 95%; absent where fewer than two units were observed
  int64_t units = 0;                 // resampled units (windows, contexts) behind it
};

struct BootstrapOptions {
  uint64_t seed = 1;
  int32_t resamples = 2000;
  double level = 0.95;
};

// sum(numerators) / sum(denominators) with the percentile interval of the bootstrap that resamples
// units (one numerator and denominator each) with replacement: positions of one unit depend on each
// other, units are taken as independent. Denominators are not negative; the value is 0 where all
// are 0. Equal inputs and seed give equal bits.
Estimate BootstrapRatio(std::span<const double> numerators, std::span<const double> denominators,
                        const BootstrapOptions& options);

// Applies an increasing function to value and interval (perplexity: exp of a mean).
Estimate Transform(const Estimate& estimate, double (*increasing)(double));

// Two-sided exact McNemar test: the probability, if neither way is better, of discordant pairs at
// least as one-sided as `only_first` against `only_second` (binomial with p = 1/2). 1 where there
// are none.
double McNemarExact(int64_t only_first, int64_t only_second);

// The value below which a share `q` of the values lies, interpolated linearly between order
// statistics (R's type 7); 0 for no values. Reorders `values`.
double Quantile(std::vector<double>* values, double q);

}  // namespace longstride::model::fidelity

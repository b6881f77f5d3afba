// How long a step takes, learned from the steps that ran.
#pragma once

#include <array>
#include <cstdint>

namespace longstride::engine {

// What a step's time is made of.
struct StepWork {
  double tokens = 0;
  double keys = 0;    // attended keys summed over the tokens, mean over layers
  double logits = 0;  // rows of logits

  StepWork& operator+=(const StepWork& other) {
    tokens += other.tokens;
    keys += other.keys;
    logits += other.logits;
    return *this;
  }
};

struct StepCost {
  double seconds_per_step = 2e-3;
  double seconds_per_token = 1e-3;
  double seconds_per_key = 2e-7;
  double seconds_per_logit_row = 2e-4;
  // Measured over predicted time of late steps that contained prefill: other load on the machine.
  double scale = 1.0;
  // Measured over predicted time that 99% of the steps with prefill do not exceed, by how much the
  // last ones differed from what was predicted.
  double late = 1.08;

  double Marginal(const StepWork& work) const {
    return scale * (seconds_per_token * work.tokens + seconds_per_key * work.keys +
                    seconds_per_logit_row * work.logits);
  }
  double Step(const StepWork& work) const { return scale * seconds_per_step + Marginal(work); }
};

// Weighted least squares of time over {1, tokens, keys, logits}, non-negative, with exponential
// forgetting. Steps are weighted by 1 / time^2 (relative errors); steps with and without prefill
// forget each on their own count, so that an hour of decoding does not wash out what prefill costs.
// Deterministic: depends only on what it was told.
class CostModel {
 public:
  CostModel();
  const StepCost& cost() const { return cost_; }
  void Observe(const StepWork& work, bool has_prefill, double seconds);

 private:
  static constexpr int kTerms = 4;
  struct Sums {
    std::array<std::array<double, kTerms>, kTerms> xx{};
    std::array<double, kTerms> xy{};
  };
  void Solve();

  StepCost cost_;
  std::array<double, kTerms> prior_{};
  Sums decode_;
  Sums prefill_;
  double squared_error_;  // relative, of steps with prefill: mean with forgetting
};

}  // namespace longstride::engine

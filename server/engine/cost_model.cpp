#include "server/engine/cost_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace longstride::engine {
namespace {

constexpr double kForget = 0.97;        // about the last 33 steps of each kind count
constexpr double kPriorWeight = 1e-6;   // of a relative error in each prior coefficient
constexpr double kOutlier = 5.0;        // a step is believed to take at most this times the expected
constexpr double kScaleGain = 0.25;
constexpr double kLateDeviations =
    2.33;                           // 99% of normal errors are below so many standard deviations
constexpr double kMostError = 0.5;  // of one step, relative: a stall is no spread

// Gaussian elimination with row pivoting of [A | b]; A is positive definite.
template <size_t N>
std::array<double, N> SolveLinear(std::array<std::array<double, N + 1>, N> m) {
  for (size_t col = 0; col < N; ++col) {
    size_t pivot = col;
    for (size_t row = col + 1; row < N; ++row) {
      if (std::abs(m[row][col]) > std::abs(m[pivot][col])) pivot = row;
    }
    std::swap(m[col], m[pivot]);
    for (size_t row = 0; row < N; ++row) {
      if (row == col) continue;
      const double factor = m[row][col] / m[col][col];
      for (size_t k = col; k <= N; ++k) m[row][k] -= factor * m[col][k];
    }
  }
  std::array<double, N> x{};
  for (size_t i = 0; i < N; ++i) x[i] = m[i][N] / m[i][i];
  return x;
}

}  // namespace

CostModel::CostModel() {
  prior_ = {cost_.seconds_per_step, cost_.seconds_per_token, cost_.seconds_per_key,
            cost_.seconds_per_logit_row};
  squared_error_ = std::pow((cost_.late - 1.0) / kLateDeviations, 2);
}

void CostModel::Observe(const StepWork& work, bool has_prefill, double seconds) {
  if (!(seconds > 0) || !std::isfinite(seconds)) return;
  const double raw_prediction = cost_.Step(work) / cost_.scale;
  const double ratio = seconds / raw_prediction;
  if (has_prefill) {
    const double error = std::clamp(seconds / cost_.Step(work) - 1.0, -kMostError, kMostError);
    squared_error_ += (1.0 - kForget) * (error * error - squared_error_);
    cost_.late = 1.0 + kLateDeviations * std::sqrt(squared_error_);
    const double target = std::clamp(ratio, 1.0 / kOutlier, kOutlier);
    cost_.scale = std::clamp(cost_.scale + kScaleGain * (target - cost_.scale), 0.5, 4.0);
  }
  // One stall (a page fault storm, a suspended machine) must not spoil the coefficients; a lasting
  // change gets through, because the expectation follows.
  const double y = std::min(seconds, kOutlier * std::max(raw_prediction, 1e-4));
  const std::array<double, kTerms> x = {1.0, work.tokens, work.keys, work.logits};
  const double weight = 1.0 / (y * y);
  Sums& sums = has_prefill ? prefill_ : decode_;
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) {
      sums.xx[i][j] = kForget * sums.xx[i][j] + weight * x[i] * x[j];
    }
    sums.xy[i] = kForget * sums.xy[i] + weight * x[i] * y;
  }
  Solve();
}

// The normal equations in units of the prior, with a weak pull towards it (terms that were never seen
// stay there). Coefficients that come out negative are held at zero, the worst first, and the rest is
// solved again.
void CostModel::Solve() {
  std::array<bool, kTerms> held{};
  std::array<double, kTerms> w{};
  for (int round = 0; round <= kTerms; ++round) {
    std::array<std::array<double, kTerms + 1>, kTerms> m{};
    for (int i = 0; i < kTerms; ++i) {
      if (held[i]) {
        m[i][i] = 1.0;
        continue;
      }
      for (int j = 0; j < kTerms; ++j) {
        if (!held[j]) m[i][j] = (prefill_.xx[i][j] + decode_.xx[i][j]) * prior_[i] * prior_[j];
      }
      m[i][i] += kPriorWeight;
      m[i][kTerms] = (prefill_.xy[i] + decode_.xy[i]) * prior_[i] + kPriorWeight;
    }
    w = SolveLinear(m);
    const auto worst = std::min_element(w.begin(), w.end());
    if (*worst >= 0) break;
    held[static_cast<size_t>(worst - w.begin())] = true;
  }
  for (int i = 0; i < kTerms; ++i) w[i] = std::max(0.0, w[i]) * prior_[i];
  cost_.seconds_per_step = w[0];
  cost_.seconds_per_token = w[1];
  cost_.seconds_per_key = w[2];
  cost_.seconds_per_logit_row = w[3];
}

}  // namespace longstride::engine

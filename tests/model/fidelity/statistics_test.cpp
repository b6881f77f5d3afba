#include "model/fidelity/statistics.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "gtest/gtest.h"
#include "tests/testing/random_seed.h"

namespace longstride::model::fidelity {
namespace {

TEST(StatisticsTest, RatioIsSumOverSum) {
  const Estimate e = BootstrapRatio(std::vector<double>{1, 2, 3}, std::vector<double>{2, 2, 8}, {});
  EXPECT_DOUBLE_EQ(e.value, 0.5);
  EXPECT_EQ(e.units, 3);
  ASSERT_TRUE(e.interval.has_value());
  // Every resample's ratio lies between the least and the largest unit's.
  EXPECT_GE(e.interval->low, 3.0 / 8);
  EXPECT_LE(e.interval->high, 1.0);
}

TEST(StatisticsTest, OneUnitHasNoIntervalAndNoneIsZero) {
  EXPECT_FALSE(BootstrapRatio(std::vector<double>{1}, std::vector<double>{4}, {}).interval);
  EXPECT_EQ(BootstrapRatio({}, {}, {}).value, 0);
  EXPECT_EQ(BootstrapRatio(std::vector<double>{0}, std::vector<double>{0}, {}).value, 0);
}

TEST(StatisticsTest, EqualUnitsGiveAPoint) {
  const std::vector<double> sevens(9, 7.0), twos(9, 2.0);
  const Estimate e = BootstrapRatio(sevens, twos, {});
  EXPECT_DOUBLE_EQ(e.interval->low, 3.5);
  EXPECT_DOUBLE_EQ(e.interval->high, 3.5);
}

TEST(StatisticsTest, SeedDecides) {
  const std::vector<double> values = {1, 5, 2, 8, 3, 9, 4};
  const std::vector<double> ones(values.size(), 1.0);
  const Estimate a = BootstrapRatio(values, ones, {.seed = 7});
  const Estimate b = BootstrapRatio(values, ones, {.seed = 7});
  const Estimate c = BootstrapRatio(values, ones, {.seed = 8});
  EXPECT_EQ(a.interval->low, b.interval->low);
  EXPECT_EQ(a.interval->high, b.interval->high);
  EXPECT_TRUE(a.interval->low != c.interval->low || a.interval->high != c.interval->high);
}

// The bootstrap of a mean has the standard error s/sqrt(n) (with the population's s), and for many
// units its interval is the normal one.
TEST(StatisticsTest, IntervalOfAMeanIsTheNormalOne) {
  std::mt19937 random(testing::RandomSeed());
  std::normal_distribution<double> normal(3, 2);
  std::vector<double> values(400);
  for (double& v : values) v = normal(random);
  const std::vector<double> ones(values.size(), 1.0);
  const Estimate e = BootstrapRatio(values, ones, {.seed = random(), .resamples = 4000});
  double squares = 0;
  for (const double v : values) squares += (v - e.value) * (v - e.value);
  const double error = std::sqrt(squares) / static_cast<double>(values.size());
  EXPECT_NEAR(e.interval->low, e.value - 1.96 * error, 0.15 * error);
  EXPECT_NEAR(e.interval->high, e.value + 1.96 * error, 0.15 * error);
}

TEST(StatisticsTest, TransformKeepsOrder) {
  const Estimate e = Transform({.value = 0, .interval = Interval{-1, 1}, .units = 4},
                               [](double x) { return std::exp(x); });
  EXPECT_DOUBLE_EQ(e.value, 1);
  EXPECT_DOUBLE_EQ(e.interval->low, std::exp(-1));
  EXPECT_DOUBLE_EQ(e.interval->high, std::exp(1));
}

// All 2^n outcomes of n fair coins, counted.
double McNemarByCounting(int first, int second) {
  const int n = first + second;
  const int fewer = std::min(first, second);
  int extreme = 0;
  for (int outcome = 0; outcome < 1 << n; ++outcome) {
    const int ones = __builtin_popcount(static_cast<unsigned>(outcome));
    extreme += std::min(ones, n - ones) <= fewer ? 1 : 0;
  }
  return static_cast<double>(extreme) / (1 << n);
}

TEST(StatisticsTest, McNemarMatchesCounting) {
  EXPECT_EQ(McNemarExact(0, 0), 1);
  for (int first = 0; first <= 6; ++first) {
    for (int second = 0; second <= 6; ++second) {
      if (first + second == 0) continue;
      EXPECT_NEAR(McNemarExact(first, second), McNemarByCounting(first, second), 1e-12)
          << first << " " << second;
    }
  }
  EXPECT_LT(McNemarExact(500, 400), 0.001);
}

TEST(StatisticsTest, QuantilesMatchSorting) {
  std::mt19937 random(testing::RandomSeed() + 1);
  std::vector<double> values(1 + random() % 50);
  for (double& v : values) v = static_cast<double>(random() % 1000);
  std::vector<double> sorted = values;
  std::sort(sorted.begin(), sorted.end());
  for (const double q : {0.0, 0.025, 0.5, 0.9, 1.0}) {
    const double at = q * static_cast<double>(sorted.size() - 1);
    const auto i = static_cast<size_t>(at);
    const double next = sorted[std::min(i + 1, sorted.size() - 1)];
    const double want = sorted[i] + (at - static_cast<double>(i)) * (next - sorted[i]);
    std::vector<double> copy = values;
    EXPECT_DOUBLE_EQ(Quantile(&copy, q), want) << q;
  }
}

}  // namespace
}  // namespace longstride::model::fidelity

#include "model/fidelity/divergence.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "gtest/gtest.h"
#include "model/fidelity/divergence_summary.h"
#include "tests/testing/random_seed.h"

namespace longstride::model::fidelity {
namespace {

double LogSumExp(const std::vector<float>& row) {
  const double max = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const float x : row) sum += std::exp(static_cast<double>(x) - max);
  return max + std::log(sum);
}

double NaiveKl(const std::vector<float>& p, const std::vector<float>& q) {
  const double lp = LogSumExp(p), lq = LogSumExp(q);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = static_cast<double>(p[i]) - lp;
    kl += std::exp(log_p) * (log_p - (static_cast<double>(q[i]) - lq));
  }
  return kl;
}

TEST(DivergenceTest, MatchesNaiveDoubleArithmetic) {
  std::mt19937 random(testing::RandomSeed());
  std::normal_distribution<float> normal(0, 4);
  // Sizes around the vector and block lengths of the kernels.
  for (const int32_t vocab : {1, 2, 7, 8, 9, 127, 128, 129, 1000, 32003}) {
    std::vector<float> p(static_cast<size_t>(vocab)), q(p.size());
    for (size_t i = 0; i < p.size(); ++i) {
      p[i] = normal(random);
      q[i] = p[i] + 0.2f * normal(random);
    }
    RowComparer comparer(vocab);
    const RowSummary p_row = comparer.Summarize(p.data());
    const RowSummary q_row = comparer.Summarize(q.data());
    EXPECT_EQ(p_row.top, std::max_element(p.begin(), p.end()) - p.begin());
    EXPECT_NEAR(p_row.log_sum_exp, LogSumExp(p), 1e-5);
    const double kl = NaiveKl(p, q);
    EXPECT_NEAR(comparer.Kl(p.data(), p_row, q.data(), q_row), kl, 1e-5 + 1e-4 * kl) << vocab;
    EXPECT_EQ(comparer.Kl(p.data(), p_row, p.data(), p_row), 0) << vocab;

    const auto next = static_cast<int32_t>(random() % static_cast<unsigned>(vocab));
    const PositionDivergence d = comparer.Compare(p.data(), p_row, q.data(), next, 3);
    EXPECT_EQ(d.position, 3);
    EXPECT_NEAR(static_cast<double>(d.base_nll),
                LogSumExp(p) - static_cast<double>(p[static_cast<size_t>(next)]), 1e-4);
    EXPECT_NEAR(static_cast<double>(d.other_nll),
                LogSumExp(q) - static_cast<double>(q[static_cast<size_t>(next)]), 1e-4);
    EXPECT_EQ(d.same_top, p_row.top == q_row.top);
  }
}

// Two symbols: KL = p log(p / q) + (1 - p) log((1 - p) / (1 - q)).
TEST(DivergenceTest, ClosedFormOfTwoSymbols) {
  RowComparer comparer(2);
  const double p = 0.9, q = 0.6;
  const std::vector<float> a = {static_cast<float>(std::log(p)),
                                static_cast<float>(std::log(1 - p))};
  const std::vector<float> b = {static_cast<float>(std::log(q)),
                                static_cast<float>(std::log(1 - q))};
  const RowSummary a_row = comparer.Summarize(a.data());
  const RowSummary b_row = comparer.Summarize(b.data());
  EXPECT_NEAR(comparer.Kl(a.data(), a_row, b.data(), b_row),
              p * std::log(p / q) + (1 - p) * std::log((1 - p) / (1 - q)), 1e-6);
}

TEST(DivergenceTest, EqualLogitsNameTheLowestIndex) {
  RowComparer comparer(300);
  const std::vector<float> flat(300, 1.5f);
  const RowSummary row = comparer.Summarize(flat.data());
  EXPECT_EQ(row.top, 0);
  EXPECT_NEAR(row.log_sum_exp, 1.5 + std::log(300), 1e-5);
}

PositionDivergence At(int32_t position, float kl, bool same) {
  return {.position = position, .kl = kl, .base_nll = 1, .other_nll = 1.5f, .same_top = same};
}

TEST(DivergenceSummaryTest, AveragesPositionsAndSplitsBuckets) {
  const std::vector<std::vector<PositionDivergence>> windows = {
      {At(0, 0.0f, true), At(63, 1.0f, true), At(64, 2.0f, false), At(130, 8.0f, false)},
      {At(5, 3.0f, true)}};
  const DivergenceSummary all = SummarizeDivergence(windows, {});
  EXPECT_EQ(all.positions, 5);
  EXPECT_DOUBLE_EQ(all.kl.value, 14.0 / 5);
  EXPECT_DOUBLE_EQ(all.same_top.value, 3.0 / 5);
  EXPECT_DOUBLE_EQ(all.kl_median, 2);
  EXPECT_DOUBLE_EQ(all.kl_max, 8);
  EXPECT_NEAR(all.base_perplexity.value, std::exp(1), 1e-9);
  EXPECT_NEAR(all.perplexity_ratio.value, std::exp(0.5), 1e-9);

  const std::vector<PositionBucket> buckets = SummarizeByPosition(windows, {});
  ASSERT_EQ(buckets.size(), 3u);
  EXPECT_EQ(buckets[0].begin, 0);
  EXPECT_EQ(buckets[0].end, 64);
  EXPECT_EQ(buckets[0].summary.positions, 3);
  EXPECT_EQ(buckets[0].summary.kl.units, 2);
  EXPECT_EQ(buckets[1].summary.positions, 1);
  EXPECT_FALSE(buckets[1].summary.kl.interval.has_value());  // the second window is too short
  EXPECT_EQ(buckets[2].begin, 128);
  EXPECT_EQ(buckets[2].end, 131);
  EXPECT_DOUBLE_EQ(buckets[2].summary.kl.value, 8);
}

}  // namespace
}  // namespace longstride::model::fidelity

// The sampler against its definition, written out naively.
#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/op_params.h"
#include "model/sampler_kernels.h"

namespace longstride::model {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class SamplerTest : public ::testing::Test {
 protected:
  SamplerTest() : seed_(std::random_device()()), random_(seed_) {}

  float Normal() { return std::normal_distribution<float>()(random_); }
  int32_t Below(int32_t n) { return static_cast<int32_t>(random_() % static_cast<unsigned>(n)); }

  unsigned seed_;
  std::mt19937 random_;
  ::testing::ScopedTrace trace_{__FILE__, __LINE__, ::testing::Message() << "seed " << seed_};
};

TEST_F(SamplerTest, WeightsAreExponentialsAndBlocksTheirSums) {
  EXPECT_EQ(sampling::Weight(3.5f, 3.5f, 0.7f), uint64_t{1} << kernels::kWeightBits);
  EXPECT_EQ(sampling::Weight(-kInfinity, 3.5f, 0.7f), 0u);
  for (const int32_t n : {1, 7, 127, 128, 129, 1000}) {
    std::vector<float> logits(static_cast<size_t>(n));
    for (float& x : logits) x = Below(20) == 0 ? -kInfinity : 5 * Normal();
    const float max = std::max(0.0f, *std::max_element(logits.begin(), logits.end()));
    const float scale = 0.1f + 3 * std::abs(Normal());
    std::vector<uint64_t> sums(static_cast<size_t>((n + sampling::kBlock - 1) / sampling::kBlock));
    sampling::BlockWeights(logits.data(), n, max, scale, sums.data());
    std::vector<uint64_t> want(sums.size(), 0);
    for (int32_t i = 0; i < n; ++i) {
      const float x = logits[static_cast<size_t>(i)];
      const uint64_t weight = sampling::Weight(x, max, scale);
      want[static_cast<size_t>(i / sampling::kBlock)] += weight;
      const double exact = std::exp(static_cast<double>((x - max) * scale));
      EXPECT_NEAR(std::ldexp(static_cast<double>(weight), -kernels::kWeightBits), exact,
                  exact * 3e-7 + 1e-13);
    }
    EXPECT_EQ(sums, want);
  }
}

// What is kept after top-k, top-p and min-p, from the definition.
std::map<int32_t, double> Kept(const std::vector<float>& logits, const SamplingParams& p) {
  std::vector<int32_t> order;
  for (int32_t i = 0; i < static_cast<int32_t>(logits.size()); ++i) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  const double max = logits[static_cast<size_t>(order[0])];
  const auto weight = [&](int32_t i) {
    return std::exp((static_cast<double>(logits[static_cast<size_t>(i)]) - max) / p.temperature);
  };
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < order.size()) {
    order.resize(static_cast<size_t>(p.top_k));
  }
  double mass = 0, taken = 0;
  for (const int32_t i : order) mass += weight(i);
  std::map<int32_t, double> kept;
  for (const int32_t i : order) {
    if (taken >= p.top_p * mass) break;
    taken += weight(i);
    if (weight(i) >= p.min_p) kept[i] = weight(i);
  }
  return kept;
}

TEST_F(SamplerTest, DrawsWhatTheFiltersKeepInProportion) {
  Sampler sampler;
  for (int round = 0; round < 20; ++round) {
    std::vector<float> logits(static_cast<size_t>(2 + Below(300)));
    for (float& x : logits) x = 2 * Normal();
    SamplingParams p{.temperature = 0.3f + std::abs(Normal())};
    if (Below(2) == 0) p.top_k = 1 + Below(40);
    if (Below(2) == 0) p.top_p = 0.05f + 0.9f * static_cast<float>(Below(100)) / 100;
    if (Below(2) == 0) p.min_p = 0.3f * static_cast<float>(Below(100)) / 100;
    p.seed = random_();
    std::map<int32_t, double> kept = Kept(logits, p);
    double mass = 0;
    for (const auto& [token, weight] : kept) mass += weight;
    std::map<int32_t, int> drawn;
    constexpr int kDraws = 3000;
    std::vector<int32_t> generated;
    for (int i = 0; i < kDraws; ++i) {
      std::vector<float> row = logits;
      const SampledToken token = sampler.Sample(row, {.params = &p, .generated = generated});
      ASSERT_TRUE(token.logits_valid);
      ++drawn[token.token];
      generated.push_back(0);
    }
    for (const auto& [token, count] : drawn) {
      ASSERT_TRUE(kept.contains(token)) << token;
      const double share = kept[token] / mass;
      EXPECT_NEAR(count, kDraws * share, 6 * std::sqrt(kDraws * share * (1 - share)) + 6);
    }
  }
}

TEST_F(SamplerTest, LogprobsAreOfTheUntouchedLogits) {
  Sampler sampler;
  std::vector<float> logits(500);
  for (float& x : logits) x = 3 * Normal();
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  const SamplingParams p{.temperature = 0.0f, .logit_bias = {{17, 100.0f}}};
  std::vector<float> row = logits;
  const SampledToken token = sampler.Sample(row, {.params = &p, .num_logprobs = 3});
  EXPECT_EQ(token.token, 17);
  EXPECT_NEAR(token.logprob, logits[17] - std::log(sum), 1e-5);
  ASSERT_EQ(token.top.size(), 3u);
  EXPECT_NEAR(token.top[0].logprob, *std::max_element(logits.begin(), logits.end()) - std::log(sum),
              1e-5);
}

TEST_F(SamplerTest, SaysWhereLogitsAreNotNumbers) {
  Sampler sampler;
  const SamplingParams p;
  for (const float bad : {NAN, kInfinity}) {
    std::vector<float> row(300, 1.0f);
    row[static_cast<size_t>(Below(300))] = bad;
    EXPECT_FALSE(sampler.Sample(row, {.params = &p}).logits_valid);
  }
  std::vector<float> none(300, -kInfinity);
  EXPECT_FALSE(sampler.Sample(none, {.params = &p}).logits_valid);
}

}  // namespace
}  // namespace longstride::model

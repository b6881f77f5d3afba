// Tokens chosen on a device: the host sampler's, to the bit of their log-probabilities.
#include "model/device_choices.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace longstride::model {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(DeviceChoices, RefusesWhatTheDeviceLacks) {
  const std::vector<uint32_t> mask = {7};
  const auto adds = [&](const SamplingParams& p, int32_t logprobs = -1, bool masked = false) {
    DeviceChoices choices;
    SamplingContext context{.params = &p, .num_logprobs = logprobs};
    if (masked) context.token_mask = mask;
    const bool added = choices.Add(0, 100, context);
    EXPECT_EQ(choices.size(), added ? 1 : 0);
    return added;
  };
  EXPECT_TRUE(adds({}));
  EXPECT_TRUE(adds({}, kernels::kMaxSampleTop));
  EXPECT_FALSE(adds({}, kernels::kMaxSampleTop + 1));
  EXPECT_FALSE(adds({}, -1, true));
  EXPECT_FALSE(adds({.typical_p = 0.9f}));
  EXPECT_FALSE(adds({.allowed_token_ids = {3}}));
  EXPECT_TRUE(adds({.logit_bias = {{3, 1.0f}, {4, 1.0f}}}));
  EXPECT_FALSE(adds({.logit_bias = {{3, 1.0f}, {3, 2.0f}}}));
}

TEST(DeviceChoices, EditsEachTokenOnce) {
  const SamplingParams p{.repetition_penalty = 1.5f,
                         .frequency_penalty = 0.5f,
                         .logit_bias = {{5, 2.0f}, {200, 1.0f}},
                         .banned_token_ids = {9, -1, 9}};
  const std::vector<int32_t> prompt = {5, 7, 5}, generated = {7, 7, 8}, banned = {5};
  DeviceChoices choices;
  for (int row = 0; row < 2; ++row) {
    ASSERT_TRUE(choices.Add(
        row, 100, {.params = &p, .prompt = prompt, .generated = generated, .banned = banned}));
  }
  for (const kernels::SampleRow& row : choices.rows()) {
    ASSERT_EQ(row.num_edits, 4);
    const auto edits = choices.edits().subspan(static_cast<size_t>(row.edits_begin), 4);
    const auto is = [](const kernels::LogitEdit& e, int32_t token, int32_t penalised, int32_t count,
                       float bias, int32_t out) {
      EXPECT_EQ(e.token, token);
      EXPECT_EQ(e.penalised, penalised);
      EXPECT_EQ(e.generated, count);
      EXPECT_EQ(e.bias, bias);
      EXPECT_EQ(e.banned, out);
    };
    is(edits[0], 5, 1, 0, 2.0f, 1);
    is(edits[1], 7, 1, 2, 0.0f, 0);
    is(edits[2], 8, 1, 1, 0.0f, 0);
    is(edits[3], 9, 0, 0, 0.0f, 1);
  }
}

class DeviceSamplingTest : public ::testing::Test {
 protected:
  DeviceSamplingTest() : seed_(std::random_device()()), random_(seed_) {}

  void SetUp() override {
    auto backend = kernels::MakeBackend(kernels::BackendKind::kCuda, {});
    if (!backend.ok()) GTEST_SKIP() << backend.status().message();
    backend_ = *std::move(backend);
  }

  float Uniform() { return std::uniform_real_distribution<float>()(random_); }
  int32_t Below(int32_t n) { return static_cast<int32_t>(random_() % static_cast<unsigned>(n)); }

  std::vector<float> Logits(int32_t vocab) {
    std::vector<float> logits(static_cast<size_t>(vocab));
    const float spread = std::exp2(static_cast<float>(Below(9)) - 4);
    const int32_t steps = Below(3) == 0 ? 1 + Below(9) : 0;  // many ties
    const float shift = 20 * (Uniform() - 0.5f);
    std::normal_distribution<float> normal;
    for (float& x : logits) {
      x = normal(random_);
      if (steps > 0) x = std::round(x * static_cast<float>(steps)) / static_cast<float>(steps);
      x = x * spread + shift;
    }
    if (Below(4) == 0) {
      for (float& x : logits) x = Below(5) == 0 ? -kInfinity : x;
    }
    if (Below(4) == 0) logits[static_cast<size_t>(Below(vocab))] = 90.0f;
    if (Below(4) == 0) std::replace(logits.begin(), logits.end(), 0.0f, -0.0f);
    if (Below(12) == 0) std::fill(logits.begin(), logits.end(), shift);
    if (Below(12) == 0) logits[static_cast<size_t>(Below(vocab))] = Below(2) == 0 ? NAN : kInfinity;
    return logits;
  }

  SamplingParams Params(int32_t vocab) {
    SamplingParams p;
    p.seed = uint64_t{random_()} << 32 | random_();
    if (Below(4) == 0) {
      p.temperature = 0.0f;
    } else if (Below(2) == 0) {
      p.temperature = 0.05f + 2 * Uniform();
    }
    if (Below(2) == 0) p.top_k = Below(3) == 0 ? 1 + Below(vocab) : 1 + Below(60);
    if (Below(2) == 0) p.top_p = Below(9) == 0 ? 0.0f : Uniform();
    if (Below(3) == 0) p.min_p = Uniform() * Uniform();
    if (Below(3) == 0) p.repetition_penalty = 0.5f + Uniform();
    if (Below(3) == 0) p.presence_penalty = Uniform() - 0.3f;
    if (Below(3) == 0) p.frequency_penalty = Uniform() - 0.3f;
    if (Below(3) == 0) {
      for (int32_t t = Below(5); t < vocab; t += 1 + Below(vocab)) {
        p.logit_bias.emplace_back(t, 8 * Uniform() - 4);
      }
    }
    if (Below(3) == 0) p.banned_token_ids = {Below(vocab), Below(vocab)};
    return p;
  }

  std::vector<int32_t> Tokens(int32_t vocab, int32_t most) {
    std::vector<int32_t> tokens(static_cast<size_t>(Below(most)));
    for (int32_t& t : tokens) t = Below(vocab);
    return tokens;
  }

  // Rows of logits with a choice each, on the device and by the host.
  void Compare(int32_t vocab, int32_t rows) {
    struct Choice {
      SamplingParams params;
      std::vector<int32_t> prompt, generated;
      SamplingContext context;
    };
    std::vector<float> all;
    std::vector<Choice> choices(static_cast<size_t>(rows));
    DeviceChoices device;
    for (int32_t r = 0; r < rows; ++r) {
      const std::vector<float> logits = Logits(vocab);
      all.insert(all.end(), logits.begin(), logits.end());
      Choice& c = choices[static_cast<size_t>(r)];
      c = {.params = Params(vocab),
           .prompt = Tokens(vocab, 300),
           .generated = Tokens(vocab, 300),
           .context = {}};
      c.context = {.params = &c.params,
                   .prompt = c.prompt,
                   .generated = c.generated,
                   .choice = static_cast<uint32_t>(Below(3)),
                   .num_logprobs = Below(2) == 0 ? -1 : Below(kernels::kMaxSampleTop + 1)};
      ASSERT_TRUE(device.Add(r, vocab, c.context));
    }
    const auto resident = backend_->Resident(
        kernels::TensorView::Matrix(all.data(), kernels::DType::kF32, rows, vocab));
    ASSERT_TRUE(resident.ok()) << resident.status();
    ASSERT_TRUE(backend_->BeginStep({}).ok());
    const auto results =
        backend_->Sample({.logits = *resident,
                          .rows = device.rows().data(),
                          .num_rows = device.size(),
                          .edits = device.edits().data(),
                          .num_edits = static_cast<int32_t>(device.edits().size())});
    ASSERT_TRUE(results.ok()) << results.status();
    const absl::Status ended = backend_->EndStep();
    ASSERT_TRUE(ended.ok()) << ended;
    Sampler sampler;
    for (int32_t r = 0; r < rows; ++r) {
      const Choice& c = choices[static_cast<size_t>(r)];
      const SampledToken got = DeviceChoices::Result(device.rows()[static_cast<size_t>(r)],
                                                     (*results)[static_cast<size_t>(r)]);
      const SampledToken want =
          sampler.Sample({all.data() + int64_t{r} * vocab, static_cast<size_t>(vocab)}, c.context);
      SCOPED_TRACE(::testing::Message()
                   << "vocab " << vocab << " row " << r << " temperature " << c.params.temperature
                   << " top_k " << c.params.top_k << " top_p " << c.params.top_p << " min_p "
                   << c.params.min_p << " edits "
                   << device.rows()[static_cast<size_t>(r)].num_edits);
      ASSERT_EQ(got.logits_valid, want.logits_valid);
      if (!want.logits_valid) continue;
      ASSERT_EQ(got.token, want.token);
      EXPECT_EQ(std::bit_cast<uint32_t>(got.logprob), std::bit_cast<uint32_t>(want.logprob));
      ASSERT_EQ(got.top.size(), want.top.size());
      for (size_t i = 0; i < want.top.size(); ++i) {
        EXPECT_EQ(got.top[i].token, want.top[i].token) << i;
        EXPECT_EQ(std::bit_cast<uint32_t>(got.top[i].logprob),
                  std::bit_cast<uint32_t>(want.top[i].logprob));
      }
    }
  }

  unsigned seed_;
  std::mt19937 random_;
  std::unique_ptr<kernels::Backend> backend_;
  ::testing::ScopedTrace trace_{__FILE__, __LINE__, ::testing::Message() << "seed " << seed_};
};

TEST_F(DeviceSamplingTest, ChoosesTheHostsTokens) {
  for (const int32_t vocab : {1023, 2048, 2049, 5000, 32003, 128256, 262144}) {
    for (int round = 0; round < (vocab > 10000 ? 2 : 12) && !HasFailure(); ++round) {
      Compare(vocab, vocab > 10000 ? 40 : 60);
    }
  }
}

// So few that sanitizers can follow them.
TEST_F(DeviceSamplingTest, ChoosesTheHostsTokensOfFew) {
  for (const int32_t vocab : {33, 97}) {
    for (int round = 0; round < 12 && !HasFailure(); ++round) Compare(vocab, 60);
  }
  Compare(2049, 5);
}

TEST_F(DeviceSamplingTest, RefusesMalformedChoices) {
  std::vector<float> logits(200, 1.0f);
  const auto view =
      *backend_->Resident(kernels::TensorView::Matrix(logits.data(), kernels::DType::kF32, 2, 100));
  ASSERT_TRUE(backend_->BeginStep({}).ok());
  const auto refused = [&](kernels::SampleRow row, kernels::LogitEdit edit) {
    const auto result = backend_->Sample(
        {.logits = view, .rows = &row, .num_rows = 1, .edits = &edit, .num_edits = 1});
    return result.status().code() == absl::StatusCode::kInternal;
  };
  EXPECT_FALSE(refused({}, {}));
  EXPECT_TRUE(refused({.row = 2}, {}));
  EXPECT_TRUE(refused({.top_k = 100}, {}));
  EXPECT_TRUE(refused({.num_top = 33}, {}));
  EXPECT_TRUE(refused({.edits_begin = 1, .num_edits = 1}, {}));
  EXPECT_TRUE(refused({}, {.token = 100}));
  EXPECT_TRUE(backend_->EndStep().ok());
}

}  // namespace
}  // namespace longstride::model

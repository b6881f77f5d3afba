// Lanes over a tiny checkpoint, for the tests of this folder.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/fidelity/lane.h"
#include "tests/testing/random_seed.h"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_llama.h"

namespace longstride::model::fidelity {

constexpr int32_t kTinyContext = 2048;
constexpr int32_t kTinyStep = 64;

class TinyLanes : public ::testing::Test {
 protected:
  void SetUp() override {
    ModelOptions options;
    const auto bytes = testing::TinyLlama(testing::RandomSeed(), kTinyContext).Finish();
    options.path = folder_.Write("tiny.gguf", bytes);
    options.kv_budget_bytes = 8 << 20;
    options.max_step_tokens = kTinyStep;
    options.backend_options.num_threads = 1;
    auto model = Model::Load(options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  SparsityPlan Plan(const std::string& text) const {
    const auto policy = SparsityPolicy::Parse(text);
    EXPECT_TRUE(policy.ok()) << policy.status();
    auto plan = SparsityPlan::Resolve(*policy, model_->spec(), model_->options().kv_dtype);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return *std::move(plan);
  }
  SparsityPlan Native() const { return Plan("{}"); }
  SparsityPlan Window(int32_t window) const {
    return Plan(
        StrCat(R"({"default": {"pattern": "window", "sink_tokens": 2, "window": )", window, "}}"));
  }
  std::unique_ptr<Lane> MakeLane(SparsityPlan plan, int32_t max_tokens = 512) {
    auto lane = Lane::Create(model_.get(), std::move(plan),
                             {.kv_dtype = model_->options().kv_dtype,
                              .max_tokens = max_tokens,
                              .step_tokens = kTinyStep});
    EXPECT_TRUE(lane.ok()) << lane.status();
    return *std::move(lane);
  }
  std::vector<int32_t> Tokens(size_t n) {
    std::vector<int32_t> tokens(n);
    for (int32_t& t : tokens) t = static_cast<int32_t>(3 + random_() % 256);
    return tokens;
  }

  testing::TempFolder folder_;
  std::unique_ptr<Model> model_;
  std::mt19937 random_{testing::RandomSeed() + 2};
};

}  // namespace longstride::model::fidelity

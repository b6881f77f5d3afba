#include "server/cli/plan_cost.h"

#include <random>

#include "gtest/gtest.h"
#include "model/families/family.h"
#include "model/weights/weights_file.h"
#include "tests/model/decoder/tiny_model.h"
#include "tests/testing/random_seed.h"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_llama.h"

namespace longstride::cli {
namespace {

model::SparsityPlan Plan(const std::string& text, const model::ModelSpec& spec) {
  auto plan =
      model::SparsityPlan::Resolve(*SparsityPolicy::Parse(text), spec, kernels::KvDType::kF32);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

TEST(PlanCostTest, FlopsOfADenseModelAreTheClosedForm) {
  const model::TinyModel tiny({});  // 4 layers, 4 heads of 16, 2 KV heads, width 48, MLP 40
  const model::SparsityPlan plan = Plan("{}", tiny.spec);
  const double weights = 4.0 * (48 * 64 + 2 * 48 * 32 + 64 * 48 + 3 * 48 * 40);
  const double head = 97 * 48;
  const PlanFlops f = FlopsOf(tiny.spec, plan, 100);
  EXPECT_DOUBLE_EQ(f.prefill_linear, 2 * weights * 100 + 2 * head);
  EXPECT_DOUBLE_EQ(f.decode_linear, 2 * (weights + head));
  EXPECT_NEAR(f.prefill_attention, 4.0 * 4 * 4 * 16 * (100 * 101 / 2), 1);
  EXPECT_DOUBLE_EQ(f.decode_attention, 4.0 * 4 * 4 * 16 * 100);
  EXPECT_DOUBLE_EQ(f.decode_dense_attention, f.decode_attention);
}

TEST(PlanCostTest, ExpertsCountByTheirShare) {
  const model::TinyModel tiny({.experts = 4, .top_k = 2});
  const PlanFlops f = FlopsOf(tiny.spec, Plan("{}", tiny.spec), 1);
  const double attention = 48 * 64 + 2 * 48 * 32 + 64 * 48;
  EXPECT_DOUBLE_EQ(f.decode_linear, 2 * (4 * (attention + 4 * 48 + 2 * 3 * 48 * 40) + 97 * 48));
}

TEST(PlanCostTest, WindowsCostWhatTheyRead) {
  const model::TinyModel tiny({});
  const model::SparsityPlan window =
      Plan(R"({"default": {"pattern": "window", "window": 10}})", tiny.spec);
  const PlanFlops f = FlopsOf(tiny.spec, window, 200);
  EXPECT_DOUBLE_EQ(f.decode_attention, 4.0 * 4 * 4 * 16 * 10);
  EXPECT_NEAR(f.prefill_attention, 4.0 * 4 * 4 * 16 * (45 + 191 * 10), 1);
  EXPECT_NEAR(f.prefill_dense_attention, 4.0 * 4 * 4 * 16 * (200 * 201 / 2), 1);
  // Long lengths are sampled; a straight line is met exactly but for the rounding of positions.
  const double exact = 4.0 * 4 * 16 * (1000.0 * 1001 / 2);
  EXPECT_NEAR(AttentionVolume(tiny.spec, window, 0, 1000, true), exact, 0.01 * exact);
}

// A layer that reads what the layer before it chose scores nothing.
TEST(PlanCostTest, IndexersScoreAllKeysAndLatentsAreMadeAndExpanded) {
  const auto file =
      model::WeightsFile::Open(LONGSTRIDE_SOURCE_DIR "/tests/parity/families/data/glm_moe_dsa");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto loaded = model::LoadModelSpec(**file);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const model::ModelSpec& spec = *loaded;
  double weights = static_cast<double>(spec.vocab_size) * spec.dim, volume = 0;
  int without = 0;
  for (const model::LayerSpec& layer : spec.layers) {
    const model::AttentionSpec& a = layer.attention;
    const model::LatentAttention& l = a.latent;
    weights += l.q_rank * (spec.dim + a.num_heads * (l.nope_dim + l.rope_dim)) +
               (l.kv_rank + l.rope_dim) * spec.dim +
               a.num_heads * l.kv_rank * (l.nope_dim + l.value_dim) +
               a.num_heads * l.value_dim * spec.dim;
    const model::Indexer& index = a.indexer;
    weights += index.num_heads * (index.head_dim * l.q_rank + spec.dim) +
               (index.num_heads > 0 ? index.head_dim * spec.dim : 0);
    without += index.num_heads == 0;
    const model::MlpSpec& mlp = layer.mlp;
    weights +=
        3 * spec.dim *
            (mlp.num_experts > 0 ? mlp.top_k * mlp.ffn_dim + mlp.shared_ffn_dim : mlp.ffn_dim) +
        mlp.num_experts * spec.dim;
    volume +=
        a.native.dsa.topk * a.num_heads * a.head_dim + 0.5 * 200 * index.num_heads * index.head_dim;
  }
  EXPECT_GT(without, 0);
  const PlanFlops f = FlopsOf(spec, Plan("{}", spec), 200);
  EXPECT_DOUBLE_EQ(f.decode_linear, 2 * weights);
  EXPECT_DOUBLE_EQ(f.decode_attention, 4 * volume);
}

// Three parts that add up, beside half a product of each head with every page's mean.
TEST(PlanCostTest, PartsThatAGateSumsAddUp) {
  const model::TinyModel tiny({.nsa_blocks = 2, .nsa_window = 20});
  const PlanFlops f = FlopsOf(tiny.spec, Plan("{}", tiny.spec), 300);
  // The last query sees 4 whole pages, a page and 44 keys, and 20 keys.
  const double keys = 4 + 64 + 44 + 20 + 0.5 * 300 / 64;
  EXPECT_DOUBLE_EQ(f.decode_attention, 4.0 * 4 * 4 * 16 * keys);
  EXPECT_DOUBLE_EQ(f.decode_dense_attention, 4.0 * 4 * 4 * 16 * 300);
  const PlanFlops plain =
      FlopsOf(model::TinyModel({}).spec, Plan("{}", model::TinyModel({}).spec), 300);
  EXPECT_DOUBLE_EQ(f.decode_linear - plain.decode_linear, 2.0 * 4 * (3 * 4 * 48));
}

TEST(PlanCostTest, FitFindsTheRatesAndNeverNegativeOnes) {
  std::mt19937 random(testing::RandomSeed());
  std::uniform_real_distribution<double> uniform(1, 10);
  std::vector<double> x1, x2, y, only_first;
  const double a = uniform(random), b = uniform(random);
  for (int i = 0; i < 20; ++i) {
    x1.push_back(uniform(random));
    x2.push_back(uniform(random) * 1000);
    y.push_back(a * x1.back() + b * x2.back());
    only_first.push_back(x1.back() * 3 - x2.back() * 1e-6);
  }
  double got_a = 0, got_b = 0;
  FitNonNegative(x1, x2, y, &got_a, &got_b);
  EXPECT_NEAR(got_a, a, 1e-6);
  EXPECT_NEAR(got_b, b, 1e-9);
  FitNonNegative(x1, x2, only_first, &got_a, &got_b);
  EXPECT_GT(got_a, 0);
  EXPECT_EQ(got_b, 0);
  // One length only: a single unknown.
  FitNonNegative({2, 2}, {4, 4}, {8, 8}, &got_a, &got_b);
  EXPECT_EQ(got_a, 0);
  EXPECT_DOUBLE_EQ(got_b, 2);
}

TEST(PlanCostTest, PredictionFollowsTheRates) {
  const model::TinyModel tiny({});
  const model::SparsityPlan plan = Plan("{}", tiny.spec);
  const MachineRates rates{.prefill = {.row = 1e6, .attention_row = 0, .attention_volume = 0},
                           .decode = {.row = 2e6, .attention_row = 1e6, .attention_volume = 1}};
  const PlanPrediction p = Predict(tiny.spec, plan, rates, 1000);
  EXPECT_NEAR(p.time_to_first_token, 1.0, 1e-9);
  EXPECT_NEAR(1 / p.decode_tokens_per_second, 3e-3 + 4.0 * 4 * 16 * 1000 * 1e-9, 1e-9);
}

TEST(PlanCostTest, CalibrationMeasuresSomething) {
  const testing::TempFolder folder;
  model::ModelOptions options;
  options.path = folder.Write("tiny.gguf", testing::TinyLlama().Finish());
  options.kv_budget_bytes = 8 << 20;
  options.max_step_tokens = 64;
  options.backend_options.num_threads = 1;
  const auto model = model::Model::Load(options);
  ASSERT_TRUE(model.ok()) << model.status();
  const auto rates = Calibrate(model->get(), 512);
  ASSERT_TRUE(rates.ok()) << rates.status();
  EXPECT_EQ(rates->tokens, 512);
  EXPECT_GT(rates->prefill.row, 0);
  EXPECT_GT(rates->decode.row, 0);
  EXPECT_GT(rates->prefill.attention_row + rates->prefill.attention_volume, 0);
  const PlanPrediction p = Predict((*model)->spec(), (*model)->plan(), *rates, 512);
  EXPECT_GT(p.time_to_first_token, 0);
  EXPECT_GT(p.decode_tokens_per_second, 0);
}

}  // namespace
}  // namespace longstride::cli

// Gemma 3 270M (GGUF) against llama.cpp: what its server continued greedily for 20 prompts of a few
// tokens and one of 20,000 is fed to our model (teacher-forced), and the distributions are
// compared.
//
// The golden file is llama.cpp's on a float32 copy of the weights (dequantize_gguf.py, then
// llama_cpp_parity.py): on the quantised file it rounds activations to 8 bits, and its own logits
// then differ from exact arithmetic by more than is allowed here (mean KL 2.4e-3, another first
// choice at 17 of 1,280 tokens whose two best are more than 0.1 apart; 2.9e-3 from ours).
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/quant.h"
#include "model/families/family.h"
#include "model/model.h"
#include "nlohmann/json.hpp"

namespace longstride::model {
namespace {

constexpr double kSureGap = 0.1;  // between llama.cpp's two best log-probabilities
constexpr double kMaxMeanKl = 2e-3;

struct Comparison {
  double kl = 0;
  bool same_top = true;
  bool sure = false;
};

std::vector<double> LogSoftmax(const float* logits, int64_t n) {
  const double max = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(logits[i] - max);
  std::vector<double> out(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) out[static_cast<size_t>(i)] = logits[i] - max - std::log(sum);
  return out;
}

// KL divergence of ours from theirs over their most likely tokens, the rest taken as one.
Comparison Compare(const nlohmann::json& top, const float* logits, int64_t vocab) {
  const std::vector<double> ours = LogSoftmax(logits, vocab);
  Comparison c;
  double their_rest = 1, our_rest = 1;
  for (const auto& entry : top) {
    const double theirs = entry[1].get<double>();
    const double mine = ours[entry[0].get<size_t>()];
    c.kl += std::exp(theirs) * (theirs - mine);
    their_rest -= std::exp(theirs);
    our_rest -= std::exp(mine);
  }
  if (their_rest > 1e-9) c.kl += their_rest * std::log(their_rest / std::max(our_rest, 1e-12));
  c.sure = top[0][1].get<double>() - top[1][1].get<double>() > kSureGap;
  const auto best = std::max_element(ours.begin(), ours.end()) - ours.begin();
  c.same_top = best == top[0][0].get<int64_t>();
  return c;
}

// What is compared: something that runs a forward pass.
struct Subject {
  Decoder* decoder = nullptr;
  size_t num_groups = 0;
  int32_t max_step_tokens = 0;
  int64_t vocab = 0;
};

absl::Status Step(const Subject& subject, int32_t first, const std::vector<int32_t>& tokens,
                  int32_t logits, ModelOutput* output) {
  ModelInput input;
  input.num_sequences = 1;
  input.token_ids = tokens;
  const auto count = static_cast<int32_t>(tokens.size());
  input.runs.push_back({.first_position = first, .num_tokens = count, .num_logits = logits});
  for (size_t g = 0; g < subject.num_groups; ++g) {
    GroupPageTable table;
    table.stride = (first + count + kernels::kPageTokens - 1) / kernels::kPageTokens;
    for (int32_t p = 0; p < table.stride; ++p) table.pages.push_back(p);
    input.page_tables.push_back(std::move(table));
  }
  return subject.decoder->Forward(input, output);
}

struct Totals {
  double kl = 0;
  int steps = 0;
  int other_top = 0;       // another first choice
  int other_sure_top = 0;  // ... where theirs was sure
  double widest_gap = 0;   // of those
};

// Feeds one case; lists where the best token differs.
void Replay(const Subject& subject, size_t index, const nlohmann::json& golden, Totals* totals) {
  const auto prompt = golden["prompt"].get<std::vector<int32_t>>();
  std::vector<int32_t> tokens = prompt;
  for (const auto& step : golden["steps"]) tokens.push_back(step["id"].get<int32_t>());
  tokens.pop_back();
  // The row before a generated token is the one that predicts it.
  const size_t first_row = prompt.size() - 1;
  const auto chunk = static_cast<size_t>(subject.max_step_tokens);
  double kl = 0;
  for (size_t at = 0; at < tokens.size();) {
    const bool predicts = at >= first_row;
    const size_t end = std::min(at + chunk, predicts ? tokens.size() : first_row);
    const auto count = static_cast<int32_t>(end - at);
    ModelOutput output;
    const absl::Status status = Step(subject, static_cast<int32_t>(at),
                                     {tokens.begin() + static_cast<std::ptrdiff_t>(at),
                                      tokens.begin() + static_cast<std::ptrdiff_t>(end)},
                                     predicts ? count : 0, &output);
    ASSERT_TRUE(status.ok()) << status;
    for (size_t row = at; predicts && row < end; ++row) {
      const size_t step = row - first_row;
      const nlohmann::json& top = golden["steps"][step]["top"];
      const Comparison c =
          Compare(top, output.logits.row<float>(static_cast<int64_t>(row - at)), subject.vocab);
      kl += c.kl;
      ++totals->steps;
      if (c.same_top) continue;
      ++totals->other_top;
      const double gap = top[0][1].get<double>() - top[1][1].get<double>();
      std::printf("  prompt %zu, token %zu: theirs is %d by %.3f\n", index, step,
                  top[0][0].get<int>(), gap);
      if (!c.sure) continue;
      ++totals->other_sure_top;
      totals->widest_gap = std::max(totals->widest_gap, gap);
    }
    at = end;
  }
  std::printf("prompt %2zu (%zu tokens): mean KL %.2e\n", index, prompt.size(),
              kl / static_cast<double>(golden["steps"].size()));
  totals->kl += kl;
}

Totals ReplayAll(const Subject& subject) {
  std::ifstream file(StrCat(LONGSTRIDE_SOURCE_DIR, "/tests/parity/model/gemma3_270m_golden.json"));
  const nlohmann::json golden = nlohmann::json::parse(file, nullptr, false);
  EXPECT_TRUE(golden.is_object());
  Totals totals;
  if (!golden.is_object()) return totals;
  EXPECT_EQ(golden["cases"].size(), 21u);
  EXPECT_EQ(golden["cases"].back()["prompt"].size(), 20000u);
  for (size_t i = 0; i < golden["cases"].size(); ++i) {
    Replay(subject, i, golden["cases"][i], &totals);
  }
  std::printf("mean KL %.3e, another first choice at %d of %d tokens, %d of them sure\n",
              totals.kl / totals.steps, totals.other_top, totals.steps, totals.other_sure_top);
  return totals;
}

std::string ModelPath() {
  const char* folder = std::getenv("LONGSTRIDE_TEST_MODELS");
  return StrCat(folder != nullptr ? folder : "models", "/gemma-3-270m-q4_k_m.gguf");
}

// The same weights in float32, as the golden file's side had them.
void Dequantize(ModelSpec* spec, kernels::TensorView* view) {
  if (view->data == nullptr || view->dtype == kernels::DType::kF32) return;
  const int64_t rows = view->shape[0], cols = view->shape[1];
  auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    kernels::DequantizeRow(view->dtype,
                           view->ptr<uint8_t>() + r * kernels::RowBytes(view->dtype, cols), cols,
                           values->data() + r * cols);
  }
  *view = kernels::TensorView::Matrix(values->data(), kernels::DType::kF32, rows, cols);
  spec->owned.push_back(std::move(values));
}

void Dequantize(ModelSpec* spec) {
  Dequantize(spec, &spec->embedding);
  ASSERT_TRUE(spec->tied_embedding);
  spec->lm_head = spec->embedding;
  for (LayerSpec& layer : spec->layers) {
    LayerWeights& w = layer.weights;
    for (kernels::TensorView* view : {&w.wq, &w.wk, &w.wv, &w.wo, &w.gate, &w.up, &w.down}) {
      Dequantize(spec, view);
    }
  }
}

// Without rounding of activations the two differ by float32's noise only.
TEST(LlamaCppParity, AgreesOnFloatWeights) {
  if (!std::filesystem::exists(ModelPath())) GTEST_SKIP() << "the model has not been fetched";
  auto weights = WeightsFile::Open(ModelPath());
  ASSERT_TRUE(weights.ok()) << weights.status();
  auto spec = LoadModelSpec(**weights);
  ASSERT_TRUE(spec.ok()) << spec.status();
  Dequantize(&*spec);
  constexpr auto kDType = kernels::KvDType::kF32;
  auto plan = SparsityPlan::Resolve(SparsityPolicy(), *spec, kDType);
  ASSERT_TRUE(plan.ok()) << plan.status();
  auto backend = kernels::MakeBackend(kernels::BackendKind::kCpu, {});
  ASSERT_TRUE(backend.ok()) << backend.status();
  auto cache = KvCache::Create(backend->get(), plan->groups,
                               {.dtype = kDType, .budget_bytes = int64_t{4} << 30});
  ASSERT_TRUE(cache.ok()) << cache.status();
  constexpr int32_t kStepTokens = 512;
  auto decoder = Decoder::Create(backend->get(), &*spec, &*plan, cache->get(), kStepTokens,
                                 [](const kernels::TensorView&) {});
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  const Totals totals =
      ReplayAll({decoder->get(), plan->groups.size(), kStepTokens, spec->vocab_size});
  EXPECT_EQ(totals.steps, 21 * 64);
  EXPECT_EQ(totals.other_sure_top, 0);
  EXPECT_LE(totals.kl / totals.steps, 1e-5);
}

// As served: weights of 4 to 8 bits, activations rounded to 8 bits per 32, a half-precision cache.
TEST(LlamaCppParity, IsCloseOnQuantisedWeights) {
  if (!std::filesystem::exists(ModelPath())) GTEST_SKIP() << "the model has not been fetched";
  ModelOptions options;
  options.path = ModelPath();
  options.kv_budget_bytes = int64_t{2} << 30;
  auto model = Model::Load(options);
  ASSERT_TRUE(model.ok()) << model.status();
  const Totals totals = ReplayAll({&(*model)->decoder(), (*model)->plan().groups.size(),
                                   options.max_step_tokens, (*model)->spec().vocab_size});
  EXPECT_EQ(totals.steps, 21 * 64);
  EXPECT_LE(totals.kl / totals.steps, kMaxMeanKl);
  // What rounding does to first choices that are nearly a tie; sums in the order of AVX-512 give 8 of
  // 1,344 and gaps up to 0.42.
  EXPECT_LE(totals.other_sure_top, totals.steps / 100);
  EXPECT_LE(totals.widest_gap, 0.6);
}

}  // namespace
}  // namespace longstride::model

// Dual chunk attention: every static pattern cut into its parts, against the definition, however a
// sequence was computed.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/decoder/architectures.h"
#include "tests/model/decoder/naive_forward.h"
#include "tests/model/decoder/paged_runner.h"
#include "tests/model/decoder/tiny_model.h"

namespace longstride::model {
namespace {

using kernels::BackendKind;
using kernels::KvDType;

// Runs of 128 positions: 430 tokens have keys in their own run, the one before and earlier ones.
constexpr size_t kLength = 430;
constexpr size_t kPrompt = 390;  // the rest is generated, across the edge of a page and into a run

TinyOptions Options() {
  return {.name = "dual_chunk",
          .layers = 3,
          .heads = 8,
          .kv_heads = 2,
          .qk_norm = QkNorm::kPerHead,
          .rope_variants = 2,
          .chunk_size = 144,
          .local_size = 16};
}

std::vector<std::pair<const char*, std::string>> Plans() {
  const auto only = [](const std::string& pattern) {
    return StrCat(R"({"default": {"pattern": )", pattern, "}}");
  };
  return {
      {"native", "{}"},
      {"window", only(R"("window", "window": 200, "sink_tokens": 4)")},
      {"short_window", only(R"("window", "window": 20, "sink_tokens": 70)")},
      {"chunked", only(R"("chunked", "chunk": 100)")},
      {"strided", only(R"("strided", "stride": 9, "local": 9)")},
      {"dilated", only(R"("dilated", "window": 60, "dilation": 5, "global_tokens": 6)")},
      {"bigbird", only(R"("bigbird", "block": 16, "window_blocks": 2)")},
      {"local_stride", only(R"("local_stride", "block": 16, "local_blocks": 2, "vert_stride": 4)")},
      {"fixed", only(R"("fixed", "block": 32, "local_ctx": 96, "num_verts": 1)")},
      {"by_head", R"({"default": {"pattern": "native"}, "layers": [
          {"layers": "0", "heads": "0-1", "pattern": "strided", "stride": 8, "local": 8},
          {"layers": "1", "heads": "4-7", "pattern": "window", "window": 30, "sink_tokens": 2},
          {"layers": "2", "heads": "3-6", "pattern": "window", "window": 150}]})"},
  };
}

class DualChunkTest : public ::testing::TestWithParam<std::pair<const char*, std::string>> {
 protected:
  const TinyModel model_{Options()};
  const std::vector<int32_t> tokens_ = RandomTokens(kLength, model_.spec.vocab_size, 17);
  const std::vector<int32_t> prompt_{tokens_.begin(), tokens_.begin() + kPrompt};

  // The generated tokens one by one, appended to what the prompt gave.
  void Decode(PagedRunner* runner, int sequence, uint8_t variant, FloatRows* rows) {
    for (size_t t = kPrompt; t < kLength; ++t) {
      const FloatRows row =
          runner->Prefill(sequence, {tokens_[t]}, 1, variant, NumericsClass::kGenerated);
      rows->insert(rows->end(), row.begin(), row.end());
    }
  }
};

TEST_P(DualChunkTest, IsOneSoftmaxOverThreeRotations) {
  for (const uint8_t variant : {0, 1}) {
    NaiveOutput want;
    for (const BackendKind kind : Backends()) {
      PagedRunner runner(&model_.spec, GetParam().second, kind);
      const SparsityPlan& plan = runner.plan();
      if (want.logits.empty()) {
        want = NaiveForward(
            model_.spec, tokens_,
            [&](int32_t l, int32_t head, int64_t i, int64_t j) {
              for (const HeadSegment& s : plan.layers[static_cast<size_t>(l)].segments) {
                if (head < s.query.first || head >= s.query.first + s.query.count) continue;
                return plan.patterns[static_cast<size_t>(s.pattern)]->Visible(head, i, j);
              }
              return false;
            },
            variant);
      }
      FloatRows got = runner.Prefill(0, prompt_, 75, variant);
      Decode(&runner, 0, variant, &got);
      ASSERT_EQ(got.size(), want.logits.size());
      double worst = 0, squares = 0;
      for (size_t t = 0; t < got.size(); ++t) {
        for (size_t v = 0; v < got[t].size(); ++v) {
          const double error = std::abs(got[t][v] - want.logits[t][v]);
          worst = std::isnan(error) ? INFINITY : std::max(worst, error);
          squares += want.logits[t][v] * want.logits[t][v];
        }
      }
      const double deviation = std::sqrt(squares / static_cast<double>(got.size() * got[0].size()));
      ASSERT_GE(deviation, 0.3);
      EXPECT_LE(worst, 1e-4 * deviation) << "backend " << static_cast<int>(kind);
    }
  }
}

TEST_P(DualChunkTest, HowItIsComputedDoesNotChangeBits) {
  for (const BackendKind kind : Backends()) {
    for (const KvDType dtype : {KvDType::kF32, KvDType::kF16}) {
      PagedRunner runner(&model_.spec, GetParam().second, kind, dtype);
      FloatRows whole = runner.Prefill(0, prompt_, 512);
      Decode(&runner, 0, 0, &whole);
      int sequence = 1;
      // Chunks that end anywhere. What was preempted is computed anew like this: the prompt in
      // other chunks, then what was generated.
      for (const int32_t chunk : {1, 63, 64, 65, 127, 129, 300}) {
        FloatRows rows = runner.Prefill(sequence, prompt_, chunk);
        Decode(&runner, sequence, 0, &rows);
        EXPECT_EQ(rows, whole) << "chunks of " << chunk;
        runner.Drop(sequence++);
      }
      // Beside a sequence that ends within its first run, and so needs one part alone.
      std::vector<Piece> pieces = {{.sequence = sequence,
                                    .tokens = {prompt_.begin(), prompt_.begin() + 40},
                                    .num_logits = 40},
                                   {.sequence = sequence + 1,
                                    .tokens = prompt_,
                                    .num_logits = static_cast<int32_t>(kPrompt)}};
      ASSERT_TRUE(runner.Step(pieces).ok());
      EXPECT_TRUE(std::equal(runner.logits.begin(), runner.logits.begin() + 40, whole.begin()));
      EXPECT_TRUE(std::equal(runner.logits.begin() + 40, runner.logits.end(), whole.begin()));
      // Without the rows that nobody wants.
      pieces[0] = {.sequence = sequence + 2, .tokens = prompt_, .num_logits = 3};
      ASSERT_TRUE(runner.Step({pieces[0]}).ok());
      EXPECT_EQ(runner.logits, FloatRows(whole.begin() + kPrompt - 3, whole.begin() + kPrompt));
      runner.Drop(sequence);
      runner.Drop(sequence + 1);
      runner.Drop(sequence + 2);
    }
  }
}

TEST_P(DualChunkTest, APrefixHitChangesNoBits) {
  for (const BackendKind kind : Backends()) {
    PagedRunner runner(&model_.spec, GetParam().second, kind);
    for (const CacheGroup& group : runner.plan().groups) {
      if (!group.retention.keeps_all()) GTEST_SKIP() << "the plan frees pages";
    }
    FloatRows whole = runner.Prefill(0, prompt_, 512);
    int sequence = 1;
    for (const int32_t shared : {64, 128, 192, 320}) {
      runner.Share(0, sequence, shared);
      const FloatRows rest =
          runner.Prefill(sequence, {prompt_.begin() + shared, prompt_.end()}, 512);
      EXPECT_EQ(rest, FloatRows(whole.begin() + shared, whole.end())) << shared << " tokens shared";
      runner.Drop(sequence++);
    }
  }
}

TEST_P(DualChunkTest, CountsEachKeyOnce) {
  for (const BackendKind kind : Backends()) {
    PagedRunner runner(&model_.spec, GetParam().second, kind);
    const SparsityPlan& plan = runner.plan();
    ASSERT_TRUE(runner.Step({{.sequence = 0, .tokens = prompt_, .num_logits = kPrompt}}).ok());
    for (const PatternCounters& c : runner.counters) {
      double visible = 0, heads = 0;
      for (const LayerPlan& layer : plan.layers) {
        for (const HeadSegment& s : layer.segments) {
          if (s.pattern != c.pattern) continue;
          heads += s.query.count;
          for (size_t i = 0; i < kPrompt; ++i) {
            visible += s.query.count * plan.patterns[static_cast<size_t>(s.pattern)]->VisibleKeys(
                                           static_cast<int64_t>(i));
          }
        }
      }
      EXPECT_EQ(static_cast<double>(c.keys_visible), visible);
      EXPECT_EQ(static_cast<double>(c.keys_total), heads * kPrompt * (kPrompt + 1) / 2.0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Plans, DualChunkTest, ::testing::ValuesIn(Plans()),
                         [](const auto& info) { return std::string(info.param.first); });

TEST(DualChunk, PatternsThatRankByQueriesAreRefused) {
  const TinyModel model(Options());
  for (const char* pattern :
       {R"("quest", "budget_tokens": 128)", R"("block_topk", "fraction": 0.5)",
        R"("xattention", "threshold": 0.9)", R"("vertical_slash", "gamma": 0.9)",
        R"("infllm_v2", "dense_len": 0)", R"("moba", "chunk_size": 128, "topk": 2)"}) {
    const auto policy = SparsityPolicy::Parse(
        StrCat(R"({"default": {"pattern": "native"}, "layers": [{"layers": "1", "pattern": )",
               pattern, "}]}"));
    ASSERT_TRUE(policy.ok()) << policy.status();
    EXPECT_THAT(
        std::string(SparsityPlan::Resolve(*policy, model.spec, KvDType::kF32).status().message()),
        ::testing::HasSubstr("rotates a query in three ways"));
  }
}

// Tensor cores, graphs, and sequences that grow from one run into the second and third.
TEST(DualChunk, CudaGraphsChangeNoBits) {
  const auto cuda = [](bool graphs) {
    auto backend =
        kernels::MakeBackend(BackendKind::kCuda, {.kernels = TestKernels(), .cuda_graphs = graphs});
    return backend.ok() ? *std::move(backend) : nullptr;
  };
  if (cuda(true) == nullptr) GTEST_SKIP() << "no CUDA device can be used";
  const TinyModel model({.name = "wide",
                         .heads = 8,
                         .kv_heads = 2,
                         .head_dim = 64,
                         .dim = 128,
                         .ffn = 192,
                         .chunk_size = 144,
                         .local_size = 16,
                         .max_positions = 4096});
  for (const char* plan :
       {"{}", R"({"default": {"pattern": "window", "window": 200, "sink_tokens": 64}})"}) {
    for (const KvDType dtype : {KvDType::kF16, KvDType::kFp8}) {
      PagedRunner plain(&model.spec, plan, cuda(false), dtype, 4096);
      PagedRunner graphs(&model.spec, plan, cuda(true), dtype, 4096);
      ASSERT_TRUE(graphs.decoder().DryRun(4, 4096).ok());
      for (PagedRunner* runner : {&plain, &graphs}) {
        ASSERT_TRUE(runner->Step({{.sequence = 0, .tokens = RandomTokens(110, 97, 3)}}).ok());
        ASSERT_TRUE(runner->Step({{.sequence = 1, .tokens = RandomTokens(240, 97, 4)}}).ok());
      }
      int replayed = 0;
      for (int step = 0; step < 60; ++step) {
        std::vector<Piece> pieces;
        for (int s = 0; s < 2; ++s) {
          pieces.push_back({.sequence = s,
                            .tokens = {(step * 7 + s) % 97},
                            .num_logits = 1,
                            .numerics = NumericsClass::kGenerated});
        }
        ASSERT_TRUE(plain.Step(pieces).ok());
        ASSERT_TRUE(graphs.Step(pieces).ok());
        ASSERT_EQ(plain.logits, graphs.logits) << plan << " step " << step;
        replayed += graphs.repeatable == kernels::StepRun::kReplayed;
      }
      EXPECT_GE(replayed, 50) << plan;
    }
  }
}

}  // namespace
}  // namespace longstride::model

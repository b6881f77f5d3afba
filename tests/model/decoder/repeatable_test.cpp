// Steps that only decode, padded and replayed: to the bit what they are without.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/reference_backend.h"
#include "model/step_layout.h"
#include "tests/model/decoder/architectures.h"
#include "tests/model/decoder/paged_runner.h"

namespace longstride::model {
namespace {

using kernels::BackendKind;
using kernels::KvDType;
using kernels::StepRun;

// Says that it repeats steps, so that they are padded; runs them like any other.
class PaddedReference : public kernels::ReferenceBackend {
 public:
  bool repeats_steps() const override { return true; }
};

TEST(PaddedRows, GrowsInStepsAndIsNeverLess) {
  int32_t previous = 0, sizes = 0;
  for (int32_t rows = 1; rows <= 512; ++rows) {
    const int32_t padded = PaddedRows(rows);
    EXPECT_GE(padded, rows);
    EXPECT_GE(padded, previous);
    EXPECT_LT(padded, rows + std::max(rows, 8));
    EXPECT_LE(padded, rows + 63);
    EXPECT_EQ(PaddedRows(padded), padded);
    sizes += padded != previous;
    previous = padded;
  }
  EXPECT_LE(sizes, 24);
}

// Sequences that come and go, each with a prompt of its own length; the same steps on both.
class Traffic {
 public:
  Traffic(const ModelSpec& spec, unsigned seed) : vocab_(spec.vocab_size), random_(seed) {}

  // Runs `steps` steps on both runners and compares what they give.
  void Run(int steps, PagedRunner* one, PagedRunner* other) {
    for (int step = 0; step < steps && !::testing::Test::HasFailure(); ++step) {
      if (live_.empty() || (live_.size() < 13 && random_() % 4 == 0)) Start(one, other);
      if (live_.size() > 1 && random_() % 9 == 0) Stop(one, other);
      std::vector<Piece> pieces;
      for (const int sequence : live_) {
        pieces.push_back({.sequence = sequence,
                          .tokens = {Token()},
                          .num_logits = 1,
                          .numerics = NumericsClass::kGenerated});
      }
      Step(pieces, one, other);
    }
  }

 private:
  int32_t Token() { return static_cast<int32_t>(random_() % static_cast<unsigned>(vocab_)); }

  void Start(PagedRunner* one, PagedRunner* other) {
    Piece prompt{.sequence = next_++, .num_logits = 1};
    const unsigned length = 1 + random_() % 200;
    for (unsigned i = 0; i < length; ++i) prompt.tokens.push_back(Token());
    live_.push_back(prompt.sequence);
    Step({prompt}, one, other);
  }

  void Stop(PagedRunner* one, PagedRunner* other) {
    const auto at = live_.begin() + static_cast<ptrdiff_t>(random_() % live_.size());
    for (PagedRunner* runner : {one, other}) runner->Drop(*at);
    live_.erase(at);
  }

  static void Step(const std::vector<Piece>& pieces, PagedRunner* one, PagedRunner* other) {
    for (PagedRunner* runner : {one, other}) {
      const absl::Status status = runner->Step(pieces);
      ASSERT_TRUE(status.ok()) << status;
    }
    ASSERT_EQ(one->logits, other->logits) << pieces.size() << " pieces";
    for (size_t p = 0; p < one->counters.size(); ++p) {
      EXPECT_EQ(one->counters[p].keys_total, other->counters[p].keys_total);
      EXPECT_EQ(one->counters[p].keys_visible, other->counters[p].keys_visible);
    }
  }

  int32_t vocab_;
  std::mt19937 random_;
  std::vector<int> live_;
  int next_ = 0;
};

class RepeatableTest : public ::testing::TestWithParam<TinyOptions> {};

TEST_P(RepeatableTest, PaddingChangesNoBits) {
  const TinyModel model(GetParam());
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  PagedRunner plain(&model.spec, "{}");
  PagedRunner padded(&model.spec, "{}", std::make_unique<PaddedReference>(), KvDType::kF32);
  Traffic(model.spec, seed).Run(12, &plain, &padded);
  EXPECT_FALSE(plain.repeatable.has_value());
  EXPECT_EQ(padded.repeatable, StepRun::kLaunched);
}

constexpr const char* kRankedPlans[] = {
    R"({"default": {"pattern": "quest", "budget_tokens": 128}})",
    R"({"default": {"pattern": "block_topk", "fraction": 0.3, "sink_pages": 1}})",
    R"({"default": {"pattern": "native"}, "layers": [{"layers": "1-2", "pattern": "quest", "fraction": 0.2,
        "recent_pages": 2}]})",
    R"({"default": {"pattern": "infllm_v2", "topk": 2, "window_size": 64, "dense_len": 100}})",
    R"({"default": {"pattern": "moba", "chunk_size": 128, "topk": 2, "generated": true}})"};

TEST(Repeatable, PaddingChangesNoBitsOfRankedLists) {
  const TinyModel model({.name = "full"});
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  for (const char* plan : kRankedPlans) {
    PagedRunner plain(&model.spec, plan);
    PagedRunner padded(&model.spec, plan, std::make_unique<PaddedReference>(), KvDType::kF32);
    Traffic(model.spec, seed).Run(40, &plain, &padded);
    EXPECT_FALSE(plain.repeatable.has_value());
    EXPECT_EQ(padded.repeatable, StepRun::kLaunched);
  }
}

// Where the limits leave no room for padding.
TEST(Repeatable, StepsOfTheLargestSizeAreNotPadded) {
  const TinyModel model({.name = "full"});
  PagedRunner plain(&model.spec, "{}");
  PagedRunner padded(&model.spec, "{}", std::make_unique<PaddedReference>(), KvDType::kF32, 13);
  for (PagedRunner* runner : {&plain, &padded}) {
    std::vector<Piece> pieces;
    for (int s = 0; s < 13; ++s) {
      pieces.push_back({.sequence = s,
                        .tokens = {s},
                        .num_logits = 1,
                        .numerics = NumericsClass::kGenerated});
    }
    ASSERT_TRUE(runner->Step(pieces).ok());
    ASSERT_TRUE(runner->Step(pieces).ok());
  }
  EXPECT_EQ(plain.logits, padded.logits);
}

std::unique_ptr<kernels::Backend> Cuda(bool graphs) {
  auto backend = kernels::MakeBackend(BackendKind::kCuda,
                                      {.kernels = TestKernels(), .cuda_graphs = graphs});
  return backend.ok() ? *std::move(backend) : nullptr;
}

// Launched without graphs against launched, recorded and replayed.
TEST_P(RepeatableTest, CudaGraphsChangeNoBits) {
  const TinyModel model(GetParam());
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  for (const KvDType dtype : {KvDType::kF16, KvDType::kF32, KvDType::kFp8}) {
    auto without = Cuda(false), with = Cuda(true);
    if (with == nullptr) GTEST_SKIP() << "no CUDA device can be used";
    PagedRunner plain(&model.spec, "{}", std::move(without), dtype);
    PagedRunner graphs(&model.spec, "{}", std::move(with), dtype);
    if (model.spec.layers[0].attention.gates > 0) {
      const absl::Status dry = graphs.decoder().DryRun(16, 1024);
      EXPECT_EQ(dry.code(), absl::StatusCode::kUnimplemented) << dry;
      return;
    }
    ASSERT_TRUE(graphs.decoder().DryRun(16, 1024).ok());
    Traffic traffic(model.spec, seed);
    traffic.Run(60, &plain, &graphs);
    EXPECT_FALSE(plain.repeatable.has_value());
    // By now the sizes are known: a sequence's steps replay, but for those that outgrow a size.
    int replayed = 0;
    for (int step = 0; step < 20; ++step) {
      traffic.Run(1, &plain, &graphs);
      replayed += graphs.repeatable == StepRun::kReplayed;
    }
    EXPECT_GE(replayed, 8);
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, RepeatableTest, ::testing::ValuesIn(Architectures()),
                         [](const auto& info) { return info.param.name; });

// Heads of the tensor-core kernels, weights in their types, lists long enough to be cut into parts.
TEST(Repeatable, CudaGraphsChangeNoBitsOfTensorCores) {
  if (Cuda(true) == nullptr) GTEST_SKIP() << "no CUDA device can be used";
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  for (const char* plan :
       {"{}", R"({"default": {"pattern": "window", "window": 200, "sink_tokens": 64}})",
        R"({"default": {"pattern": "strided", "stride": 64, "local": 64}})", kRankedPlans[0],
        kRankedPlans[1], kRankedPlans[2], kRankedPlans[3], kRankedPlans[4]}) {
    const TinyModel model({.name = "wide",
                           .heads = 8,
                           .kv_heads = 2,
                           .head_dim = 64,
                           .dim = 128,
                           .ffn = 192,
                           .window = 100,
                           .max_positions = 8192});
    PagedRunner plain(&model.spec, plan, Cuda(false), KvDType::kF16, 4096);
    PagedRunner graphs(&model.spec, plan, Cuda(true), KvDType::kF16, 4096);
    ASSERT_TRUE(graphs.decoder().DryRun(4, 8192).ok());
    std::mt19937 random(seed);
    for (PagedRunner* runner : {&plain, &graphs}) {
      ASSERT_TRUE(runner->Step({{.sequence = 0, .tokens = RandomTokens(3000, 97, seed)}}).ok());
      ASSERT_TRUE(runner->Step({{.sequence = 1, .tokens = RandomTokens(700, 97, seed)}}).ok());
    }
    int replayed = 0;
    for (int step = 0; step < 70; ++step) {
      std::vector<Piece> pieces;
      for (int s = 0; s < 2; ++s) {
        pieces.push_back({.sequence = s,
                          .tokens = {static_cast<int32_t>(random() % 97)},
                          .num_logits = 1,
                          .numerics = NumericsClass::kGenerated});
      }
      ASSERT_TRUE(plain.Step(pieces).ok());
      ASSERT_TRUE(graphs.Step(pieces).ok());
      ASSERT_EQ(plain.logits, graphs.logits) << plan << " step " << step;
      replayed += graphs.repeatable == StepRun::kReplayed;
    }
    EXPECT_GE(replayed, 66) << plan;
  }
}

}  // namespace
}  // namespace longstride::model

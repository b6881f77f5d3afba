// Layers whose indexer chooses tokens, or that sum several attentions (NSA), on tiny checkpoints,
// in every way that a sequence may be computed and with every type of cache: the same bits. That
// they are the right ones: the parity tests.
#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference_backend.h"
#include "model/families/family.h"
#include "tests/model/decoder/architectures.h"
#include "tests/model/decoder/paged_runner.h"

namespace longstride::model {
namespace {

using kernels::BackendKind;
using kernels::KvDType;

constexpr auto kGenerated = NumericsClass::kGenerated;
constexpr size_t kPrompt = 210, kAll = 230;  // of which a query reads 21, or (NSA) 3 blocks of 4

struct Checkpoint {
  std::unique_ptr<WeightsFile> file;
  ModelSpec spec;

  explicit Checkpoint(const std::string& name) {
    auto opened =
        WeightsFile::Open(StrCat(LONGSTRIDE_SOURCE_DIR, "/tests/parity/families/data/", name));
    EXPECT_TRUE(opened.ok()) << opened.status();
    file = *std::move(opened);
    auto loaded = LoadModelSpec(*file);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    spec = *std::move(loaded);
  }
};

using Parameters = std::tuple<std::string, BackendKind, KvDType>;

class LearnedSparsityTest : public ::testing::TestWithParam<Parameters> {
 protected:
  std::unique_ptr<PagedRunner> NewRunner(int num_threads = 1) {
    const auto& [name, kind, dtype] = GetParam();
    return std::make_unique<PagedRunner>(&model_.spec, "{}", kind, dtype, 512, num_threads);
  }
  // The prompt's rows from `begin` on in chunks, then the rest token by token.
  FloatRows Compute(PagedRunner* runner, int sequence, size_t begin, int32_t chunk) {
    FloatRows rows = runner->Prefill(
        sequence, {tokens_.begin() + static_cast<ptrdiff_t>(begin), tokens_.begin() + kPrompt},
        chunk);
    for (size_t t = kPrompt; t < kAll; ++t) {
      const FloatRows row = runner->Prefill(sequence, {tokens_[t]}, 1, 0, kGenerated);
      rows.insert(rows.end(), row.begin(), row.end());
    }
    return rows;
  }

  const Checkpoint model_{std::get<0>(GetParam())};
  const std::vector<int32_t> tokens_ = RandomTokens(kAll, model_.spec.vocab_size, 29);
};

TEST_P(LearnedSparsityTest, HowItIsComputedDoesNotChangeBits) {
  const auto runner = NewRunner();
  EXPECT_EQ(runner->plan().chunk_alignment, 1);
  EXPECT_TRUE(runner->plan().one_numerics_class);
  const FloatRows want = Compute(runner.get(), 0, 0, kPrompt);
  int sequence = 1;
  for (const int32_t chunk : {1, 63, 64, 65}) {
    EXPECT_TRUE(Compute(runner.get(), sequence, 0, chunk) == want) << "chunks of " << chunk;
    runner->Drop(sequence++);
  }
  // Prompt and generated tokens are one function.
  EXPECT_TRUE(runner->Prefill(sequence, tokens_, 512) == want);
  runner->Drop(sequence++);
  // A prefix hit, in decoding preempted and resumed with what it had, in another cut.
  for (const int32_t hit : {64, 192}) {
    const FloatRows rest(want.begin() + hit, want.end());
    runner->Share(0, sequence, hit);
    EXPECT_TRUE(Compute(runner.get(), sequence, static_cast<size_t>(hit), 512) == rest);
    runner->Drop(sequence);
    runner->Share(0, sequence, hit);
    EXPECT_TRUE(runner->Prefill(sequence, {tokens_.begin() + hit, tokens_.end()}, 50, 0,
                                kGenerated) == rest);
    runner->Drop(sequence++);
  }
}

TEST_P(LearnedSparsityTest, CompanyAndUnwantedRowsDoNotChangeBits) {
  const auto single = NewRunner();
  const FloatRows want = Compute(single.get(), 0, 0, kPrompt);
  const auto busy = NewRunner(/*num_threads=*/2);
  const std::vector<int32_t> other = RandomTokens(150, model_.spec.vocab_size, 5);
  busy->Prefill(5, other, 512);
  for (size_t at = 0; at < kAll;) {
    const bool generated = at >= kPrompt;
    const size_t count = generated ? 1 : std::min<size_t>(90, kPrompt - at);
    ASSERT_TRUE(busy->Step({{.sequence = 1,
                             .tokens = {tokens_.begin() + static_cast<ptrdiff_t>(at),
                                        tokens_.begin() + static_cast<ptrdiff_t>(at + count)},
                             .num_logits = 1,
                             .numerics = generated ? kGenerated : NumericsClass::kPrompt},
                            {.sequence = 5,
                             .tokens = {other[at % other.size()]},
                             .num_logits = 1,
                             .numerics = kGenerated}})
                    .ok());
    at += count;
    EXPECT_TRUE(busy->logits[0] == want[at - 1]) << "row " << at - 1;
  }
}

TEST_P(LearnedSparsityTest, CountsTheKeysThatAreRead) {
  const auto runner = NewRunner();
  const std::vector<Piece> prompt = {
      {.sequence = 0, .tokens = tokens_, .num_logits = static_cast<int32_t>(kAll)}};
  ASSERT_TRUE(runner->Step(prompt).ok());
  ASSERT_EQ(runner->counters.size(), runner->plan().patterns.size());
  const int64_t heads = 4 * std::ssize(model_.spec.layers);
  int64_t total = 0;
  for (const PatternCounters& counters : runner->counters) {
    const SparsePattern& pattern = *runner->plan().patterns[static_cast<size_t>(counters.pattern)];
    double visible = 0;
    for (size_t i = 0; i < kAll; ++i) visible += pattern.VisibleKeys(static_cast<int64_t>(i));
    EXPECT_EQ(static_cast<double>(counters.keys_visible), static_cast<double>(heads) * visible);
    EXPECT_GE(counters.keys_read, counters.keys_visible);
    // The cpu backend scores 16 at once, of means too.
    EXPECT_LT(counters.keys_read, 2 * counters.keys_visible + heads * int64_t{16 * kAll});
    total += counters.keys_total;
  }
  EXPECT_EQ(total, heads * static_cast<int64_t>(kAll * (kAll + 1) / 2));
}

std::string TestName(const ::testing::TestParamInfo<Parameters>& info) {
  const auto& [name, kind, dtype] = info.param;
  return StrCat(name, kind == BackendKind::kCpu ? "_cpu_" : "_reference_",
                kernels::KvDTypeName(dtype));
}

INSTANTIATE_TEST_SUITE_P(Cpu, LearnedSparsityTest,
                         ::testing::Combine(::testing::Values("deepseek_v32", "glm_moe_dsa", "nsa"),
                                            ::testing::Values(BackendKind::kCpu),
                                            ::testing::Values(KvDType::kF32, KvDType::kF16,
                                                              KvDType::kBF16, KvDType::kQ8,
                                                              KvDType::kFp8)),
                         TestName);
INSTANTIATE_TEST_SUITE_P(Reference, LearnedSparsityTest,
                         ::testing::Combine(::testing::Values("deepseek_v32", "glm_moe_dsa", "nsa"),
                                            ::testing::Values(BackendKind::kReference),
                                            ::testing::Values(KvDType::kF32)),
                         TestName);

// Says that it repeats steps, so that they are padded; runs them like any other.
class PaddedReference : public kernels::ReferenceBackend {
 public:
  bool repeats_steps() const override { return true; }
};

TEST(LearnedSparsity, PaddingChangesNoBits) {
  for (const char* name : {"deepseek_v32", "glm_moe_dsa", "nsa"}) {
    const Checkpoint model(name);
    PagedRunner plain(&model.spec, "{}");
    PagedRunner padded(&model.spec, "{}", std::make_unique<PaddedReference>(), KvDType::kF32);
    for (PagedRunner* runner : {&plain, &padded}) {
      for (int s = 0; s < 3; ++s) {
        runner->Prefill(
            s, RandomTokens(10 + 90 * static_cast<size_t>(s), model.spec.vocab_size, 7 + s), 512);
      }
    }
    for (int32_t step = 0; step < 8; ++step) {
      std::vector<Piece> pieces;
      for (int s = 0; s < 3; ++s) {
        pieces.push_back(
            {.sequence = s, .tokens = {8 * s + step}, .num_logits = 1, .numerics = kGenerated});
      }
      ASSERT_TRUE(plain.Step(pieces).ok());
      ASSERT_TRUE(padded.Step(pieces).ok());
      EXPECT_EQ(padded.repeatable, kernels::StepRun::kLaunched);
      EXPECT_TRUE(plain.logits == padded.logits);
      for (size_t p = 0; p < plain.counters.size(); ++p) {
        EXPECT_EQ(plain.counters[p].keys_visible, padded.counters[p].keys_visible);
      }
    }
  }
}

// A query that sees no more than it may choose reads all of it: dense attention, to the bit.
TEST(Indexer, ALargeNumberOfTokensIsDense) {
  const Checkpoint model("deepseek_v32");
  const std::vector<int32_t> tokens = RandomTokens(200, model.spec.vocab_size, 3);
  PagedRunner all(&model.spec, R"({"default": {"pattern": "dsa", "topk": 200}})",
                  BackendKind::kCpu);
  PagedRunner dense(&model.spec, R"({"default": {"pattern": "dense"}})", BackendKind::kCpu);
  PagedRunner less(&model.spec, R"({"default": {"pattern": "dsa", "topk": 199}})",
                   BackendKind::kCpu);
  const FloatRows want = dense.Prefill(0, tokens, 512);
  EXPECT_TRUE(all.Prefill(0, tokens, 512) == want);
  const FloatRows fewer = less.Prefill(0, tokens, 512);
  EXPECT_TRUE(std::equal(want.begin(), want.end() - 1, fewer.begin()));
  EXPECT_FALSE(fewer.back() == want.back());
}

// Heads of a layer that sums attentions may read other numbers of blocks and keys.
TEST(Nsa, HeadsMayReadOtherNumbers) {
  const Checkpoint model("nsa");
  const std::vector<int32_t> tokens = RandomTokens(320, model.spec.vocab_size, 4);
  for (const BackendKind kind : {BackendKind::kReference, BackendKind::kCpu}) {
    PagedRunner native(&model.spec, "{}", kind);
    const FloatRows want = native.Prefill(0, tokens, 512);
    const auto rule = [](const std::string& numbers) {
      return StrCat(R"({"layers": [{"heads": "1-2", "pattern": "nsa")", numbers, "}]}");
    };
    PagedRunner same(&model.spec, rule(R"(, "block_counts": 3, "window_size": 100)"), kind);
    EXPECT_TRUE(same.Prefill(0, tokens, 512) == want);
    PagedRunner other(&model.spec, rule(R"(, "block_counts": 2, "window_size": 0)"), kind);
    const FloatRows whole = other.Prefill(0, tokens, 512);
    EXPECT_TRUE(other.Prefill(1, tokens, 13) == whole);
    EXPECT_FALSE(whole.back() == want.back());
  }
}

// Some heads may be served densely; the others' set stays what it was.
TEST(Indexer, HeadsMayHaveOtherPatterns) {
  const Checkpoint model("glm_moe_dsa");
  const std::vector<int32_t> tokens = RandomTokens(120, model.spec.vocab_size, 4);
  for (const BackendKind kind : {BackendKind::kReference, BackendKind::kCpu}) {
    PagedRunner runner(&model.spec, R"({"default": {"pattern": "native"},
                                        "layers": [{"heads": "1-2", "pattern": "dense"}]})",
                       kind);
    const FloatRows whole = runner.Prefill(0, tokens, 512);
    EXPECT_TRUE(runner.Prefill(1, tokens, 13) == whole);
    PagedRunner native(&model.spec, "{}", kind);
    EXPECT_FALSE(native.Prefill(0, tokens, 512).back() == whole.back());
  }
}

}  // namespace
}  // namespace longstride::model

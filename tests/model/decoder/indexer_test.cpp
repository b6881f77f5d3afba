// Layers whose indexer chooses tokens, on tiny checkpoints, in every way that a sequence may be
// computed and with every type of cache: the same bits. That they are the right ones: the parity
// tests.
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
constexpr size_t kPrompt = 210, kAll = 230;  // of which a query reads 21

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

class IndexerTest : public ::testing::TestWithParam<Parameters> {
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

TEST_P(IndexerTest, HowItIsComputedDoesNotChangeBits) {
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

TEST_P(IndexerTest, CompanyAndUnwantedRowsDoNotChangeBits) {
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

TEST_P(IndexerTest, CountsTheKeysThatAreRead) {
  const auto runner = NewRunner();
  const std::vector<Piece> prompt = {
      {.sequence = 0, .tokens = tokens_, .num_logits = static_cast<int32_t>(kAll)}};
  ASSERT_TRUE(runner->Step(prompt).ok());
  ASSERT_EQ(runner->counters.size(), 1u);
  const int64_t heads = 4 * std::ssize(model_.spec.layers);
  const int64_t topk = model_.spec.layers[0].attention.native.dsa.topk;
  int64_t visible = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(kAll); ++i) visible += std::min(topk, i + 1);
  EXPECT_EQ(runner->counters[0].keys_visible, heads * visible);
  EXPECT_GE(runner->counters[0].keys_read, heads * visible);  // the cpu backend scores 16 at once
  EXPECT_LT(runner->counters[0].keys_read, 2 * heads * visible);
  EXPECT_EQ(runner->counters[0].keys_total, heads * static_cast<int64_t>(kAll * (kAll + 1) / 2));
}

std::string TestName(const ::testing::TestParamInfo<Parameters>& info) {
  const auto& [name, kind, dtype] = info.param;
  return StrCat(name, kind == BackendKind::kCpu ? "_cpu_" : "_reference_",
                kernels::KvDTypeName(dtype));
}

INSTANTIATE_TEST_SUITE_P(Cpu, IndexerTest,
                         ::testing::Combine(::testing::Values("deepseek_v32", "glm_moe_dsa"),
                                            ::testing::Values(BackendKind::kCpu),
                                            ::testing::Values(KvDType::kF32, KvDType::kF16,
                                                              KvDType::kBF16, KvDType::kQ8,
                                                              KvDType::kFp8)),
                         TestName);
INSTANTIATE_TEST_SUITE_P(Reference, IndexerTest,
                         ::testing::Combine(::testing::Values("deepseek_v32", "glm_moe_dsa"),
                                            ::testing::Values(BackendKind::kReference),
                                            ::testing::Values(KvDType::kF32)),
                         TestName);

// Says that it repeats steps, so that they are padded; runs them like any other.
class PaddedReference : public kernels::ReferenceBackend {
 public:
  bool repeats_steps() const override { return true; }
};

TEST(Indexer, PaddingChangesNoBits) {
  for (const char* name : {"deepseek_v32", "glm_moe_dsa"}) {
    const Checkpoint model(name);
    PagedRunner plain(&model.spec, "{}");
    PagedRunner padded(&model.spec, "{}", std::make_unique<PaddedReference>(), KvDType::kF32);
    for (PagedRunner* runner : {&plain, &padded}) {
      for (int s = 0; s < 3; ++s) {
        runner->Prefill(s, RandomTokens(10 + 40 * static_cast<size_t>(s), 96, 7 + s), 512);
      }
    }
    for (int32_t step = 0; step < 8; ++step) {
      std::vector<Piece> pieces;
      for (int s = 0; s < 3; ++s) {
        pieces.push_back(
            {.sequence = s, .tokens = {10 * s + step}, .num_logits = 1, .numerics = kGenerated});
      }
      ASSERT_TRUE(plain.Step(pieces).ok());
      ASSERT_TRUE(padded.Step(pieces).ok());
      EXPECT_EQ(padded.repeatable, kernels::StepRun::kLaunched);
      EXPECT_TRUE(plain.logits == padded.logits);
      EXPECT_EQ(plain.counters[0].keys_visible, padded.counters[0].keys_visible);
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

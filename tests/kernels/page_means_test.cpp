// Attention over the means of pages, and sums of attention by gates: every backend that has them
// against the formulas of paged_kv.h and attention_parts.h.
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant.h"
#include "tests/kernels/mirrored_backend.h"
#include "tests/kernels/stored_keys.h"
#include "tests/kernels/test_util.h"

namespace longstride::kernels {
namespace {

using ::testing::HasSubstr;

class PageMeansTest : public SeededTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    backend_ = MakeByName(GetParam());
    if (backend_ == nullptr) GTEST_SKIP() << "this machine has no " << GetParam();
  }

  // A cache of one sequence with summaries that hold the values' mean.
  struct Case {
    int32_t q_heads, kv_heads, dim;
    KvDType dtype;
    int64_t tokens;
    std::vector<float> keys, values;  // as stored [tokens, KV heads, dim]
    std::vector<int32_t> pages;
    std::shared_ptr<Buffer> memory;
    PagedKv cache;
    PageTable table() const {
      return {
          .pages = pages.data(), .stride = static_cast<int64_t>(pages.size()), .num_sequences = 1};
    }
    // The mean of a channel of a page's keys or values of one head.
    double Mean(const std::vector<float>& of, int64_t page, int64_t head, int64_t d) const {
      double sum = 0;
      for (int64_t j = page * kPageTokens; j < (page + 1) * kPageTokens; ++j) {
        sum += of[static_cast<size_t>((j * kv_heads + head) * dim + d)];
      }
      return sum / kPageTokens;
    }
  };

  Case RandomCase() {
    Case c;
    c.kv_heads = RandomInt(1, 3);
    c.q_heads = c.kv_heads * RandomInt(1, 5);
    c.dim = std::vector<int32_t>{8, 24, 64, 100, 128}[static_cast<size_t>(RandomInt(0, 4))];
    c.dtype = static_cast<KvDType>(RandomInt(0, 4));
    c.tokens = 64 * RandomInt(1, 150) + RandomInt(-1, 70);
    const int64_t plane = KvHeadPageBytes(c.dtype, c.dim) * c.kv_heads;
    const int64_t page =
        (2 * plane + PageSummaryBytes(c.dtype, c.dim, false, true) * c.kv_heads + 63) / 64 * 64;
    const auto num_pages = static_cast<int32_t>((c.tokens + kPageTokens - 1) / kPageTokens + 2);
    c.memory = std::make_shared<Buffer>(*backend_->Reserve(page * num_pages));
    std::memset(c.memory->data(), 0xff, c.memory->bytes());
    auto* base = c.memory->as<char>();
    c.cache = {.k = base,
               .v = base + plane,
               .page_stride = page,
               .head_stride = KvHeadPageBytes(c.dtype, c.dim),
               .num_pages = num_pages,
               .num_heads = c.kv_heads,
               .head_dim = c.dim,
               .dtype = c.dtype,
               .value_mean = true,
               .summaries = base + 2 * plane};
    if (c.dtype == KvDType::kFp8) {
      c.cache.k_scale = 0.5f;
      c.cache.v_scale = 0.25f;
    }
    c.pages.resize(static_cast<size_t>(num_pages));
    std::iota(c.pages.begin(), c.pages.end(), 0);
    std::shuffle(c.pages.begin(), c.pages.end(), rng);
    c.keys = Normal(c.tokens * c.kv_heads * c.dim);
    c.values = Normal(c.tokens * c.kv_heads * c.dim);
    std::vector<int32_t> page_ids, slots, counts;
    for (int64_t j = 0; j < c.tokens; ++j) {
      page_ids.push_back(c.pages[static_cast<size_t>(j / kPageTokens)]);
      slots.push_back(static_cast<int32_t>(j % kPageTokens));
    }
    for (int64_t j = 0; j < c.tokens; j += kPageTokens) {
      counts.push_back(static_cast<int32_t>(std::min<int64_t>(kPageTokens, c.tokens - j)));
    }
    EXPECT_TRUE(backend_
                    ->KvWrite({.k = View3(c.keys, c.tokens, c.kv_heads, c.dim),
                               .v = View3(c.values, c.tokens, c.kv_heads, c.dim),
                               .cache = c.cache,
                               .page_ids = page_ids.data(),
                               .slots = slots.data()})
                    .ok());
    EXPECT_TRUE(backend_
                    ->SummarizePages({.cache = c.cache,
                                      .page_ids = c.pages.data(),
                                      .counts = counts.data(),
                                      .num_pages = static_cast<int32_t>(counts.size())})
                    .ok());
    for (auto& [stored, scale] :
         {std::pair(&c.keys, c.cache.k_scale), std::pair(&c.values, c.cache.v_scale)}) {
      for (float& x : *stored) x /= scale;
      RoundAsStored(c.dtype, c.dim, stored);
      for (float& x : *stored) x *= scale;
    }
    return c;
  }

  std::unique_ptr<Backend> backend_;
};

// Rows anywhere read prefixes of the list of means, in one call; those of no page are zero.
TEST_P(PageMeansTest, AttendsToMeansOfPages) {
  for (int trial = 0; trial < 15; ++trial) {
    Case c = RandomCase();
    SCOPED_TRACE(testing::Message()
                 << "heads " << c.q_heads << "/" << c.kv_heads << " dim " << c.dim << " "
                 << KvDTypeName(c.dtype) << " tokens " << c.tokens);
    const int64_t rows = std::min<int64_t>(c.tokens, 70), first = c.tokens - rows;
    std::vector<float> q = Normal(rows * c.q_heads * c.dim);
    std::vector<float> out(q.size(), NAN);
    std::vector<QueryTile> tiles;
    std::vector<int64_t> begin(static_cast<size_t>(rows), 0);
    std::vector<int32_t> counts, entries(static_cast<size_t>(c.tokens / kPageTokens));
    std::iota(entries.begin(), entries.end(), 0);
    for (int32_t r = 0; r < rows; ++r) {
      tiles.push_back({0, r, 1, static_cast<int32_t>(first) + r});
      counts.push_back(static_cast<int32_t>((first + r + 1) / kPageTokens));
    }
    const EdgeRule edge;
    const auto pages = static_cast<int32_t>(c.tokens / kPageTokens);
    AttentionCounters counters;
    const float scale = 2.0f / std::sqrt(static_cast<float>(c.dim));
    ASSERT_LS_OK(
        backend_->Attention({.q = View3(q, rows, c.q_heads, c.dim),
                             .cache = MeansOf(c.cache),
                             .page_table = c.table(),
                             .kv_lens = &pages,
                             .selection = {.entry_tokens = 1,
                                           .query_tile = 1,
                                           .num_tiles = static_cast<int32_t>(rows),
                                           .tiles = tiles.data(),
                                           .list_begin = begin.data(),
                                           .list_count = counts.data(),
                                           .entries = entries.data(),
                                           .num_entries = static_cast<int64_t>(entries.size()),
                                           .edges = &edge},
                             .scale = scale,
                             .out = View3(out, rows, c.q_heads, c.dim),
                             .counters = &counters}));
    int64_t visible = 0;
    // Means are of at least 11 bits, but for bf16.
    const double slack = c.dtype == KvDType::kBF16 ? 2e-2 : c.dtype == KvDType::kF32 ? 1e-4 : 3e-3;
    for (int64_t r = 0; r < rows; ++r) {
      visible += int64_t{counts[static_cast<size_t>(r)]} * c.q_heads;
      for (int64_t h = 0; h < c.q_heads; ++h) {
        const int64_t kv = h / (c.q_heads / c.kv_heads);
        std::vector<double> weights;
        double total = 0;
        for (int64_t page = 0; page < counts[static_cast<size_t>(r)]; ++page) {
          double s = 0;
          for (int64_t d = 0; d < c.dim; ++d) {
            s += q[static_cast<size_t>((r * c.q_heads + h) * c.dim + d)] *
                 c.Mean(c.keys, page, kv, d);
          }
          weights.push_back(std::exp(s * scale));
          total += weights.back();
        }
        // Few channels are enough: all come of the same weights.
        for (int64_t d = 0; d < c.dim; d += 7) {
          double want = 0;
          for (size_t page = 0; page < weights.size(); ++page) {
            want += weights[page] / total * c.Mean(c.values, static_cast<int64_t>(page), kv, d);
          }
          ASSERT_NEAR(out[static_cast<size_t>((r * c.q_heads + h) * c.dim + d)], want, slack)
              << "row " << r << " head " << h << " channel " << d;
        }
      }
    }
    EXPECT_EQ(counters.keys_visible, visible);
  }
}

TEST_P(PageMeansTest, RefusesWhatIsNotAttention) {
  Case c = RandomCase();
  const PagedKv means = MeansOf(c.cache);
  const int32_t id = 0, slot = 0;
  EXPECT_THAT(std::string(backend_
                              ->KvWrite({.k = View3(c.keys, 1, c.kv_heads, c.dim),
                                         .v = View3(c.values, 1, c.kv_heads, c.dim),
                                         .cache = means,
                                         .page_ids = &id,
                                         .slots = &slot})
                              .message()),
              HasSubstr("pages of 64 entries"));
  // Whole pages of entries are none of it either.
  std::vector<float> q = Normal(c.q_heads * c.dim), out = q;
  const QueryTile tile = {0, 0, 1, 0};
  const int64_t begin = 0;
  const int32_t count = 0, length = 0;
  const EdgeRule edge;
  EXPECT_THAT(std::string(backend_
                              ->Attention({.q = View3(q, 1, c.q_heads, c.dim),
                                           .cache = means,
                                           .page_table = c.table(),
                                           .kv_lens = &length,
                                           .selection = {.num_tiles = 1,
                                                         .tiles = &tile,
                                                         .list_begin = &begin,
                                                         .list_count = &count,
                                                         .edges = &edge},
                                           .out = View3(out, 1, c.q_heads, c.dim)})
                              .message()),
              HasSubstr("single entries of a cache of means"));
}

TEST_P(PageMeansTest, SumsPartsByTheirGates) {
  for (int trial = 0; trial < 10; ++trial) {
    const int64_t rows = RandomInt(0, 40), heads = RandomInt(1, 9), dim = RandomInt(1, 70);
    const int32_t num_parts = RandomInt(1, kMaxAttentionParts);
    std::vector<std::vector<float>> parts;
    for (int32_t i = 0; i < num_parts; ++i) parts.push_back(Normal(rows * heads * dim));
    // Gates in a wider matrix, as they lie behind queries, keys and values.
    const int64_t width = heads * num_parts + 5;
    std::vector<float> wide = Normal(rows * width), out(parts[0].size(), NAN);
    if (!wide.empty()) wide[0] = -200.0f;  // a gate that is shut
    GateAttentionParams p = {.num_parts = num_parts, .out = View3(out, rows, heads, dim)};
    p.gates = TensorView::Matrix(wide.data(), DType::kF32, rows, width);
    p.gates.shape[1] = heads * num_parts;
    for (int32_t i = 0; i < num_parts; ++i) p.parts[i] = View3(parts[i], rows, heads, dim);
    ASSERT_LS_OK(backend_->GateAttention(p));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t d = 0; d < dim; ++d) {
          const auto at = static_cast<size_t>((r * heads + h) * dim + d);
          double want = 0;
          for (int32_t i = 0; i < num_parts; ++i) {
            want +=
                parts[static_cast<size_t>(i)][at] /
                (1 + std::exp(-double{wide[static_cast<size_t>(r * width + h * num_parts + i)]}));
          }
          ASSERT_NEAR(out[at], want, 1e-5);
        }
      }
    }
  }
}

TEST_P(PageMeansTest, RefusesGatesThatDoNotFit) {
  std::vector<float> part = Normal(6), gates = Normal(5), out(6);
  GateAttentionParams p = {.num_parts = 2, .out = View3(out, 1, 3, 2)};
  p.parts[0] = p.parts[1] = View3(part, 1, 3, 2);
  p.gates = TensorView::Matrix(gates.data(), DType::kF32, 1, 5);
  EXPECT_EQ(backend_->GateAttention(p).code(), absl::StatusCode::kInternal);
  p.num_parts = 4;
  EXPECT_THAT(std::string(backend_->GateAttention(p).message()), HasSubstr("1 to 3 parts"));
}

INSTANTIATE_TEST_SUITE_P(Backends, PageMeansTest,
                         testing::Values("reference", "portable", "avx2", "avxvnni", "avx512vnni"),
                         [](const auto& info) { return std::string(info.param); });

TEST(PageMeansOnCuda, AreRefusedInOneSentence) {
  const auto backend = MakeByName("cuda");
  if (backend == nullptr) GTEST_SKIP() << "this machine has no cuda";
  std::vector<float> part(6, 1.0f), gates(3, 1.0f), out(6);
  GateAttentionParams p = {.num_parts = 1, .out = View3(out, 1, 3, 2)};
  p.parts[0] = View3(part, 1, 3, 2);
  p.gates = View2(gates, 1, 3);
  const absl::Status status = backend->GateAttention(p);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("serve this checkpoint with the cpu backend"));
}

}  // namespace
}  // namespace longstride::kernels

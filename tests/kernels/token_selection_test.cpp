// Lists of tokens made by an indexer's queries, on every backend that has the op, against naive
// answers in double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "gmock/gmock.h"
#include "tests/kernels/mirrored_backend.h"
#include "tests/kernels/stored_keys.h"
#include "tests/kernels/test_util.h"

namespace longstride::kernels {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A few sequences' index keys on scattered pages, and rows that choose among them. Memory that
// nobody wrote holds NaN.
struct TokenCase {
  int32_t heads = 4, dim = 64;
  KvDType dtype = KvDType::kF32;
  std::vector<int64_t> kv_lens;
  std::vector<std::vector<float>> keys;  // [sequence]: [kv_len, dim] as stored
  std::vector<QueryTile> tiles;
  std::vector<int32_t> counts;
  std::vector<float> q, weights;  // [rows, heads, dim], [rows, heads]
  int32_t rows = 0;

  std::shared_ptr<Buffer> memory;
  PagedKv cache;
  std::vector<int32_t> pages;
  int64_t stride = 1;
  std::vector<int64_t> list_begin;
  std::vector<int32_t> entries;

  void AddTile(int32_t sequence, int64_t first_position, int32_t num_rows, int64_t count) {
    tiles.push_back({sequence, rows, num_rows, static_cast<int32_t>(first_position)});
    counts.push_back(static_cast<int32_t>(count));
    rows += num_rows;
  }
  std::vector<int32_t> List(size_t t) const {
    const auto begin = entries.begin() + list_begin[t];
    return {begin, begin + counts[t]};
  }
};

class TokenSelectionTest : public SeededTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    backend_ = MakeByName(GetParam());
    if (backend_ == nullptr) GTEST_SKIP() << "this machine has no " << GetParam();
  }

  // Puts the case's keys, made if there are none, into a cache.
  void Place(TokenCase& c) {
    int64_t used = 0;
    for (const int64_t n : c.kv_lens) {
      used += (n + kPageTokens - 1) / kPageTokens;
      c.stride = std::max(c.stride, (n + kPageTokens - 1) / kPageTokens);
    }
    const auto num_pages = static_cast<int32_t>(used + 3);
    // As index keys lie: behind other parts of a page.
    const int64_t before = 192, page = before + KvHeadPageBytes(c.dtype, c.dim) + 64;
    c.memory = std::make_shared<Buffer>(*backend_->Reserve(page * num_pages));
    std::memset(c.memory->data(), 0xff, c.memory->bytes());
    c.cache = {.k = c.memory->as<char>() + before,
               .v = c.memory->as<char>() + before,
               .page_stride = page,
               .head_stride = KvHeadPageBytes(c.dtype, c.dim),
               .num_pages = num_pages,
               .num_heads = 1,
               .head_dim = c.dim,
               .dtype = c.dtype};
    std::vector<int32_t> ids(static_cast<size_t>(num_pages));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), rng);
    c.pages.assign(c.kv_lens.size() * c.stride, kNoPage);
    size_t next = 0;
    for (size_t s = 0; s < c.kv_lens.size(); ++s) {
      if (c.keys.size() <= s) c.keys.push_back(Normal(c.kv_lens[s] * c.dim));
      std::vector<int32_t> page_ids, slots;
      for (int64_t j = 0; j < c.kv_lens[s]; ++j) {
        if (j % kPageTokens == 0) c.pages[s * c.stride + j / kPageTokens] = ids[next++];
        page_ids.push_back(c.pages[s * c.stride + j / kPageTokens]);
        slots.push_back(static_cast<int32_t>(j % kPageTokens));
      }
      const TensorView rows = View3(c.keys[s], c.kv_lens[s], 1, c.dim);
      ASSERT_LS_OK(backend_->KvWrite({.k = rows,
                                      .v = rows,
                                      .cache = c.cache,
                                      .page_ids = page_ids.data(),
                                      .slots = slots.data()}));
      RoundAsStored(c.dtype, c.dim, &c.keys[s]);
    }
  }

  SelectTokensParams ParamsOf(TokenCase& c) {
    c.list_begin.clear();
    int64_t at = 0;
    for (const int32_t count : c.counts) {
      c.list_begin.push_back(at);
      at += std::max(count, 0);
    }
    c.entries.assign(static_cast<size_t>(at), -7);
    return {.q = View3(c.q, c.rows, c.heads, c.dim),
            .weights = TensorView::Matrix(c.weights.data(), DType::kF32, c.rows, c.heads),
            .cache = c.cache,
            .page_table = {c.pages.data(), c.stride, static_cast<int32_t>(c.kv_lens.size())},
            .num_tiles = static_cast<int32_t>(c.tiles.size()),
            .tiles = c.tiles.data(),
            .counts = c.counts.data(),
            .list_begin = c.list_begin.data(),
            .entries = c.entries.data(),
            .num_entries = at};
  }

  // I(i, j) of a tile of one row, and the sum of its terms' magnitudes.
  static std::pair<double, double> Score(const TokenCase& c, size_t t, int64_t j) {
    const QueryTile& tile = c.tiles[t];
    const float* key = c.keys[static_cast<size_t>(tile.sequence)].data() + j * c.dim;
    double sum = 0, size = 0;
    for (int32_t h = 0; h < c.heads; ++h) {
      const int64_t row = int64_t{tile.row_begin} * c.heads + h;
      double product = 0, terms = 0;
      for (int32_t d = 0; d < c.dim; ++d) {
        const double term = double{c.q[row * c.dim + d]} * key[d];
        product += term;
        terms += std::fabs(term);
      }
      if (!(product < 0)) sum += c.weights[row] * product;
      size += std::fabs(c.weights[row]) * terms;
    }
    return {sum, size};
  }

  // The best by exact scores, of equals the lower; what is no number last.
  static std::vector<int32_t> Best(const TokenCase& c, size_t t) {
    std::vector<int32_t> order(static_cast<size_t>(CandidateTokens(c.tiles[t])));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      const double x = Score(c, t, a).first, y = Score(c, t, b).first;
      return x > y || (std::isnan(y) && !std::isnan(x));
    });
    order.resize(static_cast<size_t>(c.counts[t]));
    std::sort(order.begin(), order.end());
    return order;
  }

  // Single rows of every sequence at odd positions, with counts of all kinds.
  void AddRandomRows(TokenCase& c) {
    for (size_t s = 0; s < c.kv_lens.size(); ++s) {
      for (int n = RandomInt(1, 4); n > 0; --n) {
        const int64_t position = RandomInt(0, static_cast<int>(c.kv_lens[s]) - 1);
        const int64_t most = position + 1;
        const int64_t count = std::min<int64_t>(most, RandomInt(0, 3) == 0 ? 1 : RandomInt(1, 300));
        c.AddTile(static_cast<int32_t>(s), position, 1, count);
      }
    }
    c.q = Normal(int64_t{c.rows} * c.heads * c.dim);
    c.weights = Normal(int64_t{c.rows} * c.heads);
  }

  TokenCase RandomCase() {
    TokenCase c;
    c.heads = std::vector<int32_t>{1, 2, 3, 5, 8, 64}[RandomInt(0, 5)];
    c.dim = std::vector<int32_t>{1, 7, 8, 24, 64, 100, 128}[RandomInt(0, 6)];
    c.dtype = static_cast<KvDType>(RandomInt(0, 4));
    // The last one is scored by more than one task.
    c.kv_lens = {RandomInt(1, 64), RandomInt(65, 700), RandomInt(2100, 2500)};
    return c;
  }

  std::unique_ptr<Backend> backend_;
};

TEST_P(TokenSelectionTest, TakesTheBestTokensByTheFormula) {
  for (int round = 0; round < 12; ++round) {
    TokenCase c = RandomCase();
    AddRandomRows(c);
    Place(c);
    ASSERT_LS_OK(backend_->SelectTokens(ParamsOf(c)));
    for (size_t t = 0; t < c.tiles.size(); ++t) {
      const std::vector<int32_t> list = c.List(t);
      std::vector<bool> taken(static_cast<size_t>(CandidateTokens(c.tiles[t])), false);
      int32_t previous = -1;
      for (const int32_t j : list) {
        ASSERT_GT(j, previous);
        ASSERT_LT(j, static_cast<int32_t>(taken.size()));
        taken[static_cast<size_t>(j)] = true;
        previous = j;
      }
      double least = std::numeric_limits<double>::infinity();
      double most = -std::numeric_limits<double>::infinity(), size = 0;
      for (size_t j = 0; j < taken.size(); ++j) {
        const auto [score, terms] = Score(c, t, static_cast<int64_t>(j));
        size = std::max(size, terms);
        (taken[j] ? least : most) = taken[j] ? std::min(least, score) : std::max(most, score);
      }
      EXPECT_GE(least, most - 1e-6 * size)
          << KvDTypeName(c.dtype) << ", " << c.heads << " heads of " << c.dim << ", " << list.size()
          << " of " << taken.size();
    }
  }
}

// Small integers, so that scores are exact and many are equal.
TEST_P(TokenSelectionTest, TiesGoToTheLowerPosition) {
  for (const KvDType dtype : {KvDType::kF32, KvDType::kF16, KvDType::kBF16, KvDType::kFp8}) {
    for (const int32_t dim : {1, 3, 8, 20, 32, 128}) {
      TokenCase c = {
          .heads = RandomInt(1, 9), .dim = dim, .dtype = dtype, .kv_lens = {1, 130, 333}};
      for (const int64_t n : c.kv_lens) {
        auto& keys = c.keys.emplace_back(static_cast<size_t>(n * dim));
        for (float& x : keys) x = static_cast<float>(RandomInt(-1, 1));
      }
      AddRandomRows(c);
      for (float& x : c.q) x = static_cast<float>(RandomInt(-1, 1));
      for (float& x : c.weights) x = static_cast<float>(RandomInt(-1, 2));
      Place(c);
      ASSERT_LS_OK(backend_->SelectTokens(ParamsOf(c)));
      for (size_t t = 0; t < c.tiles.size(); ++t) {
        EXPECT_THAT(c.List(t), ElementsAreArray(Best(c, t)));
      }
    }
  }
  // A negative weight: what the query has no product with is best.
  TokenCase c = {.heads = 1, .dim = 1, .kv_lens = {6}, .keys = {{1, -1, 1, -1, 1, -1}}};
  c.AddTile(0, 5, 1, 4);
  c.q = {-1};
  c.weights = {-1};
  Place(c);
  ASSERT_LS_OK(backend_->SelectTokens(ParamsOf(c)));
  // 0 at even positions, -1 at odd ones.
  EXPECT_THAT(c.List(0), ElementsAreArray({0, 1, 2, 4}));
}

TEST_P(TokenSelectionTest, ScoresThatAreNotNumbersComeLast) {
  for (const KvDType dtype : {KvDType::kF32, KvDType::kF16, KvDType::kBF16}) {
    TokenCase c = {.heads = 3, .dim = 5, .dtype = dtype, .kv_lens = {200}};
    c.keys.push_back(Normal(200 * 5));
    std::vector<int32_t> numbers;
    for (int32_t j = 0; j < 200; ++j) {
      if (j % 3 == 0) {
        c.keys[0][static_cast<size_t>(j * 5 + j % 5)] = kNan;
      } else {
        numbers.push_back(j);
      }
    }
    c.AddTile(0, 199, 1, 100);
    c.AddTile(0, 199, 1, 140);  // 133 numbers
    c.AddTile(0, 199, 1, 7);
    c.q = Normal(3 * 3 * 5);
    c.weights = Normal(3 * 3);
    // Worse than all of the first row's others, but numbers.
    for (int h = 0; h < 3; ++h) c.weights[static_cast<size_t>(h)] = -1e6f;
    c.q[2 * 3 * 5] = kNan;  // the third row's
    Place(c);
    ASSERT_LS_OK(backend_->SelectTokens(ParamsOf(c)));
    for (const int32_t j : c.List(0)) EXPECT_NE(j % 3, 0) << KvDTypeName(dtype);
    std::vector<int32_t> want = numbers;
    for (int32_t j = 0; want.size() < 140; j += 3) want.push_back(j);
    std::sort(want.begin(), want.end());
    EXPECT_THAT(c.List(1), ElementsAreArray(want));
    EXPECT_THAT(c.List(2), ElementsAreArray({0, 1, 2, 3, 4, 5, 6}));
  }
}

TEST_P(TokenSelectionTest, WholeListsNeedNoScores) {
  TokenCase c = {.heads = 2, .dim = 8, .kv_lens = {200}};
  c.AddTile(0, 128, 60, 188);
  c.AddTile(0, 63, 1, 64);
  c.AddTile(0, 190, 1, 0);  // no list
  c.q.assign(static_cast<size_t>(c.rows) * 16, kNan);
  c.weights.assign(static_cast<size_t>(c.rows) * 2, kNan);
  Place(c);
  SelectTokensParams p = ParamsOf(c);
  std::vector<int32_t> none(c.pages.size(), kNoPage);
  p.page_table.pages = none.data();
  ASSERT_LS_OK(backend_->SelectTokens(p));
  for (size_t t = 0; t < 2; ++t) {
    std::vector<int32_t> all(static_cast<size_t>(c.counts[t]));
    std::iota(all.begin(), all.end(), 0);
    EXPECT_THAT(c.List(t), ElementsAreArray(all));
  }
}

// A row's list is the same to the last entry alone, among others and on one thread.
TEST_P(TokenSelectionTest, DoesNotDependOnCompany) {
  TokenCase c = RandomCase();
  AddRandomRows(c);
  Place(c);
  ASSERT_LS_OK(backend_->SelectTokens(ParamsOf(c)));
  TokenCase together = c;
  for (size_t t = 0; t < together.tiles.size(); ++t) {
    c.tiles = {together.tiles[t]};
    c.counts = {together.counts[t]};
    ASSERT_LS_OK(backend_->SelectTokens(ParamsOf(c)));
    EXPECT_THAT(c.List(0), ElementsAreArray(together.List(t)));
  }
}

TEST_P(TokenSelectionTest, RefusesWhatBreaksTheContract) {
  TokenCase c = {.heads = 2, .dim = 8, .kv_lens = {200}};
  c.AddTile(0, 199, 1, 5);
  c.q = Normal(4 * 16);
  c.weights = Normal(4 * 2);
  Place(c);
  const auto refusal = [&](auto change) {
    TokenCase broken = c;
    SelectTokensParams p = ParamsOf(broken);
    change(p, broken);
    return std::string(backend_->SelectTokens(p).message());
  };
  EXPECT_EQ(refusal([](SelectTokensParams&, TokenCase&) {}), "");
  EXPECT_THAT(refusal([](SelectTokensParams& p, TokenCase&) { p.cache.head_dim = 4; }),
              HasSubstr("dim"));
  EXPECT_THAT(refusal([](SelectTokensParams& p, TokenCase&) { p.weights.shape[1] = 1; }),
              HasSubstr("heads"));
  EXPECT_THAT(refusal([](SelectTokensParams& p, TokenCase&) { p.cache.num_heads = 2; }),
              HasSubstr("index keys of one head"));
  EXPECT_THAT(refusal([](SelectTokensParams& p, TokenCase&) { p.q.strides[1] = 9; }),
              HasSubstr("side by side"));
  EXPECT_THAT(refusal([](SelectTokensParams&, TokenCase& b) { b.counts[0] = 201; }),
              HasSubstr("no more entries than candidates"));
  EXPECT_THAT(refusal([](SelectTokensParams&, TokenCase& b) { b.counts[0] = -1; }),
              HasSubstr("no more entries than candidates"));
  EXPECT_THAT(refusal([](SelectTokensParams& p, TokenCase&) { p.num_entries = 4; }),
              HasSubstr("a list inside the entries"));
  EXPECT_THAT(refusal([](SelectTokensParams&, TokenCase& b) { b.tiles[0].first_position = 256; }),
              HasSubstr("candidates inside the page table"));
  EXPECT_THAT(refusal([](SelectTokensParams& p, TokenCase& b) {
                p.q.shape[0] = p.weights.shape[0] = 4;
                b.tiles[0] = {0, 0, 2, 100};
              }),
              HasSubstr("a tile of one row"));
  c.pages[2] = kNoPage;
  EXPECT_THAT(refusal([](SelectTokensParams&, TokenCase&) {}), HasSubstr("logical page 2"));
}

INSTANTIATE_TEST_SUITE_P(Backends, TokenSelectionTest,
                         testing::Values("reference", "portable", "avx2", "avxvnni", "avx512vnni",
                                         "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace longstride::kernels

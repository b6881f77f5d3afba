// What must hold to the bit: a row's result follows from its own list alone, however the prompt is
// cut, whoever shares the batch and however many threads work. And the counters that show the work.

#include <functional>

#include "tests/kernels/attention_case.h"
#include "tests/kernels/mirrored_backend.h"

namespace longstride::kernels {
namespace {

// The entries of list head `h` for a query at `position` of a sequence with `kv_len` keys.
using ListOf = std::function<std::vector<int32_t>(int32_t h, int64_t position, int64_t kv_len)>;

class AttentionBitsTest : public SeededTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    backend_ = MakeByName(GetParam());
    if (backend_ == nullptr) GTEST_SKIP() << "this processor has no " << GetParam();
  }

  // A cache with the whole sequences; queries are drawn per position, so that every way to cut the
  // sequences asks the same.
  void Make(std::vector<int64_t> lengths, int32_t q_heads, int32_t kv_heads, int32_t dim,
            KvDType dtype) {
    whole_ = AttentionCase();
    whole_.q_heads = q_heads;
    whole_.kv_heads = kv_heads;
    whole_.dim = dim;
    whole_.dtype = dtype;
    whole_.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    for (const int64_t n : lengths) {
      CaseSequence s;
      s.kv_len = n;
      s.k = Normal(n * kv_heads * dim, 2.0f);
      s.v = Normal(n * kv_heads * dim);
      whole_.sequences.push_back(std::move(s));
      queries_.push_back(Normal(n * q_heads * dim));
    }
    FillCache(whole_, *backend_, rng);
  }

  struct Slice {
    int32_t sequence;
    int64_t begin, end;  // query positions; keys exist up to `end`
  };

  // Runs the slices as one call with each tile's list as `list_of` says for its last position.
  AttentionResult Run(Backend& backend, const std::vector<Slice>& slices, const ListOf& list_of) {
    AttentionCase c;
    c.q_heads = whole_.q_heads;
    c.kv_heads = whole_.kv_heads;
    c.dim = whole_.dim;
    c.dtype = whole_.dtype;
    c.scale = whole_.scale;
    c.softcap = whole_.softcap;
    c.sinks = whole_.sinks;
    c.edges = whole_.edges;
    c.list_heads = whole_.list_heads;
    c.entry_tokens = whole_.entry_tokens;
    c.query_tile = whole_.query_tile;
    c.paged = whole_.paged;
    c.pages_stride = whole_.pages_stride;
    for (const Slice& s : slices) {
      CaseSequence sequence;
      sequence.kv_len = s.end;
      sequence.first_new = s.begin;
      c.sequences.push_back(sequence);
      c.kv_lens.push_back(static_cast<int32_t>(s.end));
      const auto pages = whole_.pages.begin() + s.sequence * whole_.pages_stride;
      c.pages.insert(c.pages.end(), pages, pages + whole_.pages_stride);
      const int64_t row = int64_t{c.q_heads} * c.dim;
      c.q.insert(c.q.end(), queries_[s.sequence].begin() + s.begin * row,
                 queries_[s.sequence].begin() + s.end * row);
    }
    MakeTiles(c);
    for (int32_t h = 0; h < c.num_list_heads(); ++h) {
      for (const QueryTile& t : c.tiles) {
        const std::vector<int32_t> list =
            list_of(h, t.first_position + t.num_rows - 1, c.sequences[t.sequence].kv_len);
        c.list_begin.push_back(static_cast<int64_t>(c.entries.size()));
        c.list_count.push_back(static_cast<int32_t>(list.size()));
        c.entries.insert(c.entries.end(), list.begin(), list.end());
      }
    }
    return Attend(c, backend);
  }

  // All ways to compute the sequences must give the bits of one call over everything.
  void ExpectSameBitsHoweverCut(const ListOf& list_of) {
    std::vector<Slice> all;
    for (size_t s = 0; s < whole_.sequences.size(); ++s) {
      all.push_back({static_cast<int32_t>(s), 0, whole_.sequences[s].kv_len});
    }
    const AttentionResult want = Run(*backend_, all, list_of);
    const auto compare = [&](const AttentionResult& got, const std::vector<Slice>& slices) {
      const int64_t row = int64_t{whole_.q_heads} * whole_.dim;
      int64_t at = 0;
      for (const Slice& slice : slices) {
        int64_t from = 0;
        for (int32_t s = 0; s < slice.sequence; ++s) from += whole_.sequences[s].kv_len;
        for (int64_t i = slice.begin; i < slice.end; ++i, ++at) {
          const bool same =
              std::memcmp(&got.out[at * row], &want.out[(from + i) * row], row * 4) == 0 &&
              std::memcmp(&got.lse[at * whole_.q_heads], &want.lse[(from + i) * whole_.q_heads],
                          whole_.q_heads * 4) == 0;
          ASSERT_TRUE(same) << "sequence " << slice.sequence << " position " << i;
        }
      }
    };
    const bool on_device = std::string(GetParam()) == "cuda";
    const auto one = on_device ? MakeByName("cuda") : MakeCpu(GetParam(), 1);
    const auto four = on_device ? MakeByName("cuda") : MakeCpu(GetParam(), 4);
    compare(Run(*one, all, list_of), all);
    compare(Run(*four, all, list_of), all);
    // Decoding: single rows, alone and several sequences at once.
    for (int trial = 0; trial < 12; ++trial) {
      std::vector<Slice> rows;
      for (size_t s = 0; s < whole_.sequences.size(); ++s) {
        const int64_t i = RandomInt(0, static_cast<int>(whole_.sequences[s].kv_len - 1));
        rows.push_back({static_cast<int32_t>(s), i, i + 1});
      }
      compare(Run(*four, rows, list_of), rows);
      rows.resize(1);
      compare(Run(trial % 2 == 0 ? *one : *backend_, rows, list_of), rows);
    }
    // Chunked prefill with random cuts.
    for (size_t s = 0; s < whole_.sequences.size(); ++s) {
      for (int64_t begin = 0; begin < whole_.sequences[s].kv_len;) {
        const int64_t end =
            std::min<int64_t>(whole_.sequences[s].kv_len, begin + RandomInt(1, 400));
        const std::vector<Slice> chunk = {{static_cast<int32_t>(s), begin, end}};
        compare(Run(*backend_, chunk, list_of), chunk);
        begin = end;
      }
    }
  }

  std::unique_ptr<Backend> backend_;
  AttentionCase whole_;
  std::vector<std::vector<float>> queries_;
};

std::vector<int32_t> Entries(int64_t low, int64_t high, int64_t tokens) {
  std::vector<int32_t> v;
  for (int64_t e = low / tokens; e <= high / tokens; ++e) v.push_back(static_cast<int32_t>(e));
  return v;
}

TEST_P(AttentionBitsTest, DenseIsTheSameHoweverCut) {
  for (const KvDType dtype : {KvDType::kF16, KvDType::kQ8, KvDType::kFp8}) {
    Make({1100, 37, 300}, 4, 2, 64, dtype);
    whole_.edges = {EdgeRule{}};
    whole_.sinks = {0.5f, -1.0f, 3.0f, -std::numeric_limits<float>::infinity()};
    ExpectSameBitsHoweverCut([](int32_t, int64_t i, int64_t) { return Entries(0, i, 64); });
    queries_.clear();
  }
}

TEST_P(AttentionBitsTest, WindowWithSinkTokensIsTheSameHoweverCut) {
  Make({1300, 130}, 3, 1, 80, KvDType::kBF16);
  whole_.edges = {EdgeRule{.causal = 1, .window = 200, .sink_tokens = 4}};
  whole_.softcap = 20.0f;
  whole_.query_tile = 64;
  whole_.entry_tokens = 16;
  // The list starts where the tile's first row needs it, whatever part of the tile is asked.
  ExpectSameBitsHoweverCut([](int32_t, int64_t i, int64_t) {
    std::vector<int32_t> list = {0};
    const int64_t low = std::max<int64_t>(16, i / 64 * 64 - 199);
    for (const int32_t e : Entries(low, i, 16)) list.push_back(e);
    return i < 16 ? std::vector<int32_t>{0} : list;
  });
}

TEST_P(AttentionBitsTest, BlockListsPerHeadAreTheSameHoweverCut) {
  Make({1200, 90}, 4, 2, 64, KvDType::kF32);
  whole_.list_heads = ListHeads::kPerQHead;
  whole_.edges = {EdgeRule{}, EdgeRule{.causal = 1, .window = 300}, EdgeRule{},
                  EdgeRule{.causal = 1, .chunk = 500}};
  whole_.query_tile = 128;
  whole_.entry_tokens = 32;
  ExpectSameBitsHoweverCut([](int32_t h, int64_t i, int64_t) {
    std::vector<int32_t> list;
    for (const int32_t e : Entries(0, i, 32)) {
      // A pattern of the tile and the entry alone.
      if ((e * 7 + h + i / 128) % 3 != 0 || e / 4 == i / 128) list.push_back(e);
    }
    return list;
  });
}

// The strided pattern: rows of one residue class read prefixes of one list.
TEST_P(AttentionBitsTest, PrefixesOfATokenListAreTheSameTogetherAndAlone) {
  constexpr int64_t kStride = 7;
  Make({1300, 200}, 4, 1, 64, KvDType::kF16);
  whole_.edges = {EdgeRule{}};
  whole_.query_tile = 1;
  whole_.entry_tokens = 1;
  const ListOf residues = [&](int32_t, int64_t i, int64_t) {
    std::vector<int32_t> list;
    for (int64_t j = i % kStride; j <= i; j += kStride) list.push_back(static_cast<int32_t>(j));
    return list;
  };
  ExpectSameBitsHoweverCut(residues);
  // The same rows with one shared list for each class.
  const AttentionResult want = Run(*backend_, {{0, 0, 1300}}, residues);
  AttentionCase c = whole_;
  c.sequences.resize(1);
  c.kv_lens.resize(1);
  c.q = queries_[0];
  MakeTiles(c);
  std::vector<int64_t> class_begin;
  for (int64_t r = 0; r < kStride; ++r) {
    class_begin.push_back(static_cast<int64_t>(c.entries.size()));
    for (int64_t j = r; j < 1300; j += kStride) c.entries.push_back(static_cast<int32_t>(j));
  }
  for (int64_t i = 0; i < 1300; ++i) {
    c.list_begin.push_back(class_begin[i % kStride]);
    c.list_count.push_back(static_cast<int32_t>(i / kStride + 1));
  }
  const AttentionResult got = Attend(c, *backend_);
  EXPECT_EQ(got.out, want.out);
  EXPECT_EQ(got.lse, want.lse);
  EXPECT_EQ(got.counters.keys_visible, want.counters.keys_visible);
  ExpectNear(c, got, NaiveAttention(c), 2e-5);
}

// The work is proportional to what the selection names: computed scores against visible ones, with
// one page for each edge of each row.
TEST_P(AttentionBitsTest, KeysReadFollowKeysVisible) {
  if (std::string(GetParam()) == "cuda") GTEST_SKIP() << "the device reads whole pages";
  struct Pattern {
    const char* name;
    EdgeRule edge;
    int32_t entry_tokens, query_tile;
    int edges;  // of a row's visible keys
    ListOf list_of;
  };
  const auto window_list = [](int64_t window, bool sinks, int64_t tokens) {
    return [=](int32_t, int64_t i, int64_t) {
      std::vector<int32_t> list;
      const int64_t low = std::max<int64_t>(0, i / 128 * 128 - window + 1);
      if (sinks && low >= tokens) list.push_back(0);
      for (const int32_t e : Entries(low, i, tokens)) list.push_back(e);
      return list;
    };
  };
  const Pattern patterns[] = {
      {"window", {.causal = 1, .window = 512}, 64, 128, 2, window_list(512, false, 64)},
      {"sinks and window",
       {.causal = 1, .window = 256, .sink_tokens = 16},
       16,
       128,
       3,
       window_list(256, true, 16)},
      {"block list",
       {},
       64,
       128,
       1,
       [](int32_t, int64_t i, int64_t) {
         std::vector<int32_t> list;
         for (int64_t e = 0; e <= i / 64; ++e) {
           if (e % 5 == 1 || e / 2 == i / 128) list.push_back(static_cast<int32_t>(e));
         }
         return list;
       }},
      {"chunked",
       {.causal = 1, .chunk = 700},
       64,
       128,
       2,
       [](int32_t, int64_t i, int64_t) { return Entries(0, i, 64); }},
  };
  Make({3000, 800}, 4, 1, 32, KvDType::kF16);
  for (const Pattern& p : patterns) {
    SCOPED_TRACE(p.name);
    whole_.edges = {p.edge};
    whole_.entry_tokens = p.entry_tokens;
    whole_.query_tile = p.query_tile;
    const std::vector<Slice> prefill = {{0, 2304, 3000}, {1, 0, 800}};
    const std::vector<Slice> decode = {{0, 2999, 3000}, {1, 650, 651}};
    for (const std::vector<Slice>& slices : {prefill, decode}) {
      int64_t rows = 0;
      for (const Slice& s : slices) rows += s.end - s.begin;
      const AttentionCounters got = Run(*backend_, slices, p.list_of).counters;
      EXPECT_GE(got.keys_read, got.keys_visible);
      // Each edge costs at most the rest of a panel of 16 keys, far below the page allowed.
      EXPECT_LE(got.keys_read, 1.15 * got.keys_visible + p.edges * 24 * rows * whole_.q_heads);
    }
    const AttentionCounters long_run = Run(*backend_, {{0, 2304, 3000}}, p.list_of).counters;
    EXPECT_LE(long_run.keys_read, 1.15 * long_run.keys_visible);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionBitsTest,
                         testing::Values("portable", "avx2", "avxvnni", "avx512vnni", "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace longstride::kernels

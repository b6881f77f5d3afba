// Random attention problems and a naive answer: dense scores with a mask, in double.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include "tests/kernels/test_util.h"

namespace longstride::kernels {

// One sequence: its whole keys and values; rows [first_new, kv_len) are the step's queries.
struct CaseSequence {
  int64_t kv_len = 0;
  int64_t first_new = 0;
  std::vector<float> k, v;  // [kv_len, KV heads, dim] as the cache stores them, decoded
};

struct AttentionCase {
  int32_t q_heads = 4, kv_heads = 1, dim = 64;
  KvDType dtype = KvDType::kF32;
  ListHeads list_heads = ListHeads::kShared;
  int32_t entry_tokens = 64, query_tile = 128;
  float scale = 0.125f, softcap = 0.0f;
  int32_t value_dim = 0;  // as AttentionParams has it
  std::vector<float> sinks;
  std::vector<EdgeRule> edges;
  std::vector<CaseSequence> sequences;

  std::vector<float> q;  // [rows, q_heads, dim]
  std::vector<QueryTile> tiles;
  std::vector<int64_t> list_begin;
  std::vector<int32_t> list_count;
  std::vector<int32_t> entries;

  std::shared_ptr<Buffer> cache;
  PagedKv paged;
  std::vector<int32_t> pages;  // [sequences, pages_stride]
  int64_t pages_stride = 0;
  std::vector<int32_t> kv_lens;

  int32_t num_list_heads() const {
    return list_heads == ListHeads::kShared      ? 1
           : list_heads == ListHeads::kPerKvHead ? kv_heads
                                                 : q_heads;
  }
  int32_t ListHeadOf(int32_t h) const {
    return list_heads == ListHeads::kShared      ? 0
           : list_heads == ListHeads::kPerKvHead ? h / (q_heads / kv_heads)
                                                 : h;
  }
  // Channels that results are compared in.
  int32_t columns() const { return value_dim == 0 ? dim : value_dim; }
  int64_t rows() const {
    int64_t n = 0;
    for (const CaseSequence& s : sequences) n += s.kv_len - s.first_new;
    return n;
  }
};

// Cuts every sequence's new rows into tiles aligned to absolute positions.
inline void MakeTiles(AttentionCase& c) {
  c.tiles.clear();
  int32_t row = 0;
  for (size_t s = 0; s < c.sequences.size(); ++s) {
    for (int64_t i = c.sequences[s].first_new; i < c.sequences[s].kv_len;) {
      const int64_t end =
          std::min<int64_t>((i / c.query_tile + 1) * c.query_tile, c.sequences[s].kv_len);
      c.tiles.push_back(
          {static_cast<int32_t>(s), row, static_cast<int32_t>(end - i), static_cast<int32_t>(i)});
      row += static_cast<int32_t>(end - i);
      i = end;
    }
  }
}

// Places the sequences' rows in a paged cache through `backend`. Memory that no row owns is filled
// with not-a-numbers; pages are in random order with page_stride as given (0: dense).
inline void FillCache(AttentionCase& c, Backend& backend, std::mt19937& rng,
                      int64_t page_stride = 0, int32_t num_pages = 0) {
  const int64_t head_bytes = KvHeadPageBytes(c.dtype, c.dim);
  int64_t used = 0;
  c.pages_stride = 1;
  for (const CaseSequence& s : c.sequences) {
    const int64_t pages = (s.kv_len + kPageTokens - 1) / kPageTokens;
    used += pages;
    c.pages_stride = std::max(c.pages_stride, pages + 2);
  }
  if (page_stride == 0) page_stride = head_bytes * c.kv_heads;
  if (num_pages == 0) num_pages = static_cast<int32_t>(used + 3);
  const bool sparse = num_pages > 10000;
  // V of a page follows its K, so that both reach far.
  const int64_t stride = 2 * page_stride;
  c.cache = std::make_shared<Buffer>(*backend.Reserve(stride * num_pages));
  if (!sparse) std::memset(c.cache->data(), 0xff, c.cache->bytes());
  c.paged = {c.cache->data(), c.cache->as<char>() + page_stride,
             stride,          head_bytes,
             num_pages,       c.kv_heads,
             c.dim,           c.dtype};
  if (c.dtype == KvDType::kFp8) {
    c.paged.k_scale = 0.7f;
    c.paged.v_scale = 1.3f;
  }
  std::vector<int32_t> ids;
  std::set<int32_t> taken;
  while (static_cast<int64_t>(ids.size()) < used) {
    const auto id = sparse ? static_cast<int32_t>(num_pages - 1 - rng() % 64 - ids.size() * 64)
                           : static_cast<int32_t>(rng() % num_pages);
    if (taken.insert(id).second) ids.push_back(id);
  }
  for (const int32_t id : ids) {
    std::memset(c.cache->as<char>() + id * stride, 0xff, 2 * page_stride);
  }
  c.pages.assign(c.sequences.size() * c.pages_stride, kNoPage);
  c.kv_lens.clear();
  size_t next = 0;
  for (size_t s = 0; s < c.sequences.size(); ++s) {
    CaseSequence& seq = c.sequences[s];
    c.kv_lens.push_back(static_cast<int32_t>(seq.kv_len));
    std::vector<int32_t> page_ids, slots;
    for (int64_t j = 0; j < seq.kv_len; ++j) {
      int32_t& page = c.pages[s * c.pages_stride + j / kPageTokens];
      if (page == kNoPage) page = ids[next++];
      page_ids.push_back(page);
      slots.push_back(static_cast<int32_t>(j % kPageTokens));
    }
    KvWriteParams write{.k = View3(seq.k, seq.kv_len, c.kv_heads, c.dim),
                        .v = View3(seq.v, seq.kv_len, c.kv_heads, c.dim),
                        .cache = c.paged,
                        .page_ids = page_ids.data(),
                        .slots = slots.data()};
    ASSERT_LS_OK(backend.KvWrite(write));
    // From here on the problem is posed in what the cache holds.
    for (std::vector<float>* rows : {&seq.k, &seq.v}) {
      for (size_t i = 0; i < rows->size(); i += c.dim) {
        float* x = rows->data() + i;
        if (c.dtype == KvDType::kQ8) {
          std::vector<int8_t> codes(c.dim);
          float scale;
          QuantizeKvRow(x, c.dim, codes.data(), &scale);
          for (int32_t d = 0; d < c.dim; ++d) x[d] = codes[d] * scale;
        }
        const float scale = rows == &seq.k ? c.paged.k_scale : c.paged.v_scale;
        for (int32_t d = 0; d < c.dim; ++d) {
          if (c.dtype == KvDType::kF16) x[d] = HalfToFloat(FloatToHalf(x[d]));
          if (c.dtype == KvDType::kFp8) x[d] = E4m3ToFloat(FloatToE4m3(x[d] / scale)) * scale;
          if (c.dtype == KvDType::kBF16) x[d] = Bfloat16ToFloat(FloatToBfloat16(x[d]));
        }
      }
    }
  }
}

// Latent attention: after this the values are the keys, of which `value_dim` channels are asked
// for.
inline void MakeLatent(AttentionCase& c, int32_t value_dim) {
  c.value_dim = value_dim;
  for (CaseSequence& s : c.sequences) s.v = s.k;
  c.paged.v = c.paged.k;
}

struct AttentionResult {
  std::vector<float> out;
  std::vector<float> lse;
  AttentionCounters counters;
};

inline AttentionParams ParamsOf(AttentionCase& c, AttentionResult& r) {
  const int64_t rows = c.rows();
  r.out.assign(rows * c.q_heads * c.dim, 99.0f);
  r.lse.assign(rows * c.q_heads, 99.0f);
  AttentionParams p;
  p.q = View3(c.q, rows, c.q_heads, c.dim);
  p.out = View3(r.out, rows, c.q_heads, c.dim);
  p.cache = c.paged;
  p.page_table = {c.pages.data(), c.pages_stride, static_cast<int32_t>(c.sequences.size())};
  p.kv_lens = c.kv_lens.data();
  p.selection.list_heads = c.list_heads;
  p.selection.num_list_heads = c.num_list_heads();
  p.selection.entry_tokens = c.entry_tokens;
  p.selection.query_tile = c.query_tile;
  p.selection.num_tiles = static_cast<int32_t>(c.tiles.size());
  p.selection.tiles = c.tiles.data();
  p.selection.list_begin = c.list_begin.data();
  p.selection.list_count = c.list_count.data();
  p.selection.entries = c.entries.data();
  p.selection.num_entries = static_cast<int64_t>(c.entries.size());
  p.selection.edges = c.edges.data();
  p.scale = c.scale;
  p.softcap = c.softcap;
  p.sinks = c.sinks.empty() ? nullptr : c.sinks.data();
  p.lse = r.lse.data();
  p.value_dim = c.value_dim;
  p.counters = &r.counters;
  return p;
}

inline AttentionResult Attend(AttentionCase& c, Backend& backend) {
  AttentionResult r;
  const absl::Status status = backend.Attention(ParamsOf(c, r));
  EXPECT_TRUE(status.ok()) << status;
  return r;
}

// Whether head h of the query at position i of a tile sees key j, by the definition of a selection.
inline bool Sees(const AttentionCase& c, size_t tile, int32_t h, int64_t i, int64_t j) {
  const int32_t lh = c.ListHeadOf(h);
  const size_t list = lh * c.tiles.size() + tile;
  const auto begin = c.entries.begin() + c.list_begin[list];
  const auto entry = static_cast<int32_t>(j / c.entry_tokens);
  if (std::find(begin, begin + c.list_count[list], entry) == begin + c.list_count[list]) {
    return false;
  }
  const EdgeRule& e = c.edges[lh];
  if (e.causal && j > i) return false;
  const bool reads_all = !e.causal && i < e.sink_tokens;
  if (e.window > 0 && std::abs(i - j) >= e.window && j >= e.sink_tokens && !reads_all) return false;
  if (e.chunk > 0 && i / e.chunk != j / e.chunk) return false;
  return true;
}

struct NaiveResult {
  std::vector<double> out, lse;
  int64_t visible = 0;
};

inline NaiveResult NaiveAttention(const AttentionCase& c) {
  NaiveResult r;
  r.out.assign(c.rows() * c.q_heads * c.dim, 0.0);
  r.lse.assign(c.rows() * c.q_heads, -std::numeric_limits<double>::infinity());
  const int32_t group = c.q_heads / c.kv_heads;
  for (size_t t = 0; t < c.tiles.size(); ++t) {
    const QueryTile& tile = c.tiles[t];
    const CaseSequence& s = c.sequences[tile.sequence];
    for (int32_t row = 0; row < tile.num_rows; ++row) {
      for (int32_t h = 0; h < c.q_heads; ++h) {
        const int64_t at = int64_t{tile.row_begin + row} * c.q_heads + h;
        std::vector<double> scores(s.kv_len, -std::numeric_limits<double>::infinity());
        double max = -std::numeric_limits<double>::infinity();
        for (int64_t j = 0; j < s.kv_len; ++j) {
          if (!Sees(c, t, h, tile.first_position + row, j)) continue;
          ++r.visible;
          double dot = 0.0;
          for (int32_t d = 0; d < c.dim; ++d) {
            dot += double{c.q[at * c.dim + d]} * s.k[(j * c.kv_heads + h / group) * c.dim + d];
          }
          scores[j] = dot * c.scale;
          if (c.softcap > 0) scores[j] = c.softcap * std::tanh(scores[j] / c.softcap);
          max = std::max(max, scores[j]);
        }
        if (!std::isfinite(max)) continue;
        double total = 0.0;
        for (const double score : scores) total += std::exp(score - max);
        r.lse[at] = max + std::log(total);
        if (!c.sinks.empty()) total += std::exp(c.sinks[h] - max);
        for (int64_t j = 0; j < s.kv_len; ++j) {
          const double p = std::exp(scores[j] - max) / total;
          if (p == 0.0) continue;
          for (int32_t d = 0; d < c.columns(); ++d) {
            r.out[at * c.dim + d] += p * s.v[(j * c.kv_heads + h / group) * c.dim + d];
          }
        }
      }
    }
  }
  return r;
}

inline void ExpectNear(const AttentionCase& c, const AttentionResult& got, const NaiveResult& want,
                       double tolerance) {
  for (size_t i = 0; i < got.out.size(); ++i) {
    if (static_cast<int32_t>(i % c.dim) >= c.columns()) {
      ASSERT_TRUE(std::isfinite(got.out[i]));
      continue;
    }
    ASSERT_NEAR(got.out[i], want.out[i], tolerance)
        << "row " << i / c.dim / c.q_heads << " head " << i / c.dim % c.q_heads;
  }
  for (size_t i = 0; i < got.lse.size(); ++i) {
    if (std::isinf(want.lse[i])) {
      ASSERT_EQ(got.lse[i], -std::numeric_limits<float>::infinity());
    } else {
      ASSERT_NEAR(got.lse[i], want.lse[i], tolerance);
    }
  }
  EXPECT_EQ(got.counters.keys_visible, want.visible);
}

}  // namespace longstride::kernels

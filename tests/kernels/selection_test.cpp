// Page summaries and lists made from queries, on every backend, against naive answers in double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>

#include "gmock/gmock.h"
#include "tests/kernels/mirrored_backend.h"
#include "tests/kernels/stored_keys.h"
#include "tests/kernels/test_util.h"

namespace longstride::kernels {
namespace {

using ::testing::HasSubstr;

// A cache of scattered pages for a few sequences; what nobody wrote is not-a-number.
struct SelectionCase {
  int32_t q_heads = 4, kv_heads = 2, dim = 64;
  KvDType dtype = KvDType::kF16;
  std::vector<int64_t> kv_lens;
  std::vector<std::vector<float>> keys;  // [sequence]: [kv_len, KV heads, dim] as stored

  std::shared_ptr<Buffer> memory;
  PagedKv cache;
  std::vector<int32_t> pages;
  int64_t stride = 1;

  PageTable table() const { return {pages.data(), stride, static_cast<int32_t>(kv_lens.size())}; }
  int32_t PageOf(size_t sequence, int64_t position) const {
    return pages[sequence * stride + position / kPageTokens];
  }
  // Channel values of one key.
  const float* Key(size_t sequence, int64_t position, int32_t kv_head) const {
    return keys[sequence].data() + (position * kv_heads + kv_head) * dim;
  }
};

// One call of SelectPages with its output.
struct Request {
  PageScore score = PageScore::kBound;
  ListHeads list_heads = ListHeads::kPerKvHead;
  int32_t sink_pages = 0, recent_pages = 1, block_pages = 1;
  float mass = 0.0f, scale = 0.0f;
  int32_t stride = 0, segment = 0, vertical_pages = 0, slash_pages = 0;
  float divergence = 0.0f, similarity = 0.0f;
  std::vector<QueryTile> tiles;
  std::vector<int32_t> counts;
  std::vector<int64_t> list_begin;
  std::vector<int32_t> entries;
  std::vector<float> q;
  int64_t rows = 0;

  int32_t num_lists(const SelectionCase& c) const {
    return list_heads == ListHeads::kPerKvHead ? c.kv_heads : c.q_heads;
  }
  std::vector<int32_t> List(int32_t h, size_t t) const {
    const auto begin = entries.begin() + list_begin[h * tiles.size() + t];
    return {begin, begin + counts[t]};
  }
};

// How far off scores by means may be: summaries in 16 bits round the mean.
double MeanSlack(KvDType dtype) {
  if (dtype == KvDType::kBF16) return 0.05;
  return dtype == KvDType::kF16 || dtype == KvDType::kFp8 ? 0.006 : 1e-4;
}

class SelectionTest : public SeededTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    backend_ = MakeByName(GetParam());
    if (backend_ == nullptr) GTEST_SKIP() << "this machine has no " << GetParam();
  }

  SelectionCase RandomCase(const std::vector<int64_t>& kv_lens) {
    SelectionCase c;
    c.kv_heads = RandomInt(1, 3);
    c.q_heads = c.kv_heads * RandomInt(1, 6);
    c.dim = std::vector<int32_t>{8, 24, 64, 80, 100, 128, 256}[RandomInt(0, 6)];
    c.dtype = static_cast<KvDType>(RandomInt(0, 4));
    Place(c, kv_lens);
    return c;
  }

  // Allocates and writes random keys, in steps of random sizes, summarising as a decoder does.
  void Place(SelectionCase& c, const std::vector<int64_t>& kv_lens) {
    c.kv_lens = kv_lens;
    int64_t used = 0;
    for (const int64_t n : kv_lens) {
      used += (n + kPageTokens - 1) / kPageTokens;
      c.stride = std::max(c.stride, (n + kPageTokens - 1) / kPageTokens + 1);
    }
    const int64_t head_bytes = KvHeadPageBytes(c.dtype, c.dim);
    const int64_t plane = head_bytes * c.kv_heads;
    c.cache.segment_means = RandomInt(0, 1) == 1;
    c.cache.value_mean = std::string_view(GetParam()) != "cuda" && RandomInt(0, 1) == 1;
    const int64_t summaries =
        PageSummaryBytes(c.dtype, c.dim, c.cache.segment_means, c.cache.value_mean) * c.kv_heads;
    const int64_t page = (2 * plane + summaries + 63) / 64 * 64;
    const auto num_pages = static_cast<int32_t>(used + 3);
    c.memory = std::make_shared<Buffer>(*backend_->Reserve(page * num_pages));
    std::memset(c.memory->data(), 0xff, c.memory->bytes());
    char* base = c.memory->as<char>();
    c.cache = {.k = base,
               .v = base + plane,
               .page_stride = page,
               .head_stride = head_bytes,
               .num_pages = num_pages,
               .num_heads = c.kv_heads,
               .head_dim = c.dim,
               .dtype = c.dtype,
               .segment_means = c.cache.segment_means,
               .value_mean = c.cache.value_mean,
               .summaries = base + 2 * plane};
    std::vector<int32_t> ids(num_pages);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), rng);
    c.pages.assign(kv_lens.size() * c.stride, kNoPage);
    size_t next = 0;
    for (size_t s = 0; s < kv_lens.size(); ++s) {
      for (int64_t p = 0; p < (kv_lens[s] + kPageTokens - 1) / kPageTokens; ++p) {
        c.pages[s * c.stride + p] = ids[next++];
      }
      c.keys.push_back(Normal(kv_lens[s] * c.kv_heads * c.dim));
    }
    // Some of the last keys come one by one, those of all sequences at once.
    const int64_t generated = RandomInt(0, 20);
    std::vector<int64_t> filled(kv_lens.size(), 0);
    for (size_t s = 0; s < kv_lens.size(); ++s) {
      while (filled[s] < kv_lens[s] - generated) {
        const auto count = std::min<int64_t>(kv_lens[s] - generated - filled[s], RandomInt(1, 200));
        Append(c, {{s, filled[s], count}});
        filled[s] += count;
      }
    }
    for (int64_t i = 0; i < generated; ++i) {
      std::vector<Run> runs;
      for (size_t s = 0; s < kv_lens.size(); ++s) {
        if (filled[s] < kv_lens[s]) runs.push_back({s, filled[s]++, 1});
      }
      if (!runs.empty()) Append(c, runs);
    }
    for (std::vector<float>& keys : c.keys) RoundAsStored(c.dtype, c.dim, &keys);
  }

  struct Run {
    size_t sequence;
    int64_t at, count;
  };
  void Append(SelectionCase& c, const std::vector<Run>& runs) {
    std::vector<int32_t> page_ids, slots, touched, counts;
    std::vector<float> part;
    const int64_t width = int64_t{c.kv_heads} * c.dim;
    for (const Run& run : runs) {
      for (int64_t j = run.at; j < run.at + run.count; ++j) {
        page_ids.push_back(c.PageOf(run.sequence, j));
        slots.push_back(static_cast<int32_t>(j % kPageTokens));
        if (touched.empty() || touched.back() != page_ids.back()) {
          touched.push_back(page_ids.back());
          counts.push_back(0);
        }
        counts.back() = slots.back() + 1;
      }
      const auto keys = c.keys[run.sequence].begin();
      part.insert(part.end(), keys + run.at * width, keys + (run.at + run.count) * width);
    }
    const auto count = static_cast<int64_t>(page_ids.size());
    std::vector<float> values;
    std::transform(part.begin(), part.end(), std::back_inserter(values), std::negate<>());
    ASSERT_LS_OK(backend_->KvWrite({.k = View3(part, count, c.kv_heads, c.dim),
                                    .v = View3(values, count, c.kv_heads, c.dim),
                                    .cache = c.cache,
                                    .page_ids = page_ids.data(),
                                    .slots = slots.data(),
                                    .summary_pages = touched.data(),
                                    .summary_counts = counts.data(),
                                    .num_summaries = static_cast<int32_t>(touched.size())}));
  }

  // A stored summary value.
  static float Summary(const SelectionCase& c, int32_t page, int32_t head, int row, int32_t d) {
    const char* at = static_cast<const char*>(c.cache.summaries) + page * c.cache.page_stride +
                     head * PageSummaryBytes(c.cache) + row * SummaryRowBytes(c.cache);
    if (c.dtype == KvDType::kF16 || c.dtype == KvDType::kFp8) {
      return HalfToFloat(reinterpret_cast<const uint16_t*>(at)[d]);
    }
    if (c.dtype == KvDType::kBF16) return Bfloat16ToFloat(reinterpret_cast<const uint16_t*>(at)[d]);
    return reinterpret_cast<const float*>(at)[d];
  }

  // Tiles over the last rows of every sequence.
  Request RandomRequest(const SelectionCase& c) {
    Request r;
    r.score = RandomInt(0, 1) == 0 ? PageScore::kBound : PageScore::kMean;
    r.list_heads = RandomInt(0, 1) == 0 ? ListHeads::kPerKvHead : ListHeads::kPerQHead;
    r.sink_pages = RandomInt(0, 2);
    r.recent_pages = RandomInt(0, 3);
    for (size_t s = 0; s < c.kv_lens.size(); ++s) {
      const int64_t tile = RandomInt(0, 1) == 0 ? 1 : 128;
      int64_t at = std::max<int64_t>(0, c.kv_lens[s] - RandomInt(1, 300));
      if (tile == 1) at = std::max(at, c.kv_lens[s] - 5);
      while (at < c.kv_lens[s]) {
        const int64_t end = std::min((at / tile + 1) * tile, c.kv_lens[s]);
        r.tiles.push_back({static_cast<int32_t>(s), static_cast<int32_t>(r.rows),
                           static_cast<int32_t>(end - at), static_cast<int32_t>(at)});
        r.rows += end - at;
        at = end;
      }
    }
    for (const QueryTile& tile : r.tiles) {
      const auto least = static_cast<int32_t>(ForcedPages(tile, r.sink_pages, r.recent_pages));
      r.counts.push_back(RandomInt(least, static_cast<int32_t>(CandidatePages(tile))));
    }
    r.q = Normal(r.rows * c.q_heads * c.dim);
    Layout(c, r);
    return r;
  }

  static void Layout(const SelectionCase& c, Request& r) {
    int64_t next = 0;
    for (int32_t h = 0; h < r.num_lists(c); ++h) {
      for (const int32_t count : r.counts) {
        r.list_begin.push_back(next);
        next += count;
      }
    }
    r.entries.assign(next, 12345);
  }

  static SelectPagesParams ParamsOf(const SelectionCase& c, Request& r) {
    return {.q = View3(r.q, r.rows, c.q_heads, c.dim),
            .cache = c.cache,
            .page_table = c.table(),
            .score = r.score,
            .list_heads = r.list_heads,
            .sink_pages = r.sink_pages,
            .recent_pages = r.recent_pages,
            .block_pages = r.block_pages,
            .scale = r.scale,
            .mass = r.mass,
            .stride = r.stride,
            .segment = r.segment,
            .vertical_pages = r.vertical_pages,
            .slash_pages = r.slash_pages,
            .divergence = r.divergence,
            .similarity = r.similarity,
            .num_tiles = static_cast<int32_t>(r.tiles.size()),
            .tiles = r.tiles.data(),
            .counts = r.counts.data(),
            .list_begin = r.list_begin.data(),
            .entries = r.entries.data(),
            .num_entries = static_cast<int64_t>(r.entries.size())};
  }

  // In double: the score of each complete page for (list head, tile).
  static std::vector<double> NaiveScores(const SelectionCase& c, const Request& r, int32_t h,
                                         size_t t) {
    const QueryTile& tile = r.tiles[t];
    const int32_t group = c.q_heads / c.kv_heads;
    const bool per_kv = r.list_heads == ListHeads::kPerKvHead;
    std::vector<double> scores;
    for (int64_t page = 0; page < tile.first_position / kPageTokens; ++page) {
      double best = -std::numeric_limits<double>::infinity();
      for (int32_t q = per_kv ? h * group : h; q < (per_kv ? (h + 1) * group : h + 1); ++q) {
        double score = 0;
        for (int32_t d = 0; d < c.dim; ++d) {
          double mean_q = 0;
          for (int32_t row = 0; row < tile.num_rows; ++row) {
            mean_q += r.q[((tile.row_begin + row) * c.q_heads + q) * c.dim + d] /
                      static_cast<double>(tile.num_rows);
          }
          double min = 1e30, max = -1e30, mean = 0;
          for (int64_t j = page * kPageTokens; j < (page + 1) * kPageTokens; ++j) {
            const double key = c.Key(tile.sequence, j, q / group)[d];
            min = std::min(min, key);
            max = std::max(max, key);
            mean += key / kPageTokens;
          }
          score +=
              r.score == PageScore::kMean ? mean_q * mean : std::max(mean_q * min, mean_q * max);
        }
        best = std::max(best, score);
      }
      scores.push_back(best);
    }
    return scores;
  }

  // Lists whose length follows from shares of attention.
  Request RandomShares(const SelectionCase& c, PageScore score) {
    Request r;
    r.score = score;
    r.segment = 128 << RandomInt(0, 2);
    r.vertical_pages = RandomInt(0, 3);
    r.slash_pages = RandomInt(0, 3);
    r.list_heads = RandomInt(0, 1) == 0 ? ListHeads::kPerKvHead : ListHeads::kPerQHead;
    r.sink_pages = RandomInt(0, 2);
    r.recent_pages = RandomInt(0, 3);
    r.mass = 0.1f * static_cast<float>(RandomInt(2, 9));
    if (score == PageScore::kVerticalSlash && RandomInt(0, 1) == 0) r.mass = 0.0f;
    r.similarity = 0.1f * static_cast<float>(RandomInt(2, 7));
    r.stride = 1 << RandomInt(0, 6);
    r.scale = 2.0f / std::sqrt(static_cast<float>(c.dim));
    for (size_t s = 0; s < c.kv_lens.size(); ++s) {
      const int64_t unit = score == PageScore::kVerticalSlash ? r.segment : 128;
      const bool must = r.tiles.empty() && s + 1 == c.kv_lens.size();
      for (int64_t at = must ? 0 : RandomInt(0, 1) * unit; at < c.kv_lens[s]; at += 128) {
        const auto rows = static_cast<int32_t>(std::min<int64_t>(128, c.kv_lens[s] - at));
        r.tiles.push_back({static_cast<int32_t>(s), static_cast<int32_t>(r.rows), rows,
                           static_cast<int32_t>(at)});
        r.counts.push_back(static_cast<int32_t>(CandidatePages(r.tiles.back())));
        r.rows += rows;
      }
    }
    r.q = Normal(r.rows * c.q_heads * c.dim);
    Layout(c, r);
    return r;
  }

  // In double: each candidate's share of the tile's attention, by the formula of op_params.h.
  static std::vector<double> NaiveShares(const SelectionCase& c, const Request& r, int32_t h,
                                         size_t t) {
    const QueryTile& tile = r.tiles[t];
    const int32_t group = c.q_heads / c.kv_heads;
    const bool per_kv = r.list_heads == ListHeads::kPerKvHead;
    const int64_t first = tile.first_position, end = first + tile.num_rows;
    std::vector<double> shares(CandidatePages(tile), 0.0);
    for (int32_t q = per_kv ? h * group : h; q < (per_kv ? (h + 1) * group : h + 1); ++q) {
      for (int64_t n = first / r.stride; n * r.stride < end; ++n) {
        std::vector<double> weights;
        double total = 0;
        for (int64_t m = 0; m <= n; ++m) {
          double s = 0;
          for (int64_t k = 0; k < r.stride; ++k) {
            const int64_t i = n * r.stride + r.stride - 1 - k, j = m * r.stride + k;
            if (i >= end || j >= end) continue;
            const float* x = &r.q[((tile.row_begin + i - first) * c.q_heads + q) * c.dim];
            for (int32_t d = 0; d < c.dim; ++d) s += x[d] * c.Key(tile.sequence, j, q / group)[d];
          }
          weights.push_back(std::exp(s * r.scale / r.stride));
          total += weights.back();
        }
        for (size_t m = 0; m < weights.size(); ++m) {
          shares[m * r.stride / kPageTokens] += weights[m] / total;
        }
      }
    }
    const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
    for (double& share : shares) share /= all;
    return shares;
  }

  // In double: |mean of x / |x||^2 of vectors.
  static double MeanCosine(const std::vector<const float*>& vectors, int32_t dim) {
    double sum = 0;
    for (const float* a : vectors) {
      for (const float* b : vectors) {
        double aa = 0, bb = 0, ab = 0;
        for (int32_t d = 0; d < dim; ++d) {
          aa += double{a[d]} * a[d], bb += double{b[d]} * b[d], ab += double{a[d]} * b[d];
        }
        sum += ab / std::sqrt(aa * bb);
      }
    }
    return sum / static_cast<double>(vectors.size() * vectors.size());
  }

  // In double: what means tell of rows [row, +num_rows) of q and the first `end` keys, over pages
  // whose mean cosine is above `similarity`.
  struct Pooled {
    std::vector<double> shares;
    std::vector<double> page_cosines;
    double least_row_cosine = 2;
  };
  static Pooled NaivePooled(const SelectionCase& c, const Request& r, int32_t h, int32_t sequence,
                            int64_t row, int64_t num_rows, int64_t end, double similarity) {
    const int32_t group = c.q_heads / c.kv_heads;
    const bool per_kv = r.list_heads == ListHeads::kPerKvHead;
    const int32_t first = per_kv ? h * group : h, heads = per_kv ? group : 1;
    Pooled out;
    std::vector<std::vector<double>> means;
    for (int64_t begin = 0; begin < end; begin += kPageTokens) {
      std::vector<const float*> keys;
      std::vector<double> mean(c.dim, 0.0);
      for (int64_t j = begin; j < std::min(begin + kPageTokens, end); ++j) {
        keys.push_back(c.Key(sequence, j, first / group));
        for (int32_t d = 0; d < c.dim; ++d) mean[d] += keys.back()[d];
      }
      for (double& x : mean) x /= static_cast<double>(keys.size());
      means.push_back(mean);
      out.page_cosines.push_back(MeanCosine(keys, c.dim));
    }
    out.shares.assign(means.size(), 0.0);
    for (int32_t q = first; q < first + heads; ++q) {
      std::vector<const float*> rows;
      std::vector<double> mean(c.dim, 0.0);
      for (int64_t i = row; i < row + num_rows; ++i) {
        rows.push_back(&r.q[(i * c.q_heads + q) * c.dim]);
        for (int32_t d = 0; d < c.dim; ++d)
          mean[d] += rows.back()[d] / static_cast<double>(num_rows);
      }
      out.least_row_cosine = std::min(out.least_row_cosine, MeanCosine(rows, c.dim));
      std::vector<double> weights;
      double total = 0;
      for (size_t page = 0; page < means.size(); ++page) {
        double s = 0;
        for (int32_t d = 0; d < c.dim; ++d) s += mean[d] * means[page][d];
        weights.push_back(out.page_cosines[page] > similarity ? std::exp(r.scale * s) : 0.0);
        total += weights.back();
      }
      for (size_t page = 0; page < means.size() && total > 0; ++page) {
        out.shares[page] += weights[page] / total / heads;
      }
    }
    return out;
  }

  // Keys of a page, and queries of a tile, lean to a direction of their own, more or less.
  void Lean(SelectionCase& c, Request& r) {
    const auto lean = [&](float* x, const std::vector<float>& to, float by) {
      for (int32_t d = 0; d < c.dim; ++d) x[d] += by * to[d];
    };
    const int64_t width = int64_t{c.kv_heads} * c.dim;
    for (size_t s = 0; s < c.kv_lens.size(); ++s) {
      for (int64_t j = 0; j < c.kv_lens[s];) {
        const int64_t end = std::min((j / kPageTokens + 1) * kPageTokens, c.kv_lens[s]);
        for (int32_t h = 0; h < c.kv_heads; ++h) {
          const std::vector<float> to = Normal(c.dim);
          const float by = static_cast<float>(RandomInt(0, 3));
          for (int64_t i = j; i < end; ++i) lean(c.keys[s].data() + i * width + h * c.dim, to, by);
        }
        Append(c, {{s, j, end - j}});
        j = end;
      }
      RoundAsStored(c.dtype, c.dim, &c.keys[s]);
    }
    for (const QueryTile& tile : r.tiles) {
      for (int32_t q = 0; q < c.q_heads; ++q) {
        const std::vector<float> to = Normal(c.dim);
        const auto by = static_cast<float>(RandomInt(0, 7));
        for (int64_t i = tile.row_begin; i < tile.row_begin + tile.num_rows; ++i) {
          lean(&r.q[(i * c.q_heads + q) * c.dim], to, by);
        }
      }
    }
  }

  // In double: what the last rows of tile t's segment attend to, by columns and by diagonals.
  struct Probe {
    std::vector<double> columns, diagonals;
  };
  static Probe NaiveProbe(const SelectionCase& c, const Request& r, int32_t h, size_t t) {
    const int64_t sequence = r.tiles[t].sequence;
    int64_t first = INT64_MAX, end = 0, row_of_first = 0;
    for (const QueryTile& tile : r.tiles) {
      if (tile.sequence != sequence || tile.num_rows == 1 ||
          tile.first_position / r.segment != r.tiles[t].first_position / r.segment) {
        continue;
      }
      if (tile.first_position < first) {
        first = tile.first_position;
        row_of_first = tile.row_begin;
      }
      end = std::max<int64_t>(end, tile.first_position + tile.num_rows);
    }
    Probe probe{std::vector<double>(end, 0.0), std::vector<double>(end, 0.0)};
    const int32_t group = c.q_heads / c.kv_heads;
    const bool per_kv = r.list_heads == ListHeads::kPerKvHead;
    for (int32_t q = per_kv ? h * group : h; q < (per_kv ? (h + 1) * group : h + 1); ++q) {
      for (int64_t i = std::max(first, end - kProbeRows); i < end; ++i) {
        std::vector<double> weights;
        double total = 0;
        for (int64_t j = 0; j <= i; ++j) {
          double s = 0;
          const float* x = &r.q[((row_of_first + i - first) * c.q_heads + q) * c.dim];
          for (int32_t d = 0; d < c.dim; ++d) {
            s += x[d] * c.Key(static_cast<size_t>(sequence), j, q / group)[d];
          }
          weights.push_back(std::exp(s * r.scale));
          total += weights.back();
        }
        for (int64_t j = 0; j <= i; ++j) {
          probe.columns[j] += weights[j] / total;
          probe.diagonals[i - j] += weights[j] / total;
        }
      }
    }
    return probe;
  }

  // How much larger the error of a share is than with float32 queries: a GPU rounds them to the
  // type of 16-bit keys.
  double Rounding(const SelectionCase& c) const {
    if (GetParam() != std::string("cuda")) return 1;
    return c.dtype == KvDType::kBF16 ? 400 : c.dtype == KvDType::kF16 ? 50 : 1;
  }

  // The runs of 64 that are taken, ascending; *close: two of them, or the count, were nearly a tie,
  // their weights' errors being `rounding` times those of float32.
  static std::vector<int64_t> NaiveRuns(const std::vector<double>& weights, int64_t least,
                                        double mass, double rounding, bool* close) {
    std::vector<std::pair<double, int64_t>> runs;
    double all = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (i % 64 == 0) runs.emplace_back(0.0, static_cast<int64_t>(i / 64));
      runs.back().first = std::min(runs.back().first, -weights[i]);
      all += weights[i];
    }
    std::sort(runs.begin(), runs.end());
    int64_t count = least;
    if (mass > 0) {
      std::vector<double> sorted = weights;
      std::sort(sorted.rbegin(), sorted.rend());
      double sum = 0;
      int64_t n = 0;
      while (n < static_cast<int64_t>(sorted.size()) && sum < mass * all) sum += sorted[n++];
      count = std::max(least, n / 64 + 1);
      // Off by a few weights it could be another number of runs.
      const int64_t few = rounding > 1 ? 4 : 1;
      const bool edge = n % 64 < few || n % 64 >= 64 - few;
      if (edge && count > least) *close = true;
    }
    std::vector<int64_t> taken;
    for (int64_t n = 0; n < std::min<int64_t>(count, static_cast<int64_t>(runs.size())); ++n) {
      taken.push_back(runs[n].second);
    }
    if (count > 0 && count < static_cast<int64_t>(runs.size()) &&
        runs[count].first - runs[count - 1].first <
            1e-5 * rounding * std::max(1.0, -runs[count].first)) {
      *close = true;
    }
    std::sort(taken.begin(), taken.end());
    return taken;
  }

  std::unique_ptr<Backend> backend_;
};

TEST_P(SelectionTest, SummariesAreThoseOfTheStoredKeys) {
  for (int trial = 0; trial < 12; ++trial) {
    SelectionCase c = RandomCase({1, 64 * RandomInt(1, 3) + RandomInt(-1, 1), RandomInt(2, 300)});
    SCOPED_TRACE(testing::Message() << "dim " << c.dim << " dtype " << KvDTypeName(c.dtype));
    for (size_t s = 0; s < c.kv_lens.size(); ++s) {
      for (int64_t begin = 0; begin < c.kv_lens[s]; begin += kPageTokens) {
        const int64_t end = std::min(begin + kPageTokens, c.kv_lens[s]);
        for (int32_t h = 0; h < c.kv_heads; ++h) {
          for (int32_t d = 0; d < c.dim; ++d) {
            float min = c.Key(s, begin, h)[d], max = min, sum = 0.0f;
            for (int64_t j = begin; j < end; ++j) {
              const float key = c.Key(s, j, h)[d];
              min = std::min(min, key);
              max = std::max(max, key);
              sum += key;
            }
            const int32_t page = c.PageOf(s, begin);
            ASSERT_EQ(Summary(c, page, h, 0, d), min);
            ASSERT_EQ(Summary(c, page, h, 1, d), max);
            const auto rounded = [&](float mean) {
              const bool halves = c.dtype == KvDType::kF16 || c.dtype == KvDType::kFp8;
              return halves                      ? HalfToFloat(FloatToHalf(mean))
                     : c.dtype == KvDType::kBF16 ? Bfloat16ToFloat(FloatToBfloat16(mean))
                                                 : mean;
            };
            const float mean = rounded(sum / static_cast<float>(end - begin));
            ASSERT_EQ(Summary(c, page, h, 2, d), mean);
            if (c.cache.value_mean) {
              ASSERT_EQ(Summary(c, page, h, SummaryRows(c.cache) - 1, d), -mean);
            }
            for (int run = 0; c.cache.segment_means && run < 4; ++run) {
              float total = 0.0f;
              int count = 0;
              for (int64_t j = begin + 16 * run; j < std::min(begin + 16 * run + 16, end); ++j) {
                total += c.Key(s, j, h)[d];
                ++count;
              }
              ASSERT_EQ(Summary(c, page, h, 3 + run, d),
                        rounded(count == 0 ? 0.0f : total / static_cast<float>(count)));
            }
          }
        }
      }
    }
  }
}

TEST_P(SelectionTest, TakesTheBestPagesByTheNaiveScore) {
  for (int trial = 0; trial < 30; ++trial) {
    SelectionCase c = RandomCase({1, 64 * RandomInt(4, 9) + RandomInt(-1, 1), RandomInt(2, 900)});
    Request r = RandomRequest(c);
    SCOPED_TRACE(testing::Message()
                 << "trial " << trial << " heads " << c.q_heads << "/" << c.kv_heads << " dim "
                 << c.dim << " dtype " << KvDTypeName(c.dtype) << " sinks " << r.sink_pages
                 << " recent " << r.recent_pages << " score " << static_cast<int>(r.score));
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
    const double slack = r.score == PageScore::kBound ? 1e-4 : MeanSlack(c.dtype);
    for (int32_t h = 0; h < r.num_lists(c); ++h) {
      for (size_t t = 0; t < r.tiles.size(); ++t) {
        const QueryTile& tile = r.tiles[t];
        const std::vector<int32_t> list = r.List(h, t);
        ASSERT_TRUE(std::is_sorted(list.begin(), list.end()));
        ASSERT_EQ(std::adjacent_find(list.begin(), list.end()), list.end());
        const int64_t pages = CandidatePages(tile);
        ASSERT_GE(list.front(), 0);
        ASSERT_LT(list.back(), pages);
        const int64_t tail = pages - ForcedPages(tile, 0, r.recent_pages);
        const auto listed = [&](int64_t page) {
          return std::binary_search(list.begin(), list.end(), page);
        };
        const std::vector<double> scores = NaiveScores(c, r, h, t);
        double worst_taken = std::numeric_limits<double>::infinity();
        double best_left = -std::numeric_limits<double>::infinity();
        for (int64_t page = 0; page < pages; ++page) {
          if (page < r.sink_pages || page >= tail) {
            ASSERT_TRUE(listed(page)) << "page " << page << " is forced";
          } else if (listed(page)) {
            worst_taken = std::min(worst_taken, scores[page]);
          } else {
            best_left = std::max(best_left, scores[page]);
          }
        }
        ASSERT_GE(worst_taken, best_left - slack);
      }
    }
  }
}

// The pages that the attention to means of keys favours, by the formulas of op_params.h.
TEST_P(SelectionTest, TakesThePagesWhoseMeansGetMostAttention) {
  for (int trial = 0; trial < 60; ++trial) {
    SelectionCase c;
    Request r;
    const bool compressed = std::string_view(GetParam()) == "cuda" || trial % 2 == 0;
    r.score = compressed ? PageScore::kCompressedKeys : PageScore::kMeanShares;
    // Keys of a mean, and from one to the next.
    const int64_t width = compressed ? 32 : 64, step = compressed ? 16 : 64;
    do {
      c = RandomCase({64 * RandomInt(4, 9) + RandomInt(-1, 1), RandomInt(300, 2500)});
    } while (compressed && !c.cache.segment_means);
    r.list_heads = RandomInt(0, 2) > 0 ? ListHeads::kPerKvHead : ListHeads::kPerQHead;
    r.sink_pages = RandomInt(0, 2);
    r.recent_pages = RandomInt(1, 3);
    r.scale = 2.0f / std::sqrt(static_cast<float>(c.dim));
    SCOPED_TRACE(testing::Message()
                 << "trial " << trial << " heads " << c.q_heads << "/" << c.kv_heads << " dim "
                 << c.dim << " dtype " << KvDTypeName(c.dtype));
    for (size_t s = 0; s < c.kv_lens.size(); ++s) {
      // A tile that takes everything, and single rows around the edges of segments and pages.
      r.tiles.push_back({static_cast<int32_t>(s), static_cast<int32_t>(r.rows), 5, 0});
      r.counts.push_back(1);
      r.rows += 5;
      const int64_t last = c.kv_lens[s] - 1;
      for (const int64_t at :
           {last, last - 1, last / 16 * 16, last / 16 * 16 - 1, last / 64 * 64 - 1,
            last / 64 * 64 - 2, int64_t{RandomInt(31, 250)}}) {
        const QueryTile tile = {static_cast<int32_t>(s), static_cast<int32_t>(r.rows), 1,
                                static_cast<int32_t>(at)};
        const auto least = static_cast<int32_t>(ForcedPages(tile, r.sink_pages, r.recent_pages));
        r.tiles.push_back(tile);
        r.counts.push_back(RandomInt(least, static_cast<int32_t>(CandidatePages(tile))));
        ++r.rows;
      }
    }
    r.q = Normal(r.rows * c.q_heads * c.dim);
    Layout(c, r);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
    const double slack = MeanSlack(c.dtype);
    const int32_t group = c.q_heads / c.kv_heads;
    const bool per_kv = r.list_heads == ListHeads::kPerKvHead;
    for (int32_t h = 0; h < r.num_lists(c); ++h) {
      for (size_t t = 0; t < r.tiles.size(); ++t) {
        const QueryTile& tile = r.tiles[t];
        const std::vector<int32_t> list = r.List(h, t);
        const int64_t i = tile.first_position + tile.num_rows - 1, pages = i / 64 + 1;
        ASSERT_TRUE(std::is_sorted(list.begin(), list.end()));
        ASSERT_EQ(std::adjacent_find(list.begin(), list.end()), list.end());
        ASSERT_GE(list.front(), 0);
        ASSERT_EQ(list.back(), pages - 1);
        if (r.counts[t] == pages) continue;
        // Means whose keys the row all sees.
        std::vector<double> sums;
        for (int64_t first = 0; first + width <= i + 1; first += step) sums.push_back(0.0);
        for (int32_t q = per_kv ? h * group : h; q < (per_kv ? (h + 1) * group : h + 1); ++q) {
          std::vector<double> weights;
          double total = 0;
          for (size_t n = 0; n < sums.size(); ++n) {
            double s = 0;
            const int64_t first = static_cast<int64_t>(n) * step;
            for (int64_t j = first; j < first + width; ++j) {
              for (int32_t d = 0; d < c.dim; ++d) {
                s += r.q[(tile.row_begin * c.q_heads + q) * c.dim + d] *
                     c.Key(tile.sequence, j, q / group)[d] / static_cast<double>(width);
              }
            }
            weights.push_back(std::exp(s * r.scale));
            total += weights.back();
          }
          for (size_t n = 0; n < sums.size(); ++n) sums[n] += weights[n] / total;
        }
        double worst_taken = 1e30, best_left = 0;
        for (int64_t page = 0; page < pages; ++page) {
          const bool listed = std::binary_search(list.begin(), list.end(), page);
          if (page < r.sink_pages || page >= pages - r.recent_pages) {
            ASSERT_TRUE(listed) << "page " << page << " is forced";
            continue;
          }
          double score = 0;
          const int64_t first = compressed ? 4 * page - 1 : page;
          for (int64_t n = first; n < (compressed ? first + 5 : first + 1); ++n) {
            if (n >= 0 && n < static_cast<int64_t>(sums.size())) score = std::max(score, sums[n]);
          }
          if (listed) worst_taken = std::min(worst_taken, score);
          if (!listed) best_left = std::max(best_left, score);
        }
        // Shares of attention: their error grows with them.
        ASSERT_GE(worst_taken, best_left * (1 - 4 * slack) - 1e-6) << "row at " << i;
      }
    }
  }
}

// Whole blocks of pages by their mean key; the block of the query first.
TEST_P(SelectionTest, TakesWholeBlocksByTheirMeanKeys) {
  for (int trial = 0; trial < 30; ++trial) {
    SelectionCase c = RandomCase({64 * RandomInt(9, 30) + RandomInt(-1, 1)});
    const int32_t width = RandomInt(2, 4);
    Request r;
    r.score = PageScore::kMean;
    r.list_heads = ListHeads::kPerQHead;
    r.block_pages = width;
    const int64_t last = c.kv_lens[0] - 1;
    for (const int64_t at : {last, last - RandomInt(1, 300)}) {
      const int64_t own = at / 64 / width;
      const int64_t blocks = RandomInt(1, static_cast<int32_t>(own));
      r.tiles.push_back({0, static_cast<int32_t>(r.rows++), 1, static_cast<int32_t>(at)});
      r.counts.push_back(static_cast<int32_t>((blocks - 1) * width + at / 64 - own * width + 1));
    }
    r.q = Normal(r.rows * c.q_heads * c.dim);
    Layout(c, r);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
    const double slack = MeanSlack(c.dtype);
    for (int32_t h = 0; h < c.q_heads; ++h) {
      for (size_t t = 0; t < r.tiles.size(); ++t) {
        const std::vector<int32_t> list = r.List(h, t);
        const std::set<int32_t> listed(list.begin(), list.end());
        const int64_t at = r.tiles[t].first_position, own = at / 64 / width;
        double worst_taken = 1e30, best_left = -1e30;
        for (int64_t block = 0; block <= own; ++block) {
          const int64_t end = std::min((block + 1) * width, at / 64 + 1);
          int64_t pages = 0;
          for (int64_t page = block * width; page < end; ++page)
            pages += listed.contains(static_cast<int32_t>(page));
          ASSERT_TRUE(pages == 0 || pages == end - block * width) << "block " << block;
          ASSERT_TRUE(block < own || pages > 0);
          if (block == own) continue;
          double score = 0;
          for (int64_t j = block * width * 64; j < end * 64; ++j) {
            for (int32_t d = 0; d < c.dim; ++d) {
              score += r.q[(t * c.q_heads + h) * c.dim + d] *
                       c.Key(0, j, h / (c.q_heads / c.kv_heads))[d] / (64.0 * width);
            }
          }
          (pages > 0 ? worst_taken : best_left) =
              pages > 0 ? std::min(worst_taken, score) : std::max(best_left, score);
        }
        ASSERT_GE(worst_taken, best_left - slack);
      }
    }
  }
}

// Candidates beyond what threads hold in registers, few of each and many of each, with many equal
// scores.
TEST_P(SelectionTest, LongListsTakeTheLowerOfEqualPages) {
  for (const int32_t pages : {2100, 9000, 16700}) {
    SelectionCase c;
    c.kv_heads = c.q_heads = 1;
    c.dim = 8;
    c.dtype = KvDType::kF32;
    c.kv_lens = {int64_t{pages} * kPageTokens};
    c.stride = pages;
    // Summaries are all that is read.
    const int64_t head = KvHeadPageBytes(c.dtype, c.dim);
    const int64_t stride = (2 * head + PageSummaryBytes(c.dtype, c.dim) + 63) / 64 * 64;
    c.memory = std::make_shared<Buffer>(*backend_->Reserve(stride * pages));
    std::memset(c.memory->data(), 0, c.memory->bytes());
    auto* summaries = reinterpret_cast<float*>(c.memory->as<char>() + 2 * head);
    c.cache = {.k = c.memory->data(),
               .v = c.memory->as<char>() + head,
               .page_stride = stride,
               .head_stride = head,
               .num_pages = pages,
               .num_heads = 1,
               .head_dim = c.dim,
               .dtype = c.dtype,
               .summaries = summaries};
    c.pages.resize(pages);
    std::iota(c.pages.begin(), c.pages.end(), 0);
    std::shuffle(c.pages.begin(), c.pages.end(), rng);
    std::vector<int32_t> scores(pages);
    for (int32_t page = 0; page < pages; ++page) {
      scores[page] = RandomInt(-20, 20);
      summaries[c.pages[page] * (stride / 4) + 2 * c.dim] = static_cast<float>(scores[page]);
    }
    for (const int32_t count : {3, pages / 20, pages / 2, pages - 1}) {
      Request r;
      r.score = PageScore::kMean;
      r.sink_pages = r.recent_pages = 1;
      r.rows = 1;
      r.tiles = {{0, 0, 1, static_cast<int32_t>(c.kv_lens[0]) - 1}};
      r.counts = {count};
      r.q.assign(c.dim, 0.0f);
      r.q[0] = 1.0f;
      Layout(c, r);
      ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
      std::vector<int32_t> want(pages - 2);
      std::iota(want.begin(), want.end(), 1);
      std::stable_sort(want.begin(), want.end(),
                       [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
      want.resize(count - 2);
      want.push_back(0);
      want.push_back(pages - 1);
      std::sort(want.begin(), want.end());
      ASSERT_EQ(r.entries, want) << pages << " pages, " << count << " of them";
    }
  }
}

// The best pages, and as many as the mass asks for.
TEST_P(SelectionTest, TakesTheShareOfAttentionThatIsAskedFor) {
  int64_t left_out = 0;
  for (int trial = 0; trial < 12; ++trial) {
    SelectionCase c = RandomCase({2, 128 * RandomInt(1, 4) + RandomInt(-1, 2), RandomInt(2, 700)});
    Request r = RandomShares(c, PageScore::kAntidiagonal);
    SCOPED_TRACE(testing::Message()
                 << "trial " << trial << " heads " << c.q_heads << "/" << c.kv_heads << " dim "
                 << c.dim << " dtype " << KvDTypeName(c.dtype) << " sinks " << r.sink_pages
                 << " recent " << r.recent_pages << " mass " << r.mass << " stride " << r.stride);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
    for (int32_t h = 0; h < r.num_lists(c); ++h) {
      for (size_t t = 0; t < r.tiles.size(); ++t) {
        const QueryTile& tile = r.tiles[t];
        const int64_t pages = CandidatePages(tile);
        std::vector<int32_t> list = r.List(h, t);
        const auto end = std::find(list.begin(), list.end(), kNoEntry);
        ASSERT_EQ(std::count(end, list.end(), kNoEntry), list.end() - end);
        list.erase(end, list.end());
        ASSERT_TRUE(std::is_sorted(list.begin(), list.end()));
        ASSERT_EQ(std::adjacent_find(list.begin(), list.end()), list.end());
        ASSERT_FALSE(list.empty());
        ASSERT_GE(list.front(), 0);
        ASSERT_LT(list.back(), pages);
        left_out += pages - static_cast<int64_t>(list.size());
        if (tile.num_rows == 1) {
          ASSERT_EQ(static_cast<int64_t>(list.size()), pages);
          continue;
        }
        const int64_t tail = pages - ForcedPages(tile, 0, r.recent_pages);
        const std::vector<double> shares = NaiveShares(c, r, h, t);
        double taken = 0, least_taken = 2, best_left = -1;
        for (int64_t page = 0; page < pages; ++page) {
          const bool listed = std::binary_search(list.begin(), list.end(), page);
          taken += listed ? shares[page] : 0;
          if (page < r.sink_pages || page >= tail) {
            ASSERT_TRUE(listed) << "page " << page << " is forced";
          } else if (listed) {
            least_taken = std::min(least_taken, shares[page]);
          } else {
            best_left = std::max(best_left, shares[page]);
          }
        }
        const double slack = 1e-5 * Rounding(c);
        ASSERT_GE(least_taken, best_left - slack);
        if (least_taken <= 1) {
          ASSERT_LT(taken - least_taken, r.mass + slack);
        }
        if (best_left >= 0) {
          ASSERT_GE(taken, r.mass - slack);
        }
      }
    }
    // A tile alone, and with keys behind it that it does not see.
    const size_t t = RandomInt(0, static_cast<int>(r.tiles.size()) - 1);
    Request one = r;
    one.tiles = {r.tiles[t]};
    one.counts = {r.counts[t]};
    one.list_begin.clear();
    Layout(c, one);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, one)));
    for (int32_t h = 0; h < r.num_lists(c); ++h) ASSERT_EQ(one.List(h, 0), r.List(h, t));
  }
  EXPECT_GT(left_out, 0);
}

// Columns rounded up to pages, and diagonals to what a tile's rows reach along them.
TEST_P(SelectionTest, TakesTheHeaviestColumnsAndDiagonals) {
  int64_t compared = 0, left_out = 0;
  for (int trial = 0; trial < 12; ++trial) {
    SelectionCase c = RandomCase({2, 128 * RandomInt(1, 4) + RandomInt(-1, 2), RandomInt(2, 900)});
    Request r = RandomShares(c, PageScore::kVerticalSlash);
    SCOPED_TRACE(testing::Message()
                 << "trial " << trial << " heads " << c.q_heads << "/" << c.kv_heads << " dim "
                 << c.dim << " dtype " << KvDTypeName(c.dtype) << " sinks " << r.sink_pages
                 << " recent " << r.recent_pages << " mass " << r.mass << " segment " << r.segment
                 << " pages " << r.vertical_pages << " " << r.slash_pages);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
    for (int32_t h = 0; h < r.num_lists(c); ++h) {
      for (size_t t = 0; t < r.tiles.size(); ++t) {
        const QueryTile& tile = r.tiles[t];
        const int64_t pages = CandidatePages(tile);
        std::vector<int32_t> want;
        bool close = false;
        if (tile.num_rows == 1) {
          for (int32_t page = 0; page < pages; ++page) want.push_back(page);
        } else {
          const Probe probe = NaiveProbe(c, r, h, t);
          const auto columns =
              NaiveRuns(probe.columns, r.vertical_pages, r.mass, Rounding(c), &close);
          const auto runs = NaiveRuns(probe.diagonals, r.slash_pages, r.mass, Rounding(c), &close);
          const int64_t tail = pages - ForcedPages(tile, 0, r.recent_pages);
          for (int32_t page = 0; page < pages; ++page) {
            bool take = page < r.sink_pages || page >= tail ||
                        std::binary_search(columns.begin(), columns.end(), page);
            for (int64_t j = page * 64; j < page * 64 + 64; ++j) {
              for (int64_t i = tile.first_position; i < tile.first_position + tile.num_rows; ++i) {
                if (j > i) continue;
                take = take || std::binary_search(runs.begin(), runs.end(), (i - j) / 64);
              }
            }
            if (take) want.push_back(page);
          }
        }
        if (close) continue;
        ++compared;
        left_out += pages - static_cast<int64_t>(want.size());
        want.resize(pages, kNoEntry);
        ASSERT_EQ(r.List(h, t), want) << "tile at " << tile.first_position;
      }
    }
    // The last tile of a prompt alone: its segment's rows are there and probe as before.
    Request one = r;
    one.tiles = {r.tiles.back()};
    one.counts = {r.counts.back()};
    one.list_begin.clear();
    Layout(c, one);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, one)));
    for (int32_t h = 0; h < r.num_lists(c); ++h) {
      ASSERT_EQ(one.List(h, 0), r.List(h, r.tiles.size() - 1));
    }
  }
  EXPECT_GT(compared, 20);
  EXPECT_GT(left_out, 0);
}

// What means of queries and keys say, but of those that have none worth the name.
TEST_P(SelectionTest, TakesThePagesByMeansUpToTheThreshold) {
  int64_t compared = 0, left_out = 0, whole = 0, unlike = 0;
  for (int trial = 0; trial < 16; ++trial) {
    SelectionCase c = RandomCase({2, 128 * RandomInt(1, 4) + RandomInt(-1, 2), RandomInt(2, 900)});
    Request r = RandomShares(c, PageScore::kPooled);
    Lean(c, r);
    SCOPED_TRACE(testing::Message()
                 << "trial " << trial << " heads " << c.q_heads << "/" << c.kv_heads << " dim "
                 << c.dim << " dtype " << KvDTypeName(c.dtype) << " sinks " << r.sink_pages
                 << " recent " << r.recent_pages << " mass " << r.mass << " similarity "
                 << r.similarity);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
    const double slack = GetParam() == std::string("cuda") ? 2e-4 : 1e-5;
    for (int32_t h = 0; h < r.num_lists(c); ++h) {
      for (size_t t = 0; t < r.tiles.size(); ++t) {
        const QueryTile& tile = r.tiles[t];
        const int64_t pages = CandidatePages(tile);
        const Pooled pooled =
            NaivePooled(c, r, h, tile.sequence, tile.row_begin, tile.num_rows,
                        int64_t{tile.first_position} + tile.num_rows, r.similarity);
        bool close = std::abs(pooled.least_row_cosine - r.similarity) < slack;
        std::vector<bool> taken(pages,
                                tile.num_rows == 1 || pooled.least_row_cosine <= r.similarity);
        if (taken[0] && tile.num_rows > 1) ++whole;
        const int64_t tail = pages - ForcedPages(tile, 0, r.recent_pages);
        std::vector<std::pair<double, int64_t>> ranked;
        for (int64_t page = 0; page < pages; ++page) {
          close = close || std::abs(pooled.page_cosines[page] - r.similarity) < slack;
          const bool alike = pooled.page_cosines[page] > r.similarity;
          if (!alike) ++unlike;
          if (!alike || page < r.sink_pages || page >= tail) taken[page] = true;
          if (alike) ranked.emplace_back(-pooled.shares[page], page);
        }
        std::sort(ranked.begin(), ranked.end());
        double sum = 0;
        for (size_t n = 0; n < ranked.size(); ++n) {
          sum -= ranked[n].first;
          if (n > 0 && std::abs(sum - r.mass) < slack) close = true;
          if (n > 0 && sum > r.mass) {
            if (ranked[n].first - ranked[n - 1].first < slack) close = true;
            break;
          }
          taken[ranked[n].second] = true;
        }
        if (close) continue;
        ++compared;
        std::vector<int32_t> want;
        for (int64_t page = 0; page < pages; ++page) {
          if (taken[page]) want.push_back(static_cast<int32_t>(page));
        }
        left_out += pages - static_cast<int64_t>(want.size());
        want.resize(pages, kNoEntry);
        ASSERT_EQ(r.List(h, t), want) << "tile at " << tile.first_position;
      }
    }
    // A tile alone.
    const size_t t = RandomInt(0, static_cast<int>(r.tiles.size()) - 1);
    Request one = r;
    one.tiles = {r.tiles[t]};
    one.counts = {r.counts[t]};
    one.list_begin.clear();
    Layout(c, one);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, one)));
    for (int32_t h = 0; h < r.num_lists(c); ++h) ASSERT_EQ(one.List(h, 0), r.List(h, t));
  }
  EXPECT_GT(compared, 40);
  EXPECT_GT(left_out, 0);
  EXPECT_GT(whole, 0);
  EXPECT_GT(unlike, 0);
}

// FlexPrefill's choice between columns and diagonals and the tile's own mean.
TEST_P(SelectionTest, ListsAreQueryAwareWhereMeansTellWhatColumnsDo) {
  int64_t aware = 0, slashes = 0, left_out = 0;
  for (int trial = 0; trial < 16; ++trial) {
    SelectionCase c =
        RandomCase({2, 128 * RandomInt(1, 4) + RandomInt(-1, 2), RandomInt(300, 900)});
    Request r = RandomShares(c, PageScore::kVerticalSlash);
    r.mass = 0.1f * static_cast<float>(RandomInt(2, 8));
    r.vertical_pages = RandomInt(0, 1);
    r.slash_pages = RandomInt(0, 1);
    r.divergence = trial % 2 == 0 ? 0.25f : 0.1f;
    Lean(c, r);
    SCOPED_TRACE(testing::Message()
                 << "trial " << trial << " heads " << c.q_heads << "/" << c.kv_heads << " dim "
                 << c.dim << " dtype " << KvDTypeName(c.dtype) << " mass " << r.mass << " segment "
                 << r.segment << " divergence " << r.divergence);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
    Request plain = r;
    plain.divergence = 0;
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, plain)));
    const double rounding = Rounding(c);
    const double slack = GetParam() == std::string("cuda") ? 2e-4 : 1e-5;
    for (int32_t h = 0; h < r.num_lists(c); ++h) {
      for (size_t t = 0; t < r.tiles.size(); ++t) {
        const QueryTile& tile = r.tiles[t];
        const int64_t pages = CandidatePages(tile);
        if (tile.num_rows == 1) {
          ASSERT_EQ(r.List(h, t), plain.List(h, t));
          continue;
        }
        const Probe probe = NaiveProbe(c, r, h, t);
        const auto end = static_cast<int64_t>(probe.columns.size());
        // Rows of the segment's end, where its last tile's are.
        const int64_t last_row = tile.row_begin + end - tile.first_position;
        const int64_t rows = std::min<int64_t>(kProbeRows, (end - 1) % r.segment + 1);
        const Pooled means = NaivePooled(c, r, h, tile.sequence, last_row - rows, rows, end, -2);
        const double total = std::accumulate(probe.columns.begin(), probe.columns.end(), 0.0);
        double divergence = 0;
        for (size_t page = 0; page < means.shares.size(); ++page) {
          double column = 0;
          for (int64_t j = page * 64; j < std::min<int64_t>(page * 64 + 64, end); ++j) {
            column += probe.columns[j] / total;
          }
          const double middle = (column + means.shares[page]) / 2;
          if (column > 0) divergence += column / 2 * std::log(column / middle);
          if (means.shares[page] > 0) {
            divergence += means.shares[page] / 2 * std::log(means.shares[page] / middle);
          }
        }
        const double distance = std::sqrt(std::max(divergence, 0.0));
        if (std::abs(distance - r.divergence) < 1e-4 * rounding) continue;
        if (distance > r.divergence) {
          ++slashes;
          ASSERT_EQ(r.List(h, t), plain.List(h, t)) << "tile at " << tile.first_position;
          continue;
        }
        bool close = false;
        const auto columns = NaiveRuns(probe.columns, r.vertical_pages, 0, rounding, &close);
        const auto runs = NaiveRuns(probe.diagonals, r.slash_pages, 0, rounding, &close);
        const Pooled own = NaivePooled(c, r, h, tile.sequence, tile.row_begin, tile.num_rows,
                                       int64_t{tile.first_position} + tile.num_rows, -2);
        const int64_t tail = pages - ForcedPages(tile, 0, r.recent_pages);
        std::vector<bool> taken(pages, false);
        std::vector<std::pair<double, int64_t>> others;
        double sum = 0;
        for (int64_t page = 0; page < pages; ++page) {
          bool take = page < r.sink_pages || page >= tail ||
                      std::binary_search(columns.begin(), columns.end(), page);
          for (int64_t i = tile.first_position; i < tile.first_position + tile.num_rows; ++i) {
            for (int64_t j = page * 64; j < page * 64 + 64; ++j) {
              take = take || (j <= i && std::binary_search(runs.begin(), runs.end(), (i - j) / 64));
            }
          }
          taken[page] = take;
          if (take) {
            sum += own.shares[page];
          } else {
            others.emplace_back(-own.shares[page], page);
          }
        }
        std::sort(others.begin(), others.end());
        for (size_t n = 0; n < others.size(); ++n) {
          if (std::abs(sum - r.mass) < slack) close = true;
          if (sum >= r.mass) {
            if (n > 0 && others[n].first - others[n - 1].first < slack) close = true;
            break;
          }
          sum -= others[n].first;
          taken[others[n].second] = true;
        }
        if (close) continue;
        ++aware;
        std::vector<int32_t> want;
        for (int64_t page = 0; page < pages; ++page) {
          if (taken[page]) want.push_back(static_cast<int32_t>(page));
        }
        left_out += pages - static_cast<int64_t>(want.size());
        want.resize(pages, kNoEntry);
        ASSERT_EQ(r.List(h, t), want) << "tile at " << tile.first_position;
      }
    }
  }
  EXPECT_GT(aware, 10);
  EXPECT_GT(slashes, 10);
  EXPECT_GT(left_out, 0);
}

// A row's list is the same bits of work alone, among others and in another order.
TEST_P(SelectionTest, DoesNotDependOnCompany) {
  SelectionCase c = RandomCase({700, 333, 1200});
  Request all = RandomRequest(c);
  ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, all)));
  for (size_t t = 0; t < all.tiles.size(); ++t) {
    Request one = all;
    one.tiles = {all.tiles[t]};
    one.counts = {all.counts[t]};
    one.list_begin.clear();
    Layout(c, one);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, one)));
    for (int32_t h = 0; h < all.num_lists(c); ++h) ASSERT_EQ(one.List(h, 0), all.List(h, t));
  }
}

// Pages with equal keys tie; the lower one is taken.
TEST_P(SelectionTest, TiesGoToTheLowerPage) {
  SelectionCase c;
  c.dtype = KvDType::kF32;
  c.dim = 24;
  Place(c, {64 * 12});
  for (int64_t page = 0; page < 12; ++page) {
    for (int64_t j = page * 64; j < page * 64 + 64; ++j) {
      const int64_t width = int64_t{c.kv_heads} * c.dim;
      std::copy_n(c.keys[0].begin() + j % 64 * width, width, c.keys[0].begin() + j * width);
    }
    Append(c, {{0, page * 64, 64}});
  }
  for (const PageScore score : {PageScore::kBound, PageScore::kMean}) {
    Request r;
    r.score = score;
    r.sink_pages = 1;
    r.tiles = {{0, 0, 1, 64 * 12 - 1}};
    r.rows = 1;
    r.counts = {6};
    r.q = Normal(c.q_heads * c.dim);
    Layout(c, r);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
    for (int32_t h = 0; h < c.kv_heads; ++h) {
      EXPECT_EQ(r.List(h, 0), (std::vector<int32_t>{0, 1, 2, 3, 4, 11}));
    }
  }
}

// Queries that are not numbers rank nothing; those of other heads still count.
TEST_P(SelectionTest, QueriesThatAreNotNumbersDoNotCount) {
  SelectionCase c;
  Place(c, {64 * 8});
  Request r;
  r.tiles = {{0, 0, 1, 64 * 8 - 1}};
  r.rows = 1;
  r.counts = {3};
  r.q = Normal(c.q_heads * c.dim);
  Layout(c, r);
  Request clean = r;
  // KV head 0: query heads 0 and 1; head 1 gives the ranking alone.
  std::copy_n(clean.q.begin() + c.dim, c.dim, clean.q.begin());
  r.q[3] = std::numeric_limits<float>::quiet_NaN();
  for (int32_t d = 0; d < 2 * c.dim; ++d) {
    r.q[2 * c.dim + d] = std::numeric_limits<float>::quiet_NaN();
  }
  ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
  ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, clean)));
  EXPECT_EQ(r.List(0, 0), clean.List(0, 0));
  EXPECT_EQ(r.List(1, 0), (std::vector<int32_t>{0, 1, 7}));
}

// All candidates: summaries and queries are not looked at.
TEST_P(SelectionTest, WholeListsNeedNoScores) {
  SelectionCase c = RandomCase({500});
  std::memset(c.cache.summaries, 0xff, PageSummaryBytes(c.dtype, c.dim));
  Request r;
  r.tiles = {{0, 0, 116, 384}, {0, 116, 1, 63}};
  r.rows = 117;
  r.counts = {8, 1};
  r.q.assign(r.rows * c.q_heads * c.dim, std::numeric_limits<float>::quiet_NaN());
  Layout(c, r);
  ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
  for (int32_t h = 0; h < c.kv_heads; ++h) {
    EXPECT_EQ(r.List(h, 0), (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
    EXPECT_EQ(r.List(h, 1), std::vector<int32_t>{0});
  }
  r.tiles.clear();
  ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));  // nothing to do
}

// Attention over lists that lie where SelectPages put them is attention over the same lists given
// by the host, to the bit; the keys counted are the same too.
TEST_P(SelectionTest, AttentionReadsTheListsWhereTheyAre) {
  for (int trial = 0; trial < 12; ++trial) {
    SelectionCase c;
    c.kv_heads = RandomInt(1, 2);
    c.q_heads = c.kv_heads * (trial % 2 == 0 ? 4 : 2);
    c.dim = trial % 4 < 2 ? 128 : 64;
    c.dtype = trial % 3 == 0 ? KvDType::kBF16 : trial % 3 == 1 ? KvDType::kF16 : KvDType::kFp8;
    Place(c, {700 + RandomInt(0, 70), 64 * RandomInt(3, 6), 1100});
    SCOPED_TRACE(testing::Message() << "trial " << trial << " dim " << c.dim << " heads "
                                    << c.q_heads << "/" << c.kv_heads);
    // A prompt's tiles, a decoded token, and a few replayed ones.
    Request r;
    r.list_heads = trial % 2 == 0 ? ListHeads::kPerKvHead : ListHeads::kPerQHead;
    r.sink_pages = 1;
    const auto add = [&](int32_t sequence, int64_t begin, int64_t end, int64_t tile) {
      while (begin < end) {
        const int64_t to = std::min((begin / tile + 1) * tile, end);
        r.tiles.push_back({sequence, static_cast<int32_t>(r.rows), static_cast<int32_t>(to - begin),
                           static_cast<int32_t>(begin)});
        r.rows += to - begin;
        begin = to;
      }
    };
    add(0, 384, c.kv_lens[0], 128);
    add(1, c.kv_lens[1] - 1, c.kv_lens[1], 1);
    add(2, c.kv_lens[2] - 3, c.kv_lens[2], 1);
    const bool padded = trial >= 6;
    if (padded) {
      r.score = PageScore::kAntidiagonal;
      r.mass = 0.5f;
      r.stride = 16;
      r.scale = 0.1f;
    }
    for (const QueryTile& tile : r.tiles) {
      const int64_t pages = CandidatePages(tile);
      r.counts.push_back(static_cast<int32_t>(
          padded ? pages : std::min(pages, ForcedPages(tile, 1, 1) + RandomInt(0, 3))));
    }
    r.q = Normal(r.rows * c.q_heads * c.dim);
    Layout(c, r);
    ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
    std::vector<int32_t> list_count;
    for (int32_t h = 0; h < r.num_lists(c); ++h) {
      list_count.insert(list_count.end(), r.counts.begin(), r.counts.end());
    }
    const std::vector<EdgeRule> edges(r.num_lists(c));
    const std::vector<int32_t> kv_lens(c.kv_lens.begin(), c.kv_lens.end());
    const std::vector<uint8_t> generated = {0, 1, 1};
    std::vector<std::vector<float>> outs;
    std::vector<AttentionCounters> counters(2);
    for (const bool made : {true, false}) {
      std::vector<float> out(r.q.size(), 99.0f);
      AttentionParams p;
      p.q = View3(r.q, r.rows, c.q_heads, c.dim);
      p.cache = c.cache;
      p.page_table = c.table();
      p.kv_lens = kv_lens.data();
      p.generated = generated.data();
      p.selection.list_heads = r.list_heads;
      p.selection.num_list_heads = r.num_lists(c);
      p.selection.num_tiles = static_cast<int32_t>(r.tiles.size());
      p.selection.tiles = r.tiles.data();
      p.selection.list_begin = r.list_begin.data();
      p.selection.list_count = list_count.data();
      p.selection.entries = r.entries.data();
      p.selection.num_entries = static_cast<int64_t>(r.entries.size());
      p.selection.edges = edges.data();
      p.selection.entries_made = made;
      p.selection.entries_padded = made && padded;
      p.scale = 0.1f;
      p.out = View3(out, r.rows, c.q_heads, c.dim);
      p.counters = &counters[made ? 0 : 1];
      ASSERT_LS_OK(backend_->Attention(p));
      outs.push_back(std::move(out));
    }
    EXPECT_TRUE(outs[0] == outs[1]);
    EXPECT_TRUE(std::none_of(outs[0].begin(), outs[0].end(), [](float x) { return x == 99.0f; }));
    EXPECT_EQ(counters[0].keys_visible, counters[1].keys_visible);
    EXPECT_EQ(counters[0].keys_read, counters[1].keys_read);
  }
}

// What a padded step adds: tiles without lists, pages that are none, room for more candidates.
TEST_P(SelectionTest, PaddingChangesNothing) {
  SelectionCase c = RandomCase({700, 300, 64});
  Request r = RandomRequest(c);
  ASSERT_LS_OK(backend_->SelectPages(ParamsOf(c, r)));
  const Request whole = r;
  for (size_t t = 1; t < r.tiles.size(); t += 2) r.counts[t] = 0;
  r.entries.assign(r.entries.size(), 12345);
  SelectPagesParams p = ParamsOf(c, r);
  p.max_candidates = c.stride;
  const int32_t none = kNoPage, one = 1;
  ASSERT_LS_OK(backend_->SummarizePages(
      {.cache = c.cache, .page_ids = &none, .counts = &one, .num_pages = 1}));
  ASSERT_LS_OK(backend_->SelectPages(p));
  for (size_t list = 0; list < r.list_begin.size(); ++list) {
    const size_t t = list % r.tiles.size();
    for (int32_t i = 0; i < whole.counts[t]; ++i) {
      const int64_t at = r.list_begin[list] + i;
      EXPECT_EQ(r.entries[at], t % 2 == 1 ? 12345 : whole.entries[at]) << "list " << list;
    }
  }
}

TEST_P(SelectionTest, RefusesWhatBreaksTheContract) {
  SelectionCase c = RandomCase({500});
  Request r = RandomRequest(c);
  r.tiles = {{0, 0, 1, 499}};
  r.list_begin.clear();
  r.counts = {8};
  Layout(c, r);
  const auto refusal = [&](auto spoil) {
    SelectPagesParams p = ParamsOf(c, r);
    Request bad = r;
    spoil(p, bad);
    p.tiles = bad.tiles.data();
    p.counts = bad.counts.data();
    return std::string(backend_->SelectPages(p).message());
  };
  EXPECT_THAT(refusal([](SelectPagesParams&, Request& b) { b.counts = {9}; }),
              HasSubstr("no more than candidates, got 9"));
  EXPECT_THAT(refusal([](SelectPagesParams&, Request& b) { b.counts = {-1}; }),
              HasSubstr("as many entries as are forced or more"));
  EXPECT_THAT(refusal([](SelectPagesParams&, Request& b) { b.tiles[0].sequence = 1; }),
              HasSubstr("a tile inside the step's rows"));
  EXPECT_THAT(refusal([](SelectPagesParams& p, Request&) { p.cache.summaries = nullptr; }),
              HasSubstr("a cache with summaries"));
  EXPECT_THAT(refusal([](SelectPagesParams& p, Request&) {
                p.score = PageScore::kCompressedKeys;
                p.cache.segment_means = false;
              }),
              HasSubstr("summaries with segment means"));
  EXPECT_THAT(refusal([](SelectPagesParams& p, Request&) {
                p.block_pages = 2;
                p.score = PageScore::kBound;
              }),
              HasSubstr("blocks of 1 page"));
  EXPECT_THAT(refusal([](SelectPagesParams& p, Request&) { p.list_heads = ListHeads::kShared; }),
              HasSubstr("lists per KV head"));
  EXPECT_THAT(refusal([](SelectPagesParams& p, Request&) { p.num_entries = 3; }),
              HasSubstr("a list inside the entries"));
  if (std::string(GetParam()) == "cuda") return;  // found when the step ends
  c.pages[2] = kNoPage;
  r.counts = {static_cast<int32_t>(ForcedPages(r.tiles[0], r.sink_pages, r.recent_pages))};
  r.list_begin.clear();
  Layout(c, r);
  EXPECT_THAT(std::string(backend_->SelectPages(ParamsOf(c, r)).message()),
              HasSubstr("logical page 2"));
}

INSTANTIATE_TEST_SUITE_P(Backends, SelectionTest,
                         testing::Values("reference", "portable", "avx2", "avxvnni", "avx512vnni",
                                         "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace longstride::kernels

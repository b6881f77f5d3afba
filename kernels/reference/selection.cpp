#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/quant.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/reference/stored_key.h"
#include "kernels/take_pages.h"

namespace longstride::kernels {
namespace {

DType RowType(KvDType t) {
  const bool halves = t == KvDType::kF16 || t == KvDType::kFp8;  // that hold all e4m3 values
  return halves ? DType::kF16 : t == KvDType::kBF16 ? DType::kBF16 : DType::kF32;
}

void StoreValue(KvDType dtype, char* row, int32_t d, float value) {
  switch (RowType(dtype)) {
    case DType::kF16:
      reinterpret_cast<uint16_t*>(row)[d] = FloatToHalf(value);
      return;
    case DType::kBF16:
      reinterpret_cast<uint16_t*>(row)[d] = FloatToBfloat16(value);
      return;
    default:
      reinterpret_cast<float*>(row)[d] = value;
  }
}

// The query heads [first, +count) of one list, and the KV head that they read.
struct ListHead {
  int64_t first, count, kv_head;
};

ListHead ListHeadOf(const SelectPagesParams& p, int64_t h) {
  const int64_t group = p.q.shape[1] / p.cache.num_heads;
  if (p.list_heads == ListHeads::kPerKvHead) return {h * group, group, h};
  return {h, 1, h / group};
}

float Score(PageScore kind, const std::vector<float>& q, const std::vector<float>& summary) {
  const size_t dim = q.size();
  float score = 0.0f;
  for (size_t d = 0; d < dim; ++d) {
    score += kind == PageScore::kMean ? q[d] * summary[2 * dim + d]
                                      : std::max(q[d] * summary[d], q[d] * summary[dim + d]);
  }
  return score;
}

// Means of the first `count` segments of a sequence's keys, [count, head_dim].
absl::StatusOr<std::vector<float>> SegmentMeans(const SelectPagesParams& p, int32_t sequence,
                                                int64_t kv_head, int64_t count) {
  const int64_t dim = p.cache.head_dim;
  const int64_t row_bytes = SummaryRowBytes(p.cache);
  std::vector<float> means(static_cast<size_t>(count * dim));
  for (int64_t s = 0; s < count; ++s) {
    const int32_t id = p.page_table.pages[sequence * p.page_table.stride + s / kPageSegments];
    if (id < 0 || id >= p.cache.num_pages) {
      return absl::InternalError(StrCat("SelectPages: logical page ", s / kPageSegments,
                                        " of sequence ", sequence, " is a candidate but is page ",
                                        id));
    }
    const char* row = static_cast<const char*>(p.cache.summaries) + id * p.cache.page_stride +
                      kv_head * PageSummaryBytes(p.cache) +
                      (kSummaryRows + s % kPageSegments) * row_bytes;
    DequantizeRow(RowType(p.cache.dtype), row, dim, means.data() + s * dim);
  }
  return means;
}

// Adds exp(s - max) / sum of each of `scores` to (*out)[index / per_cell]; a row that is no numbers
// adds nothing.
void AddSoftmax(const std::vector<double>& scores, int64_t per_cell, std::vector<double>* out) {
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const double s : scores) max = std::max(max, s);
  for (const double s : scores) sum += std::exp(s - max);
  if (!(sum > 0)) return;
  for (size_t m = 0; m < scores.size(); ++m) {
    (*out)[m / static_cast<size_t>(per_cell)] += std::exp(scores[m] - max) / sum;
  }
}

// PageScore::kCompressedKeys of a tile of one row.
absl::Status ScoreByCompressedKeys(const SelectPagesParams& p, const QueryTile& tile,
                                   const ListHead& list, std::vector<float>* scores) {
  const int64_t dim = p.cache.head_dim, keys = CompressedKeys(tile.first_position);
  ASSIGN_OR_RETURN(const std::vector<float> means,
                   SegmentMeans(p, tile.sequence, list.kv_head, keys + 1));
  std::vector<double> sums(static_cast<size_t>(keys), 0.0);
  for (int64_t h = list.first; h < list.first + list.count; ++h) {
    const float* q = p.q.ptr<float>() + tile.row_begin * p.q.strides[0] + h * p.q.strides[1];
    std::vector<double> products;
    for (int64_t c = 0; c < keys; ++c) {
      double product = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const auto at = static_cast<size_t>(c * dim + d);
        product += double{q[d]} * (double{means[at]} + means[at + static_cast<size_t>(dim)]) / 2;
      }
      products.push_back(p.scale * product);
    }
    AddSoftmax(products, 1, &sums);
  }
  const std::vector<float> weights(sums.begin(), sums.end());
  for (size_t page = 0; page < scores->size(); ++page) {
    (*scores)[page] = CompressedScore(static_cast<int64_t>(page), weights);
  }
  return absl::OkStatus();
}

// The mean of the keys of a sequence's logical page, [head_dim].
absl::StatusOr<std::vector<float>> PageMean(const SelectPagesParams& p, int32_t sequence,
                                            int64_t kv_head, int64_t page) {
  const int32_t id = p.page_table.pages[sequence * p.page_table.stride + page];
  if (id < 0 || id >= p.cache.num_pages) {
    return absl::InternalError(StrCat("SelectPages: logical page ", page, " of sequence ", sequence,
                                      " is a candidate but is page ", id));
  }
  std::vector<float> mean(static_cast<size_t>(p.cache.head_dim));
  const char* row = static_cast<const char*>(p.cache.summaries) + id * p.cache.page_stride +
                    kv_head * PageSummaryBytes(p.cache) + 2 * SummaryRowBytes(p.cache);
  DequantizeRow(RowType(p.cache.dtype), row, p.cache.head_dim, mean.data());
  return mean;
}

// PageScore::kMeanShares of a tile of one row.
absl::Status ScoreByMeanShares(const SelectPagesParams& p, const QueryTile& tile,
                               const ListHead& list, std::vector<float>* scores) {
  const int64_t pages = WholePages(tile.first_position);
  std::vector<std::vector<float>> means;
  for (int64_t page = 0; page < pages; ++page) {
    ASSIGN_OR_RETURN(means.emplace_back(), PageMean(p, tile.sequence, list.kv_head, page));
  }
  std::vector<double> sums(static_cast<size_t>(pages), 0.0);
  for (int64_t h = list.first; h < list.first + list.count; ++h) {
    const float* q = p.q.ptr<float>() + tile.row_begin * p.q.strides[0] + h * p.q.strides[1];
    std::vector<double> products;
    for (const std::vector<float>& mean : means) {
      double product = 0;
      for (size_t d = 0; d < mean.size(); ++d) product += double{q[d]} * mean[d];
      products.push_back(p.scale * product);
    }
    AddSoftmax(products, 1, &sums);
  }
  for (size_t page = 0; page < scores->size(); ++page) {
    (*scores)[page] = static_cast<float>(sums[page]);
  }
  return absl::OkStatus();
}

// Scores of the pages [0, scores->size()) of a tile's sequence for one list head.
absl::Status ScorePages(const SelectPagesParams& p, const QueryTile& tile, const ListHead& list,
                        std::vector<float>* scores) {
  const int64_t dim = p.cache.head_dim;
  std::vector<std::vector<float>> pooled;
  for (int64_t h = list.first; h < list.first + list.count; ++h) {
    std::vector<float> mean(static_cast<size_t>(dim), 0.0f);
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      const float* q =
          p.q.ptr<float>() + (tile.row_begin + r) * p.q.strides[0] + h * p.q.strides[1];
      for (int64_t d = 0; d < dim; ++d) mean[d] += q[d];
    }
    for (float& x : mean) x /= static_cast<float>(tile.num_rows);
    pooled.push_back(std::move(mean));
  }
  if (p.score == PageScore::kCompressedKeys) return ScoreByCompressedKeys(p, tile, list, scores);
  if (p.score == PageScore::kMeanShares) return ScoreByMeanShares(p, tile, list, scores);
  std::vector<float> summary(static_cast<size_t>(kSummaryRows * dim));
  for (size_t page = 0; page < scores->size(); ++page) {
    const int32_t id = p.page_table.pages[tile.sequence * p.page_table.stride + page];
    if (id < 0 || id >= p.cache.num_pages) {
      return absl::InternalError(StrCat("SelectPages: logical page ", page, " of sequence ",
                                        tile.sequence, " is a candidate but is page ", id));
    }
    const char* row = static_cast<const char*>(p.cache.summaries) + id * p.cache.page_stride +
                      list.kv_head * PageSummaryBytes(p.cache);
    DequantizeRow(RowType(p.cache.dtype), row, kSummaryRows * dim, summary.data());
    float best = -std::numeric_limits<float>::infinity();
    for (const std::vector<float>& q : pooled) {
      const float score = Score(p.score, q, summary);
      if (score > best) best = score;
    }
    (*scores)[page] = best;
  }
  return absl::OkStatus();
}

// Keys [0, count) of a sequence and KV head, [count, head_dim].
absl::StatusOr<std::vector<float>> KeysOf(const SelectPagesParams& p, int32_t sequence,
                                          int64_t kv_head, int64_t count) {
  const int64_t dim = p.cache.head_dim;
  std::vector<float> keys(static_cast<size_t>(count * dim));
  for (int64_t j = 0; j < count; ++j) {
    const int64_t page = j / kPageTokens;
    const int32_t id = p.page_table.pages[sequence * p.page_table.stride + page];
    if (id < 0 || id >= p.cache.num_pages) {
      return absl::InternalError(StrCat("SelectPages: logical page ", page, " of sequence ",
                                        sequence, " is a candidate but is page ", id));
    }
    const char* head = static_cast<const char*>(p.cache.k) + id * p.cache.page_stride +
                       kv_head * p.cache.head_stride;
    for (int32_t d = 0; d < dim; ++d) {
      keys[static_cast<size_t>(j * dim + d)] =
          KeyValue(p.cache, head, static_cast<int32_t>(j % kPageTokens), d);
    }
  }
  return keys;
}

// PageScore::kAntidiagonal of the tile's candidates.
absl::StatusOr<std::vector<double>> AntidiagonalShares(const SelectPagesParams& p,
                                                       const QueryTile& tile,
                                                       const ListHead& list) {
  const int64_t dim = p.cache.head_dim, stride = p.stride;
  const int64_t end = int64_t{tile.first_position} + tile.num_rows;
  ASSIGN_OR_RETURN(const std::vector<float> keys, KeysOf(p, tile.sequence, list.kv_head, end));
  std::vector<double> shares(static_cast<size_t>(CandidatePages(tile)), 0.0);
  for (int64_t h = list.first; h < list.first + list.count; ++h) {
    for (int64_t n = tile.first_position / stride; n * stride < end; ++n) {
      std::vector<double> scores;
      for (int64_t m = 0; m <= n; ++m) {
        double sum = 0;
        for (int64_t t = 0; t < stride; ++t) {
          const int64_t i = n * stride + stride - 1 - t, j = m * stride + t;
          if (i >= end || j >= end) continue;
          const float* q = p.q.ptr<float>() +
                           (tile.row_begin + i - tile.first_position) * p.q.strides[0] +
                           h * p.q.strides[1];
          for (int64_t d = 0; d < dim; ++d) {
            sum += double{q[d]} * keys[static_cast<size_t>(j * dim + d)];
          }
        }
        scores.push_back(p.scale / static_cast<double>(stride) * sum);
      }
      AddSoftmax(scores, kPageTokens / stride, &shares);
    }
  }
  const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= total;
  return shares;
}

// |mean of x / |x||^2 of `count` vectors, `at` naming the first value of each.
template <typename At>
double MeanCosine(int64_t count, int64_t dim, const At& at) {
  std::vector<double> sum(static_cast<size_t>(dim), 0.0);
  for (int64_t i = 0; i < count; ++i) {
    double square = 0;
    for (int64_t d = 0; d < dim; ++d) square += double{at(i)[d]} * at(i)[d];
    if (square == 0) continue;
    for (int64_t d = 0; d < dim; ++d) sum[static_cast<size_t>(d)] += at(i)[d] / std::sqrt(square);
  }
  double square = 0;
  for (const double x : sum) square += x * x;
  return square / static_cast<double>(count * count);
}

// What means tell of rows [row_begin, +num_rows) of q and the keys [0, end): scale * q̄ · k̄
// softmaxed over the pages that are alike, a mean over the list's heads.
struct PooledShares {
  std::vector<double> shares;  // [pages]
  std::vector<uint8_t> alike;  // [pages]; all 1 without a limit
  bool rows_alike = true;
};

absl::StatusOr<PooledShares> PooledSharesOf(const SelectPagesParams& p, int32_t sequence,
                                            int32_t row_begin, int32_t num_rows, int64_t end,
                                            const ListHead& list) {
  const int64_t dim = p.cache.head_dim, pages = (end + kPageTokens - 1) / kPageTokens;
  const bool limits = p.score == PageScore::kPooled;
  ASSIGN_OR_RETURN(const std::vector<float> keys, KeysOf(p, sequence, list.kv_head, end));
  PooledShares out;
  out.shares.assign(static_cast<size_t>(pages), 0.0);
  for (int64_t page = 0; page < pages; ++page) {
    const int64_t count = std::min<int64_t>(kPageTokens, end - page * kPageTokens);
    const double cosine = MeanCosine(
        count, dim, [&](int64_t i) { return keys.data() + (page * kPageTokens + i) * dim; });
    out.alike.push_back(!limits || cosine > p.similarity ? 1 : 0);
  }
  for (int64_t h = list.first; h < list.first + list.count; ++h) {
    const auto row = [&](int64_t r) {
      return p.q.ptr<float>() + (row_begin + r) * p.q.strides[0] + h * p.q.strides[1];
    };
    if (limits && !(MeanCosine(num_rows, dim, row) > p.similarity)) out.rows_alike = false;
    std::vector<double> scores;
    for (int64_t page = 0; page < pages; ++page) {
      if (out.alike[static_cast<size_t>(page)] == 0) {
        scores.push_back(-std::numeric_limits<double>::infinity());
        continue;
      }
      const int64_t first = page * kPageTokens, last = std::min(end, first + kPageTokens);
      double score = 0;
      for (int64_t d = 0; d < dim; ++d) {
        double q = 0, k = 0;
        for (int64_t r = 0; r < num_rows; ++r) q += row(r)[d];
        for (int64_t j = first; j < last; ++j) k += keys[static_cast<size_t>(j * dim + d)];
        score += q / num_rows * k / static_cast<double>(last - first);
      }
      scores.push_back(p.scale * score);
    }
    AddSoftmax(scores, 1, &out.shares);
  }
  for (double& share : out.shares) share /= static_cast<double>(list.count);
  return out;
}

absl::StatusOr<PooledShares> PooledSharesOf(const SelectPagesParams& p, const QueryTile& tile,
                                            const ListHead& list) {
  return PooledSharesOf(p, tile.sequence, tile.row_begin, tile.num_rows,
                        int64_t{tile.first_position} + tile.num_rows, list);
}

// The lists of one list head.
absl::Status SelectVerticalSlash(const SelectPagesParams& p, int64_t h) {
  const ListHead list = ListHeadOf(p, h);
  const int64_t dim = p.cache.head_dim;
  for (const ProbedTiles& probed : FindProbedTiles(p)) {
    const auto list_of = [&](int32_t t) { return p.entries + p.list_begin[h * p.num_tiles + t]; };
    const QueryTile& first = p.tiles[probed.begin];
    if (p.counts[probed.begin] == 0) continue;
    if (first.num_rows == 1) {
      TakeAll(first, list_of(probed.begin));
      continue;
    }
    const auto count = static_cast<size_t>(probed.last_position + 1);
    ASSIGN_OR_RETURN(const std::vector<float> keys,
                     KeysOf(p, first.sequence, list.kv_head, probed.last_position + 1));
    std::vector<double> columns(count, 0.0), diagonals(count, 0.0);
    for (int64_t head = list.first; head < list.first + list.count; ++head) {
      for (int32_t row = probed.first_row; row < probed.end_row; ++row) {
        const int64_t position = probed.last_position - (probed.end_row - 1 - row);
        const float* q = p.q.ptr<float>() + row * p.q.strides[0] + head * p.q.strides[1];
        std::vector<double> scores;
        for (int64_t j = 0; j <= position; ++j) {
          double sum = 0;
          for (int64_t d = 0; d < dim; ++d) {
            sum += double{q[d]} * keys[static_cast<size_t>(j * dim + d)];
          }
          scores.push_back(p.scale * sum);
        }
        AddSoftmax(scores, 1, &columns);
        std::reverse(scores.begin(), scores.end());
        AddSoftmax(scores, 1, &diagonals);
      }
    }
    if (p.divergence > 0) {
      ASSIGN_OR_RETURN(const PooledShares probe, PooledSharesOf(p, first.sequence, probed.first_row,
                                                                probed.end_row - probed.first_row,
                                                                probed.last_position + 1, list));
      if (IsQueryAware(p, columns, probe.shares)) {
        const VerticalSlash least = ChooseLeastVerticalSlash(p, columns, diagonals);
        for (int32_t t = probed.begin; t < probed.end; ++t) {
          ASSIGN_OR_RETURN(const PooledShares pooled, PooledSharesOf(p, p.tiles[t], list));
          TakeQueryAware(p, p.tiles[t], least, pooled.shares, list_of(t));
        }
        continue;
      }
    }
    const VerticalSlash chosen = ChooseVerticalSlash(p, columns, diagonals);
    for (int32_t t = probed.begin; t < probed.end; ++t) {
      TakeVerticalSlash(p, p.tiles[t], chosen, list_of(t));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReferenceBackend::DoSummarizePages(const PageSummaryParams& p) {
  const int64_t head_bytes = PageSummaryBytes(p.cache);
  const int64_t row_bytes = SummaryRowBytes(p.cache);
  for (int32_t i = 0; i < p.num_pages; ++i) {
    if (p.page_ids[i] == kNoPage) continue;
    for (int32_t h = 0; h < p.cache.num_heads; ++h) {
      const int64_t page = p.page_ids[i] * p.cache.page_stride;
      const char* keys = static_cast<const char*>(p.cache.k) + page + h * p.cache.head_stride;
      char* out = static_cast<char*>(p.cache.summaries) + page + h * head_bytes;
      for (int32_t d = 0; d < p.cache.head_dim; ++d) {
        float min = KeyValue(p.cache, keys, 0, d);
        float max = min, sum = min;
        for (int32_t slot = 1; slot < p.counts[i]; ++slot) {
          const float key = KeyValue(p.cache, keys, slot, d);
          if (key < min) min = key;
          if (key > max) max = key;
          sum += key;
        }
        StoreValue(p.cache.dtype, out, d, min);
        StoreValue(p.cache.dtype, out + row_bytes, d, max);
        StoreValue(p.cache.dtype, out + 2 * row_bytes, d, sum / static_cast<float>(p.counts[i]));
        for (int32_t s = 0; p.cache.segment_means && s < kPageSegments; ++s) {
          const int32_t begin = s * kSegmentTokens;
          const int32_t end = std::min(begin + kSegmentTokens, p.counts[i]);
          sum = 0.0f;
          for (int32_t slot = begin; slot < end; ++slot) sum += KeyValue(p.cache, keys, slot, d);
          StoreValue(p.cache.dtype, out + (kSummaryRows + s) * row_bytes, d,
                     end > begin ? sum / static_cast<float>(end - begin) : 0.0f);
        }
        if (!p.cache.value_mean) continue;
        const char* values = static_cast<const char*>(p.cache.v) + page + h * p.cache.head_stride;
        sum = 0.0f;
        for (int32_t slot = 0; slot < p.counts[i]; ++slot) {
          sum += KeyValue(p.cache, values, slot, d);
        }
        StoreValue(p.cache.dtype, out + head_bytes - row_bytes, d,
                   sum / static_cast<float>(p.counts[i]) * p.cache.v_scale);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::DoSelectPages(const SelectPagesParams& p) {
  const int64_t list_heads =
      p.list_heads == ListHeads::kPerKvHead ? p.cache.num_heads : p.q.shape[1];
  if (p.score == PageScore::kVerticalSlash) {
    for (int64_t h = 0; h < list_heads; ++h) RETURN_IF_ERROR(SelectVerticalSlash(p, h));
    return absl::OkStatus();
  }
  for (int64_t h = 0; h < list_heads; ++h) {
    for (int32_t t = 0; t < p.num_tiles; ++t) {
      if (p.counts[t] == 0) continue;
      const QueryTile& tile = p.tiles[t];
      const int64_t pages = CandidatePages(tile);
      std::vector<int32_t> order(static_cast<size_t>(pages));
      std::iota(order.begin(), order.end(), 0);
      const int64_t tail_begin = pages - ForcedPages(tile, 0, p.recent_pages);
      if (p.score == PageScore::kAntidiagonal && tile.num_rows > 1) {
        ASSIGN_OR_RETURN(const std::vector<double> shares,
                         AntidiagonalShares(p, tile, ListHeadOf(p, h)));
        TakeByShares(p, tile, shares, p.entries + p.list_begin[h * p.num_tiles + t]);
        continue;
      }
      if (p.score == PageScore::kPooled && tile.num_rows > 1) {
        ASSIGN_OR_RETURN(const PooledShares pooled, PooledSharesOf(p, tile, ListHeadOf(p, h)));
        int32_t* out = p.entries + p.list_begin[h * p.num_tiles + t];
        if (pooled.rows_alike) {
          TakePooled(p, tile, pooled.shares, pooled.alike, out);
        } else {
          TakeAll(tile, out);
        }
        continue;
      }
      if (p.counts[t] < pages) {
        std::vector<float> scores(static_cast<size_t>(tail_begin));
        RETURN_IF_ERROR(ScorePages(p, tile, ListHeadOf(p, h), &scores));
        if (p.block_pages > 1) ScoreBlocks(p, tile, scores);
        const auto forced = [&](int32_t page) { return page < p.sink_pages || page >= tail_begin; };
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
          if (forced(a) || forced(b)) return forced(a) && !forced(b);
          return scores[a] > scores[b];
        });
      }
      std::sort(order.begin(), order.begin() + p.counts[t]);
      std::copy_n(order.begin(), p.counts[t], p.entries + p.list_begin[h * p.num_tiles + t]);
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/quant.h"
#include "kernels/take_pages.h"

namespace longstride::kernels::cpu {
namespace {

constexpr int32_t kTilesAtOnce = 64;   // bounds the memory of scores
constexpr int64_t kPagesOfTask = 128;  // scored by one thread
constexpr int64_t kSmall = 1 << 18;    // products that are not worth waking other threads for

// One list to be made from scores.
struct RankedList {
  const QueryTile* tile;
  int32_t first_head, num_heads;  // query heads
  int32_t kv_head;
  int64_t tail_begin;  // pages from here on are taken anyway
  int32_t count;
  float* q;       // [num_heads, head_dim] the tile's mean
  float* scores;  // [tail_begin]
  // WeighsSummaries: [num_heads, num_weights] products with means (of pages, or of segments, of
  // which two that follow each other are a compressed key), then weights of the first num_keys.
  float* weights;
  int64_t num_weights, num_keys;
  int32_t* entries;
};

void PoolQueries(const SelectPagesParams& p, const RankedList& list) {
  const int64_t dim = p.cache.head_dim;
  for (int32_t h = 0; h < list.num_heads; ++h) {
    float* mean = list.q + h * dim;
    std::fill_n(mean, dim, 0.0f);
    for (int32_t r = 0; r < list.tile->num_rows; ++r) {
      const float* q = p.q.ptr<float>() + (list.tile->row_begin + r) * p.q.strides[0] +
                       (list.first_head + h) * p.q.strides[1];
      for (int64_t d = 0; d < dim; ++d) mean[d] += q[d];
    }
    for (int64_t d = 0; d < dim; ++d) mean[d] /= static_cast<float>(list.tile->num_rows);
  }
}

// From products with the means of count + 1 segments to those with `count` compressed keys.
void Pair(int64_t count, float* x) {
  for (int64_t c = 0; c < count; ++c) x[c] = 0.5f * (x[c] + x[c + 1]);
}

void Softmax(float scale, int64_t count, float* x) {
  float max = -INFINITY, sum = 0.0f;
  for (int64_t c = 0; c < count; ++c) max = std::max(max, x[c] *= scale);
  for (int64_t c = 0; c < count; ++c) sum += x[c] = std::exp(x[c] - max);
  const float factor = 1.0f / sum;
  for (int64_t c = 0; c < count; ++c) x[c] = sum > 0.0f ? x[c] * factor : 0.0f;
}

// Scores of the list's pages from its query heads' weights.
void PoolWeights(PageScore score, const RankedList& list) {
  for (int32_t h = 1; h < list.num_heads; ++h) {
    const float* more = list.weights + h * list.num_weights;
    for (int64_t c = 0; c < list.num_keys; ++c) list.weights[c] += more[c];
  }
  for (int64_t page = 0; page < list.tail_begin; ++page) {
    list.scores[page] =
        score == PageScore::kMeanShares
            ? list.weights[page]
            : CompressedScore(page, {list.weights, static_cast<size_t>(list.num_keys)});
  }
}

// Writes the list: what is taken anyway and the best of the pages between, ascending.
void TakeBest(int64_t sink_pages, const RankedList& list, std::vector<int32_t>* order) {
  int32_t* out = list.entries;
  const int64_t sinks = std::min<int64_t>(sink_pages, list.tail_begin);
  for (int64_t page = 0; page < sinks; ++page) *out++ = static_cast<int32_t>(page);
  const int64_t pages = CandidatePages(*list.tile);
  const int64_t wanted = list.count - sinks - (pages - list.tail_begin);
  order->clear();
  for (int64_t page = sinks; page < list.tail_begin; ++page) {
    order->push_back(static_cast<int32_t>(page));
  }
  const auto better = [&](int32_t a, int32_t b) {
    return list.scores[a] > list.scores[b] || (list.scores[a] == list.scores[b] && a < b);
  };
  std::nth_element(order->begin(), order->begin() + wanted, order->end(), better);
  std::sort(order->begin(), order->begin() + wanted);
  out = std::copy_n(order->begin(), wanted, out);
  for (int64_t page = list.tail_begin; page < pages; ++page) *out++ = static_cast<int32_t>(page);
}

}  // namespace

absl::Status CpuBackend::DoSummarizePages(const PageSummaryParams& p) {
  const int64_t summary_bytes = PageSummaryBytes(p.cache), row_bytes = SummaryRowBytes(p.cache);
  const int64_t heads = p.cache.num_heads;
  ForRows(p.num_pages * heads, int64_t{kPageTokens} * p.cache.head_dim, [&](int64_t i) {
    if (p.page_ids[i / heads] == kNoPage) return;
    const int64_t page = p.page_ids[i / heads] * p.cache.page_stride;
    const int64_t h = i % heads;
    char* summary = static_cast<char*>(p.cache.summaries) + page + h * summary_bytes;
    kernels_.summarize_keys(p.cache.dtype,
                            static_cast<const char*>(p.cache.k) + page + h * p.cache.head_stride,
                            p.counts[i / heads], p.cache.head_dim, p.cache.segment_means, summary);
    if (!p.cache.value_mean) return;
    std::vector<char> of_values(static_cast<size_t>(kSummaryRows * row_bytes));
    kernels_.summarize_keys(p.cache.dtype,
                            static_cast<const char*>(p.cache.v) + page + h * p.cache.head_stride,
                            p.counts[i / heads], p.cache.head_dim, false, of_values.data());
    char* mean = of_values.data() + 2 * row_bytes;
    if (p.cache.v_scale != 1.0f) {  // of fp8 codes, whose mean is of f16
      auto* halves = reinterpret_cast<uint16_t*>(mean);
      for (int32_t d = 0; d < p.cache.head_dim; ++d) {
        halves[d] = FloatToHalf(HalfToFloat(halves[d]) * p.cache.v_scale);
      }
    }
    std::copy_n(mean, row_bytes, summary + summary_bytes - row_bytes);
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoSelectPages(const SelectPagesParams& p) {
  if (!UsesSummaries(p.score)) return SelectByShares(p);
  for (int32_t t = 0; t < p.num_tiles; t += kTilesAtOnce) {
    RETURN_IF_ERROR(SelectOfTiles(p, t, std::min(p.num_tiles, t + kTilesAtOnce)));
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::SelectOfTiles(const SelectPagesParams& p, int32_t first_tile,
                                       int32_t end_tile) {
  const auto heads = static_cast<int32_t>(p.q.shape[1]);
  const int32_t group = heads / p.cache.num_heads;
  const bool per_q_head = p.list_heads == ListHeads::kPerQHead;
  const int32_t list_heads = per_q_head ? heads : p.cache.num_heads;
  const int64_t dim = p.cache.head_dim;

  std::vector<RankedList> lists;
  struct Task {
    size_t list;
    int64_t begin, end;
  };
  std::vector<Task> tasks;  // runs of pages; where pages are weighed, query heads
  const bool weighed = WeighsSummaries(p.score);
  const bool compressed = p.score == PageScore::kCompressedKeys;
  int64_t num_scores = 0, num_weights = 0;
  for (int32_t t = first_tile; t < end_tile; ++t) {
    if (p.counts[t] == 0) continue;
    const QueryTile& tile = p.tiles[t];
    const int64_t pages = CandidatePages(tile);
    for (int32_t h = 0; h < list_heads; ++h) {
      int32_t* entries = p.entries + p.list_begin[int64_t{h} * p.num_tiles + t];
      if (p.counts[t] == pages) {
        for (int64_t page = 0; page < pages; ++page) entries[page] = static_cast<int32_t>(page);
        continue;
      }
      const int64_t tail_begin = pages - ForcedPages(tile, 0, p.recent_pages);
      const int64_t units = weighed ? (per_q_head ? 1 : group) : tail_begin;
      const int64_t at_once = weighed ? 1 : kPagesOfTask;
      for (int64_t begin = 0; begin < units; begin += at_once) {
        tasks.push_back({lists.size(), begin, std::min(units, begin + at_once)});
      }
      const int64_t keys = compressed ? CompressedKeys(tile.first_position)
                           : weighed  ? WholePages(tile.first_position)
                                      : 0;
      const int64_t weights = compressed ? keys + 1 : keys;
      lists.push_back({.tile = &tile,
                       .first_head = per_q_head ? h : h * group,
                       .num_heads = per_q_head ? 1 : group,
                       .kv_head = per_q_head ? h / group : h,
                       .tail_begin = tail_begin,
                       .count = p.counts[t],
                       .q = nullptr,
                       .scores = nullptr,
                       .weights = nullptr,
                       .num_weights = weights,
                       .num_keys = keys,
                       .entries = entries});
      num_scores += tail_begin;
      num_weights += lists.back().num_heads * weights;
    }
  }
  if (lists.empty()) return absl::OkStatus();

  const int64_t num_pooled = (end_tile - first_tile) * int64_t{heads} * dim;
  auto* memory = static_cast<float*>(page_scores_.Get((num_scores + num_pooled + num_weights) *
                                                      static_cast<int64_t>(sizeof(float))));
  float* scores = memory + num_pooled;
  float* weights = scores + num_scores;
  for (RankedList& list : lists) {
    list.q = memory;
    list.scores = scores;
    memory += list.num_heads * dim;
    scores += list.tail_begin;
    list.weights = weights;
    weights += list.num_heads * list.num_weights;
  }
  const bool small = num_scores * (per_q_head ? 1 : group) * dim < kSmall;
  const auto for_each = [&](size_t count, const auto& fn) {
    if (!small) return pool_.ParallelFor(static_cast<int64_t>(count), fn);
    for (size_t i = 0; i < count; ++i) fn(static_cast<int64_t>(i), 0);
  };
  for_each(lists.size(),
           [&](int64_t i, int) { PoolQueries(p, lists[static_cast<size_t>(i)]); });
  std::atomic<int64_t> missing{-1};
  const int64_t summary_bytes = PageSummaryBytes(p.cache), row_bytes = SummaryRowBytes(p.cache);
  // The products of one query head with the means of pages, or of segments, which the kernel takes
  // for pages' means.
  const auto weigh_head = [&](const RankedList& list, int64_t head) {
    const int32_t* pages = p.page_table.pages + list.tile->sequence * p.page_table.stride;
    float* products = list.weights + head * list.num_weights;
    const void* summaries[kPagesOfTask];
    for (int64_t begin = 0; begin < list.num_weights; begin += kPagesOfTask) {
      const int64_t end = std::min(list.num_weights, begin + kPagesOfTask);
      for (int64_t s = begin; s < end; ++s) {
        const int64_t page = compressed ? s / kPageSegments : s;
        const int64_t row = compressed ? kSummaryRows + s % kPageSegments - 2 : 0;
        if (pages[page] < 0 || pages[page] >= p.cache.num_pages) {
          missing.store(page);
          return;
        }
        summaries[s - begin] = static_cast<const char*>(p.cache.summaries) +
                               pages[page] * p.cache.page_stride + list.kv_head * summary_bytes +
                               row * row_bytes;
      }
      kernels_.score_pages({.dtype = p.cache.dtype,
                            .kind = PageScore::kMean,
                            .q = list.q + head * dim,
                            .heads = 1,
                            .dim = dim,
                            .summaries = summaries,
                            .num_pages = end - begin,
                            .scores = products + begin});
    }
    if (compressed) Pair(list.num_keys, products);
    Softmax(p.scale, list.num_keys, products);
  };
  for_each(tasks.size(), [&](int64_t i, int) {
    const Task& task = tasks[static_cast<size_t>(i)];
    const RankedList& list = lists[task.list];
    if (weighed) return weigh_head(list, task.begin);
    const int32_t* pages = p.page_table.pages + list.tile->sequence * p.page_table.stride;
    const void* summaries[kPagesOfTask];
    for (int64_t page = task.begin; page < task.end; ++page) {
      if (pages[page] < 0 || pages[page] >= p.cache.num_pages) {
        missing.store(page);
        return;
      }
      summaries[page - task.begin] = static_cast<const char*>(p.cache.summaries) +
                                     pages[page] * p.cache.page_stride +
                                     list.kv_head * summary_bytes;
    }
    kernels_.score_pages({.dtype = p.cache.dtype,
                          .kind = p.score,
                          .q = list.q,
                          .heads = list.num_heads,
                          .dim = dim,
                          .summaries = summaries,
                          .num_pages = task.end - task.begin,
                          .scores = list.scores + task.begin});
  });
  if (missing.load() >= 0) {
    return absl::InternalError(StrCat("SelectPages: logical page ", missing.load(),
                                      " is a candidate but its sequence does not hold it"));
  }
  std::vector<std::vector<int32_t>> orders(static_cast<size_t>(pool_.num_threads()));
  for_each(lists.size(), [&](int64_t i, int thread) {
    const RankedList& list = lists[static_cast<size_t>(i)];
    if (weighed) PoolWeights(p.score, list);
    if (p.block_pages > 1) {
      ScoreBlocks(p, *list.tile, {list.scores, static_cast<size_t>(list.tail_begin)});
    }
    TakeBest(p.sink_pages, list, &orders[static_cast<size_t>(thread)]);
  });
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

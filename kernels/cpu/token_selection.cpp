#include <algorithm>
#include <atomic>
#include <bit>
#include <functional>
#include <numeric>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

namespace longstride::kernels::cpu {
namespace {

constexpr int64_t kScoresAtOnce = 1 << 22;  // bounds the memory of scores
constexpr int64_t kPagesOfTask = 32;        // scored by one thread

// One row that chooses.
struct ChoosingRow {
  int32_t tile;
  int64_t tokens;  // candidates
  float* scores;   // [tokens]
};

// Larger for a better score, of equals for the lower position; least for what is no number.
uint64_t Rank(float score, int64_t position) {
  uint32_t order = 0;
  if (score == score) {
    const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 is 0
    order = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  }
  return uint64_t{order} << 32 | (~static_cast<uint32_t>(position));
}

// The scores of one page's keys from the products [heads, kPageTokens].
void WeighHeads(const float* products, const float* weights, int64_t heads, int64_t keys,
                float* scores) {
  std::fill_n(scores, keys, 0.0f);
  for (int64_t h = 0; h < heads; ++h) {
    const float* of_head = products + h * kPageTokens;
    for (int64_t k = 0; k < keys; ++k) {
      // Written so that what is not a number stays that.
      scores[k] += weights[h] * (of_head[k] < 0.0f ? 0.0f : of_head[k]);
    }
  }
}

void TakeBest(const ChoosingRow& row, int32_t count, int32_t* out) {
  std::vector<uint64_t> ranks(static_cast<size_t>(row.tokens));
  for (int64_t j = 0; j < row.tokens; ++j) {
    ranks[static_cast<size_t>(j)] = Rank(row.scores[j], j);
  }
  std::nth_element(ranks.begin(), ranks.begin() + (count - 1), ranks.end(), std::greater<>());
  std::transform(ranks.begin(), ranks.begin() + count, out,
                 [](uint64_t rank) { return static_cast<int32_t>(~static_cast<uint32_t>(rank)); });
  std::sort(out, out + count);
}

}  // namespace

absl::Status CpuBackend::DoSelectTokens(const SelectTokensParams& p) {
  for (int32_t t = 0; t < p.num_tiles;) {
    int64_t scores = 0;
    int32_t end = t;
    for (; end < p.num_tiles && (end == t || scores < kScoresAtOnce); ++end) {
      const int64_t tokens = CandidateTokens(p.tiles[end]);
      if (p.counts[end] == tokens) {
        int32_t* out = p.entries + p.list_begin[end];
        std::iota(out, out + tokens, 0);
      } else if (p.counts[end] > 0) {
        scores += tokens;
      }
    }
    if (scores > 0) RETURN_IF_ERROR(ChooseTokens(p, t, end, scores));
    t = end;
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::ChooseTokens(const SelectTokensParams& p, int32_t first_tile,
                                      int32_t end_tile, int64_t num_scores) {
  struct Task {
    size_t row;
    int64_t begin, end;  // pages
  };
  auto* scores = static_cast<float*>(page_scores_.Get(num_scores * int64_t{sizeof(float)}));
  std::vector<ChoosingRow> rows;
  std::vector<Task> tasks;
  for (int32_t t = first_tile; t < end_tile; ++t) {
    const int64_t tokens = CandidateTokens(p.tiles[t]);
    if (p.counts[t] == 0 || p.counts[t] == tokens) continue;
    const int64_t pages = CandidatePages(p.tiles[t]);
    for (int64_t begin = 0; begin < pages; begin += kPagesOfTask) {
      tasks.push_back({rows.size(), begin, std::min(pages, begin + kPagesOfTask)});
    }
    rows.push_back({t, tokens, scores});
    scores += tokens;
  }
  const int64_t heads = p.q.shape[1], dim = p.q.shape[2];
  std::atomic<int64_t> missing{-1};
  pool_.ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t at, int thread) {
    const Task& task = tasks[static_cast<size_t>(at)];
    const ChoosingRow& row = rows[task.row];
    const QueryTile& tile = p.tiles[row.tile];
    float* products = nullptr;
    float* keys = nullptr;
    const auto carve = [&](Carver carver) {
      products = carver.Take<float>(heads * kPageTokens);
      keys = carver.Take<float>(kPageTokens * dim);
      return carver.used();
    };
    const int64_t bytes = carve(Carver(nullptr));
    carve(Carver(thread_scratch_[static_cast<size_t>(thread)].Get(bytes)));
    for (int64_t page = task.begin; page < task.end; ++page) {
      const int32_t id = p.page_table.pages[tile.sequence * p.page_table.stride + page];
      if (id < 0 || id >= p.cache.num_pages) {
        missing.store(page);
        return;
      }
      const int64_t first = page * kPageTokens;
      const int64_t count = std::min<int64_t>(kPageTokens, row.tokens - first);
      kernels_.fold_scores({.dtype = p.cache.dtype,
                            .keys = static_cast<const char*>(p.cache.k) + id * p.cache.page_stride,
                            .count = count,
                            .dim = dim,
                            .fold = 1,
                            .q = p.q.ptr<float>() + tile.row_begin * p.q.strides[0],
                            .rows = heads,
                            .scale = 1.0f,
                            .scores = products,
                            .scores_stride = kPageTokens,
                            .scratch = keys});
      WeighHeads(products, p.weights.ptr<float>() + tile.row_begin * p.weights.strides[0], heads,
                 count, row.scores + first);
    }
  });
  if (missing.load() >= 0) {
    return absl::InternalError(StrCat("SelectTokens: logical page ", missing.load(),
                                      " is a candidate but its sequence does not hold it"));
  }
  pool_.ParallelFor(static_cast<int64_t>(rows.size()), [&](int64_t r, int) {
    const ChoosingRow& row = rows[static_cast<size_t>(r)];
    TakeBest(row, p.counts[row.tile], p.entries + p.list_begin[row.tile]);
  });
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

// Lists that go by shares of attention (PageScore::kAntidiagonal). A task is one list: a tile of the
// prompt is much work, and its reductions then have one order.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/take_pages.h"

namespace longstride::kernels::cpu {
namespace {

// A tile's queries of one head in groups, each group's queries in descending order of position: the
// scalar product with the keys of a group as they lie in the cache is the sum along the antidiagonal.
void FoldQueries(const SelectPagesParams& p, const QueryTile& tile, int64_t head, float* out) {
  const int64_t dim = p.cache.head_dim;
  const int64_t groups = (tile.num_rows + p.stride - 1) / p.stride;
  for (int64_t n = 0; n < groups; ++n) {
    for (int64_t t = 0; t < p.stride; ++t, out += dim) {
      const int64_t row = n * p.stride + p.stride - 1 - t;
      if (row >= tile.num_rows) {
        std::fill_n(out, dim, 0.0f);
      } else {
        std::copy_n(p.q.ptr<float>() + (tile.row_begin + row) * p.q.strides[0] +
                        head * p.q.strides[1],
                    dim, out);
      }
    }
  }
}

}  // namespace

absl::Status CpuBackend::SelectByShares(const SelectPagesParams& p) {
  const int64_t heads = p.q.shape[1], dim = p.cache.head_dim, width = p.stride * dim;
  const int64_t group = heads / p.cache.num_heads;
  const int64_t list_heads = p.list_heads == ListHeads::kPerQHead ? heads : p.cache.num_heads;
  const int64_t heads_of_list = heads / list_heads;
  const int64_t per_page = kPageTokens / p.stride;
  std::atomic<int64_t> missing{-1};
  pool_.ParallelFor(list_heads * p.num_tiles, [&](int64_t task, int thread) {
    const QueryTile& tile = p.tiles[task % p.num_tiles];
    const int64_t first_head = task / p.num_tiles * heads_of_list;
    const int64_t kv_head = first_head / group;
    const int64_t pages = CandidatePages(tile);
    int32_t* list = p.entries + p.list_begin[task];
    if (tile.num_rows == 1) {
      for (int64_t page = 0; page < pages; ++page) list[page] = static_cast<int32_t>(page);
      return;
    }
    const int64_t end = int64_t{tile.first_position} + tile.num_rows;
    const int64_t folded = (tile.num_rows + p.stride - 1) / p.stride;
    const int64_t rows = heads_of_list * folded, columns = pages * per_page;
    const auto carve = [&](Carver carver, float** q, float** scores, float** keys) {
      *q = carver.Take<float>(rows * width);
      *scores = carver.Take<float>(rows * columns);
      *keys = carver.Take<float>(kPageTokens * dim);
      return carver.used();
    };
    float *q, *scores, *keys;
    Scratch& scratch = thread_scratch_[static_cast<size_t>(thread)];
    carve(Carver(scratch.Get(carve(Carver(nullptr), &q, &scores, &keys))), &q, &scores, &keys);
    for (int64_t h = 0; h < heads_of_list; ++h) {
      FoldQueries(p, tile, first_head + h, q + h * folded * width);
    }
    for (int64_t page = 0; page < pages; ++page) {
      const int32_t id = p.page_table.pages[tile.sequence * p.page_table.stride + page];
      if (id < 0 || id >= p.cache.num_pages) {
        missing.store(page);
        return;
      }
      kernels_.fold_scores({.dtype = p.cache.dtype,
                            .keys = static_cast<const char*>(p.cache.k) +
                                    id * p.cache.page_stride + kv_head * p.cache.head_stride,
                            .count = std::min<int64_t>(kPageTokens, end - page * kPageTokens),
                            .dim = dim,
                            .fold = p.stride,
                            .q = q,
                            .rows = rows,
                            .scale = p.scale / static_cast<float>(p.stride),
                            .scores = scores + page * per_page,
                            .scores_stride = columns,
                            .scratch = keys});
    }
    std::vector<double> shares(static_cast<size_t>(pages), 0.0);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = scores + r * columns;
      const int64_t visible = tile.first_position / p.stride + r % folded + 1;
      const float max = *std::max_element(row, row + visible);
      for (int64_t m = 0; m < visible; ++m) row[m] -= max;
      kernels_.exp(row, visible, row);
      double sum = 0;
      for (int64_t m = 0; m < visible; ++m) sum += row[m];
      if (!(sum > 0)) continue;
      for (int64_t m = 0; m < visible; ++m) {
        shares[static_cast<size_t>(m / per_page)] += row[m] / sum;
      }
    }
    double total = 0;
    for (const double share : shares) total += share;
    for (double& share : shares) share /= total;
    TakePagesByMass(shares, p.sink_pages, pages - ForcedPages(tile, 0, p.recent_pages), p.mass,
                    list);
  });
  if (missing.load() >= 0) {
    return absl::InternalError(StrCat("SelectPages: logical page ", missing.load(),
                                      " is a candidate but its sequence does not hold it"));
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

#include "kernels/take_pages.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace longstride::kernels {
namespace {

// Runs of kPageTokens weights in the order in which they are taken, as many as are.
std::vector<int32_t> HeaviestRuns(std::span<const double> weights, int64_t least, double mass) {
  std::vector<double> heaviest;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (i % kPageTokens == 0) heaviest.push_back(0.0);
    if (weights[i] > heaviest.back()) heaviest.back() = weights[i];
  }
  int64_t count = least;
  if (mass > 0) {
    std::vector<double> sorted(weights.begin(), weights.end());
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const double wanted = mass * std::accumulate(sorted.begin(), sorted.end(), 0.0);
    int64_t n = 0;
    for (double sum = 0; n < static_cast<int64_t>(sorted.size()) && sum < wanted; ++n) {
      sum += sorted[static_cast<size_t>(n)];
    }
    count = std::max(count, n / kPageTokens + 1);
  }
  std::vector<int32_t> runs(heaviest.size());
  std::iota(runs.begin(), runs.end(), 0);
  std::stable_sort(runs.begin(), runs.end(), [&](int32_t a, int32_t b) {
    return heaviest[static_cast<size_t>(a)] > heaviest[static_cast<size_t>(b)];
  });
  runs.resize(std::min(runs.size(), static_cast<size_t>(count)));
  return runs;
}

}  // namespace

void TakeByShares(const SelectPagesParams& p, const QueryTile& tile, std::span<const double> shares,
                  int32_t* list) {
  const auto share = [&](int64_t page) {
    const double x = shares[static_cast<size_t>(page)];
    return x > 0 ? x : 0.0;
  };
  const int64_t pages = CandidatePages(tile);
  const int64_t tail = pages - ForcedPages(tile, 0, p.recent_pages);
  std::vector<int32_t> others;
  int32_t* end = list;
  double taken = 0;
  for (int64_t page = 0; page < pages; ++page) {
    if (page < p.sink_pages || page >= tail) {
      taken += share(page);
      *end++ = static_cast<int32_t>(page);
    } else {
      others.push_back(static_cast<int32_t>(page));
    }
  }
  std::stable_sort(others.begin(), others.end(),
                   [&](int32_t a, int32_t b) { return share(a) > share(b); });
  for (size_t n = 0; n < others.size() && (p.mass >= 1 || taken < p.mass); ++n) {
    taken += share(others[n]);
    *end++ = others[n];
  }
  std::sort(list, end);
  std::fill(end, list + pages, kNoEntry);
}

std::vector<ProbedTiles> FindProbedTiles(const SelectPagesParams& p) {
  std::vector<ProbedTiles> found;
  for (int32_t t = 0; t < p.num_tiles;) {
    const QueryTile& first = p.tiles[t];
    int32_t end = t + 1;
    while (first.num_rows > 1 && end < p.num_tiles && p.tiles[end].num_rows > 1 &&
           p.tiles[end].sequence == first.sequence &&
           p.tiles[end].first_position / p.segment == first.first_position / p.segment) {
      ++end;
    }
    const QueryTile& last = p.tiles[end - 1];
    const int32_t end_row = last.row_begin + last.num_rows;
    const int32_t last_position = last.first_position + last.num_rows - 1;
    found.push_back({.begin = t,
                     .end = end,
                     .first_row = end_row - std::min(kProbeRows, last_position % p.segment + 1),
                     .end_row = end_row,
                     .last_position = last_position});
    t = end;
  }
  return found;
}

VerticalSlash ChooseVerticalSlash(const SelectPagesParams& p, std::span<const double> columns,
                                  std::span<const double> diagonals) {
  return {.pages = HeaviestRuns(columns, p.vertical_pages, p.mass),
          .runs = HeaviestRuns(diagonals, p.slash_pages, p.mass)};
}

void TakeVerticalSlash(const SelectPagesParams& p, const QueryTile& tile,
                       const VerticalSlash& chosen, int32_t* list) {
  const int64_t pages = CandidatePages(tile);
  const int64_t tail = pages - ForcedPages(tile, 0, p.recent_pages);
  std::vector<bool> taken(static_cast<size_t>(pages), false);
  const auto take = [&](int64_t first, int64_t last) {
    for (int64_t page = std::max<int64_t>(first, 0); page <= std::min(last, pages - 1); ++page) {
      taken[static_cast<size_t>(page)] = true;
    }
  };
  take(0, p.sink_pages - 1);
  take(tail, pages - 1);
  for (const int32_t page : chosen.pages) take(page, page);
  const int64_t last = int64_t{tile.first_position} + tile.num_rows - 1;
  for (const int64_t run : chosen.runs) {
    const int64_t far = tile.first_position - (run + 1) * kPageTokens + 1;
    const int64_t near = last - run * kPageTokens;
    if (near >= 0) take(std::max<int64_t>(far, 0) / kPageTokens, near / kPageTokens);
  }
  int32_t* end = list;
  for (int64_t page = 0; page < pages; ++page) {
    if (taken[static_cast<size_t>(page)]) *end++ = static_cast<int32_t>(page);
  }
  std::fill(end, list + pages, kNoEntry);
}

void TakeAll(const QueryTile& tile, int32_t* list) {
  std::iota(list, list + CandidatePages(tile), 0);
}

}  // namespace longstride::kernels

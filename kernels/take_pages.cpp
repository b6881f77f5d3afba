#include "kernels/take_pages.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

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

// A share that is no number counts as none.
double Share(double x) { return x > 0 ? x : 0.0; }

// What a list of the tile takes in any case.
std::vector<bool> ForcedFlags(const SelectPagesParams& p, const QueryTile& tile) {
  const int64_t pages = CandidatePages(tile);
  const int64_t tail = pages - ForcedPages(tile, 0, p.recent_pages);
  std::vector<bool> taken(static_cast<size_t>(pages));
  for (int64_t page = 0; page < pages; ++page) {
    taken[static_cast<size_t>(page)] = page < p.sink_pages || page >= tail;
  }
  return taken;
}

// Adds what the columns and diagonals reach.
void Reach(const QueryTile& tile, const VerticalSlash& chosen, std::vector<bool>* taken) {
  const auto pages = static_cast<int64_t>(taken->size());
  const auto take = [&](int64_t first, int64_t last) {
    for (int64_t page = std::max<int64_t>(first, 0); page <= std::min(last, pages - 1); ++page) {
      (*taken)[static_cast<size_t>(page)] = true;
    }
  };
  for (const int32_t page : chosen.pages) take(page, page);
  const int64_t last = int64_t{tile.first_position} + tile.num_rows - 1;
  for (const int64_t run : chosen.runs) {
    const int64_t far = tile.first_position - (run + 1) * kPageTokens + 1;
    const int64_t near = last - run * kPageTokens;
    if (near >= 0) take(std::max<int64_t>(far, 0) / kPageTokens, near / kPageTokens);
  }
}

void WriteList(const std::vector<bool>& taken, int32_t* list) {
  int32_t* end = list;
  for (size_t page = 0; page < taken.size(); ++page) {
    if (taken[page]) *end++ = static_cast<int32_t>(page);
  }
  std::fill(end, list + taken.size(), kNoEntry);
}

// Pages that are not taken yet by their shares, of equals the lower first.
std::vector<size_t> ByShare(const std::vector<bool>& taken, std::span<const double> shares) {
  std::vector<size_t> others;
  for (size_t page = 0; page < taken.size(); ++page) {
    if (!taken[page]) others.push_back(page);
  }
  std::stable_sort(others.begin(), others.end(),
                   [&](size_t a, size_t b) { return Share(shares[a]) > Share(shares[b]); });
  return others;
}

// The best beside `taken` while the shares of all that is taken sum to less than the mass.
void TakeUpToMass(const SelectPagesParams& p, std::vector<bool> taken,
                  std::span<const double> shares, int32_t* list) {
  double sum = 0;
  for (size_t page = 0; page < taken.size(); ++page) {
    if (taken[page]) sum += Share(shares[page]);
  }
  for (const size_t page : ByShare(taken, shares)) {
    if (p.mass < 1 && sum >= p.mass) break;
    sum += Share(shares[page]);
    taken[page] = true;
  }
  WriteList(taken, list);
}

}  // namespace

void ScoreBlocks(const SelectPagesParams& p, const QueryTile& tile, std::span<float> scores) {
  const auto width = static_cast<size_t>(p.block_pages);
  const size_t own = static_cast<size_t>(tile.first_position / kPageTokens) / width * width;
  for (size_t begin = 0; begin < scores.size(); begin += width) {
    if (begin >= own) {
      std::fill(scores.begin() + static_cast<ptrdiff_t>(begin), scores.end(),
                std::numeric_limits<float>::infinity());
      return;
    }
    const std::span<float> block = scores.subspan(begin, width);
    float sum = 0.0f;
    for (const float score : block) sum += score;
    std::fill(block.begin(), block.end(), sum / static_cast<float>(width));
  }
}

float CompressedScore(int64_t page, std::span<const float> weights) {
  const auto end = std::min<int64_t>((page + 1) * kPageSegments, std::ssize(weights));
  float best = 0.0f;
  for (int64_t c = std::max<int64_t>(page * kPageSegments - 1, 0); c < end; ++c) {
    best = std::max(best, weights[static_cast<size_t>(c)]);
  }
  return best;
}

void TakeByShares(const SelectPagesParams& p, const QueryTile& tile, std::span<const double> shares,
                  int32_t* list) {
  TakeUpToMass(p, ForcedFlags(p, tile), shares, list);
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
  std::vector<bool> taken = ForcedFlags(p, tile);
  Reach(tile, chosen, &taken);
  WriteList(taken, list);
}

VerticalSlash ChooseLeastVerticalSlash(const SelectPagesParams& p, std::span<const double> columns,
                                       std::span<const double> diagonals) {
  return {.pages = HeaviestRuns(columns, p.vertical_pages, 0),
          .runs = HeaviestRuns(diagonals, p.slash_pages, 0)};
}

bool IsQueryAware(const SelectPagesParams& p, std::span<const double> columns,
                  std::span<const double> shares) {
  std::vector<double> sums(shares.size(), 0.0);
  double total = 0;
  for (size_t j = 0; j < columns.size(); ++j) {
    sums[j / kPageTokens] += columns[j];
    total += columns[j];
  }
  double divergence = 0;
  const auto add = [&](double x, double mean) {
    if (x > 0) divergence += 0.5 * x * std::log(x / mean);
  };
  for (size_t page = 0; page < shares.size(); ++page) {
    const double column = sums[page] / total, share = shares[page];
    add(column, 0.5 * (column + share));
    add(share, 0.5 * (column + share));
  }
  return std::sqrt(std::max(divergence, 0.0)) < p.divergence;
}

void TakeQueryAware(const SelectPagesParams& p, const QueryTile& tile, const VerticalSlash& least,
                    std::span<const double> shares, int32_t* list) {
  std::vector<bool> taken = ForcedFlags(p, tile);
  Reach(tile, least, &taken);
  TakeUpToMass(p, std::move(taken), shares, list);
}

void TakePooled(const SelectPagesParams& p, const QueryTile& tile, std::span<const double> shares,
                std::span<const uint8_t> alike, int32_t* list) {
  std::vector<bool> taken(static_cast<size_t>(CandidatePages(tile)));
  for (size_t page = 0; page < taken.size(); ++page) taken[page] = alike[page] == 0;
  double sum = 0;
  bool first = true;
  std::vector<bool> best = taken;
  for (const size_t page : ByShare(taken, shares)) {
    sum += Share(shares[page]);
    if (p.mass < 1 && sum > p.mass && !first) break;
    first = false;
    best[page] = true;
  }
  const std::vector<bool> forced = ForcedFlags(p, tile);
  for (size_t page = 0; page < best.size(); ++page) best[page] = best[page] || forced[page];
  WriteList(best, list);
}

std::vector<PooledSequence> FindPooledSequences(const SelectPagesParams& p,
                                                std::vector<int32_t>* slot_of) {
  std::vector<PooledSequence> found;
  slot_of->assign(static_cast<size_t>(p.num_tiles), -1);
  for (int32_t t = 0; t < p.num_tiles; ++t) {
    const QueryTile& tile = p.tiles[t];
    if (tile.num_rows == 1) continue;
    size_t slot = 0;
    while (slot < found.size() && found[slot].sequence != tile.sequence) ++slot;
    if (slot == found.size()) found.push_back({tile.sequence, 0});
    found[slot].end = std::max(found[slot].end, int64_t{tile.first_position} + tile.num_rows);
    (*slot_of)[static_cast<size_t>(t)] = static_cast<int32_t>(slot);
  }
  return found;
}

void TakeAll(const QueryTile& tile, int32_t* list) {
  std::iota(list, list + CandidatePages(tile), 0);
}

}  // namespace longstride::kernels

// What the lists of SelectPages take where that follows from shares of attention, for backends that
// compute in host memory; see SelectPagesParams.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/op_params.h"

namespace longstride::kernels {

// Scores of the pages [0, scores.size()) as blocks give them: block_pages above 1.
void ScoreBlocks(const SelectPagesParams& p, const QueryTile& tile, std::span<float> scores);

// kCompressedKeys: how many the row at `position` sees.
constexpr int64_t CompressedKeys(int64_t position) {
  return position < 2 * kSegmentTokens - 1 ? 0 : (position + 1) / kSegmentTokens - 1;
}
// kMeanShares: how many pages the row at `position` sees all keys of.
constexpr int64_t WholePages(int64_t position) { return (position + 1) / kPageTokens; }
// kCompressedKeys: a page's score, given P[c] of the compressed keys that the row sees.
float CompressedScore(int64_t page, std::span<const float> weights);

// kAntidiagonal: writes the list of `tile` by its candidates' `shares`. A share that is not a
// number counts as none; a mass of 1 takes all.
void TakeByShares(const SelectPagesParams& p, const QueryTile& tile, std::span<const double> shares,
                  int32_t* list);

// kVerticalSlash: tiles [begin, end) of one segment, for which rows [first_row, end_row) of q
// probe, the last of them at last_position. A tile of one row stands alone and is not probed for.
struct ProbedTiles {
  int32_t begin, end;
  int32_t first_row, end_row;
  int64_t last_position;
};
std::vector<ProbedTiles> FindProbedTiles(const SelectPagesParams& p);

struct VerticalSlash {
  std::vector<int32_t> pages;
  std::vector<int32_t> runs;  // of kPageTokens diagonals
};
// From the weights of the columns and diagonals.
VerticalSlash ChooseVerticalSlash(const SelectPagesParams& p, std::span<const double> columns,
                                  std::span<const double> diagonals);
void TakeVerticalSlash(const SelectPagesParams& p, const QueryTile& tile,
                       const VerticalSlash& chosen, int32_t* list);

// The pages that a query-aware list of kVerticalSlash takes for its columns and diagonals; TakeByShares
// then goes on from them.
VerticalSlash ChooseLeastVerticalSlash(const SelectPagesParams& p, std::span<const double> columns,
                                       std::span<const double> diagonals);
// Whether kVerticalSlash's list is query-aware, by its columns' weights and the shares of their pages.
bool IsQueryAware(const SelectPagesParams& p, std::span<const double> columns,
                  std::span<const double> shares);
void TakeQueryAware(const SelectPagesParams& p, const QueryTile& tile, const VerticalSlash& least,
                    std::span<const double> shares, int32_t* list);

// kPooled: the list of a tile whose rows are alike.
void TakePooled(const SelectPagesParams& p, const QueryTile& tile, std::span<const double> shares,
                std::span<const uint8_t> alike, int32_t* list);

// Sequences whose pages' means a call needs, up to the last row of their tiles of more than one row.
struct PooledSequence {
  int32_t sequence;
  int64_t end;  // keys
};
// slot_of[t]: index of tile t's sequence, or -1 for tiles of one row.
std::vector<PooledSequence> FindPooledSequences(const SelectPagesParams& p,
                                                std::vector<int32_t>* slot_of);

// The list of all the tile's candidates.
void TakeAll(const QueryTile& tile, int32_t* list);

}  // namespace longstride::kernels

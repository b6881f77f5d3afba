// The lists of single rows, which the host works out of a selection before its tiles go to kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

// Tiles of one row each, whose lists hold exactly the entries with a key that the row sees: what a
// row's list is in a step that computes only it. Host memory, reused from step to step.
struct RowLists {
  std::vector<QueryTile> tiles;
  std::vector<int64_t> list_begin;  // [list heads, tiles]
  std::vector<int32_t> list_count;
  std::vector<int32_t> more;  // entries behind the selection's own; list_begin counts through
  int32_t longest = 0;        // entries of the longest list

  // Of the rows of `tiles` (indices into the selection's).
  void Set(const AttentionParams& p, const std::vector<int32_t>& from);
};

}  // namespace longstride::kernels::cuda

// What the host works out about a selection before its tiles go to kernels: whether the lists are
// well formed, how many keys they show, and the lists of single rows.
#pragma once

#include <cstdint>
#include <vector>

#include "config/base/status.h"
#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

// Counts (query row, query head, key) triples from the lists alone, in time that follows the number
// of entries, not of keys. INTERNAL: a list does not ascend.
absl::StatusOr<AttentionCounters> CountKeys(const AttentionParams& p);

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

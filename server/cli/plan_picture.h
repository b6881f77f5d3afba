// What a plan reads, drawn: which heads of which layers share a pattern, and for each of these what
// a query block reads of every key block.
#pragma once

#include <cstdint>
#include <string>

#include "model/sparsity/sparsity_plan.h"

namespace longstride::cli {

// One SVG file. `length`: positions drawn, 1 or more. Where a pattern depends on its queries, what
// some query may read.
std::string PlanPicture(const model::SparsityPlan& plan, int64_t length);

// Share of the pairs (query, key) with a key at or before its query that head `head` sees, in each
// of [blocks][blocks] equal parts of the positions; row-major, query blocks first. Parts above the
// diagonal are 0 where the model is causal. Queries are sampled where a part has many.
std::vector<float> VisibleShares(const model::SparsePattern& pattern, int32_t head, int64_t length,
                                 int32_t blocks, bool causal = true);

}  // namespace longstride::cli

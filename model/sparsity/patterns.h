// Factories of the patterns, one per file of this folder; the registry lists them.
#pragma once

#include <memory>

#include "config/base/status.h"
#include "model/sparsity/sparse_pattern.h"

namespace longstride::model {

using PatternOr = absl::StatusOr<std::unique_ptr<SparsePattern>>;

PatternOr MakeDense(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeNative(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeWindow(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeChunked(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeStrided(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeDilated(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeFixed(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeBlockSparse(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeBigBird(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeLocalStride(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeVariable(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeQuest(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeBlockTopK(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeXAttention(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeSpargeAttn(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeVerticalSlash(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeInfLlmV2(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeMoba(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeDsa(const PatternPolicy& policy, const PatternContext& context);
PatternOr MakeNsa(const PatternPolicy& policy, const PatternContext& context);

// The patterns that a checkpoint may ask for, by value.
std::unique_ptr<SparsePattern> NewDense(bool causal = true);
std::unique_ptr<SparsePattern> NewWindow(int32_t window, int32_t sink_tokens, bool causal = true);
std::unique_ptr<SparsePattern> NewChunked(int32_t chunk);
std::unique_ptr<SparsePattern> NewInfLlmV2(const InfLlmV2& native);
std::unique_ptr<SparsePattern> NewMoba(const Moba& native);
std::unique_ptr<SparsePattern> NewDsa(const Dsa& native);
std::unique_ptr<SparsePattern> NewNsa(const Nsa& native);

// Largest value that window, chunk, stride and the like may take.
inline constexpr int64_t kMaxPatternTokens = int64_t{1} << 28;

// Positions [begin, end) that a tile's rows may read, beside the pattern's first `sink_tokens`.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// Lists, for patterns whose tiles read one range of pages each (and the pages of the sinks): sets
// entries and lists from `range`, called for each tile with its kv_lens and `argument`. Lists without sinks are ranges of one ascending
// array, so that a step costs O(tiles + pages of the longest sequence).
using KeyRangeFn = KeyRange (*)(const kernels::QueryTile& tile, int64_t kv_len, int64_t argument);
void SelectPageRanges(int32_t sink_tokens, KeyRangeFn range, int64_t argument,
                      SelectionBuilder* out);

}  // namespace longstride::model

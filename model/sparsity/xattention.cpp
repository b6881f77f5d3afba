// xattention: the queries of a tile of 128 positions of the prompt read the pages that together
// hold `threshold` of the tile's attention, as the sums along the antidiagonals of squares of
// `stride` queries and keys estimate it (kernels::PageScore::kAntidiagonal). How many pages that is
// depends on the text. A generated token reads all keys up to its own. Source: XAttention (arXiv
// 2503.16428).
//
// Where this is another function than the authors' code: blocks of keys are pages of 64, not 128;
// the first `sink_pages` are always read (theirs forces the first row of queries instead); one
// threshold holds for all heads of a rule.
#include "model/sparsity/patterns.h"
#include "model/sparsity/share_pattern.h"

namespace longstride::model {

PatternOr MakeXAttention(const PatternPolicy& policy, const PatternContext&) {
  RETURN_IF_ERROR(
      policy.CheckKnown({"threshold", "stride", "sink_pages", "recent_pages", "per_query_head"}));
  PageRanking ranking{.score = kernels::PageScore::kAntidiagonal,
                      .pooled_rows = SharePattern::kTileRows};
  ASSIGN_OR_RETURN(const double threshold, policy.RequiredNumber("threshold", 0.01, 1.0));
  ASSIGN_OR_RETURN(const int64_t stride, policy.Int("stride", 16, 4, kernels::kPageTokens));
  if ((stride & (stride - 1)) != 0) {
    return policy.Error(StrCat("'stride' is ", stride, "; allowed are 4, 8, 16, 32 and 64."));
  }
  RETURN_IF_ERROR(SharePattern::ReadLists(policy, &ranking));
  ranking.mass = RoundedShare(threshold);
  ranking.stride = static_cast<int32_t>(stride);
  return std::make_unique<SharePattern>(
      StrCat("xattention(", ranking.mass, ",stride=", ranking.stride), ranking);
}

}  // namespace longstride::model

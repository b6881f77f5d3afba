// spargeattn: the queries of a tile of 128 positions of the prompt read the pages that the mean of
// the tile's queries and the means of the pages' keys say hold up to `threshold` of its attention,
// and those whose keys have no mean worth the name: where the mean cosine of a page's keys is not
// above `similarity` the page is read by all, where that of the tile's queries is not it reads
// everything (kernels::PageScore::kPooled). How many pages that is depends on the text. A generated
// token reads all keys up to its own. Source: SpargeAttn (arXiv 2502.18137): its block map alone,
// over which attention here is exact (theirs quantises the scores to 8 bits and leaves out values
// that a running maximum dwarfs).
//
// As there, the page that would cross the threshold is left out, other than in xattention. Here the
// first `sink_pages` (1; theirs is optional), the tile's own pages and the last `recent_pages` are
// always read.
#include "model/sparsity/patterns.h"
#include "model/sparsity/share_pattern.h"

namespace longstride::model {

PatternOr MakeSpargeAttn(const PatternPolicy& policy, const PatternContext&) {
  RETURN_IF_ERROR(policy.CheckKnown(
      {"threshold", "similarity", "sink_pages", "recent_pages", "per_query_head"}));
  PageRanking ranking{.score = kernels::PageScore::kPooled, .pooled_rows = SharePattern::kTileRows};
  ASSIGN_OR_RETURN(const double threshold, policy.RequiredNumber("threshold", 0.01, 1.0));
  double similarity = 0.6;
  if (policy.Has("similarity")) {
    ASSIGN_OR_RETURN(similarity, policy.RequiredNumber("similarity", -1.0, 1.0));
  }
  RETURN_IF_ERROR(SharePattern::ReadLists(policy, &ranking));
  ranking.mass = RoundedShare(threshold);
  ranking.similarity = RoundedShare(similarity);
  return std::make_unique<SharePattern>(
      StrCat("spargeattn(", ranking.mass, ",similarity=", ranking.similarity), ranking);
}

}  // namespace longstride::model

// vertical_slash: prompts are estimated in segments of `segment` positions. The last 64 queries of
// a segment attend to all keys before them; its queries read the pages of the columns to which
// those pay most attention (as many pages as `vertical_tokens` fill) and what lies along the
// diagonals to which they do (`slash_tokens`, in runs of 64 diagonals); see
// kernels::PageScore::kVerticalSlash. A generated token reads all keys up to its own. Source: the
// vertical-slash heads of MInference (arXiv 2407.02490). With `gamma` instead, as many of both as
// hold that share of the attention (`vertical_tokens` and `slash_tokens` are then the least), as
// FlexPrefill's vertical-slash heads do (arXiv 2502.20766). With `tau`, too, a list becomes
// query-aware where the Jensen-Shannon distance between what the probe's mean query makes of pages'
// mean keys and what the probe makes of the pages is below it, as FlexPrefill's other heads are:
// each tile then takes the pages that hold `gamma` of the attention by its own mean query.
// (FlexPrefill ranks the blocks of all rows together; here each tile has its own share.)
//
// Where this is another function than theirs: the paper estimates a whole prompt from its last
// queries, which is not known while its first chunk is computed; here each segment is estimated
// from its own (docs/decisions/0007). Columns are rounded up to pages of 64, diagonals to diagonals
// of pages; and one budget holds for all heads of a rule (write rules per head for a head table).
#include <bit>

#include "model/sparsity/patterns.h"
#include "model/sparsity/share_pattern.h"

namespace longstride::model {
namespace {

constexpr int64_t kMaxSegment = 1 << 16;

int32_t Pages(int64_t tokens) {
  return static_cast<int32_t>((tokens + kernels::kPageTokens - 1) / kernels::kPageTokens);
}

std::string Text(const PageRanking& ranking) {
  std::string text = "vertical_slash(";
  if (ranking.mass > 0) StrAppend(&text, "gamma=", ranking.mass, ",");
  if (ranking.divergence > 0) StrAppend(&text, "tau=", ranking.divergence, ",");
  StrAppend(&text, ranking.vertical_pages, "+", ranking.slash_pages,
            " pages,segment=", ranking.pooled_rows);
  return text;
}

}  // namespace

PatternOr MakeVerticalSlash(const PatternPolicy& policy, const PatternContext&) {
  RETURN_IF_ERROR(policy.CheckKnown({"vertical_tokens", "slash_tokens", "gamma", "tau", "segment",
                                     "sink_pages", "recent_pages", "per_query_head"}));
  PageRanking ranking{.score = kernels::PageScore::kVerticalSlash};
  int64_t vertical = 0, slash = 0;
  if (policy.Has("gamma")) {
    ASSIGN_OR_RETURN(const double gamma, policy.RequiredNumber("gamma", 0.01, 1.0));
    ranking.mass = RoundedShare(gamma);
    ASSIGN_OR_RETURN(vertical, policy.Int("vertical_tokens", 0, 0, kMaxPatternTokens));
    ASSIGN_OR_RETURN(slash, policy.Int("slash_tokens", 0, 0, kMaxPatternTokens));
    if (policy.Has("tau")) {
      ASSIGN_OR_RETURN(const double tau, policy.RequiredNumber("tau", 0.001, 1.0));
      ranking.divergence = RoundedShare(tau);
    }
  } else {
    if (policy.Has("tau")) {
      return policy.Error("'tau' chooses between two ways to reach 'gamma'; give both or neither.");
    }
    ASSIGN_OR_RETURN(vertical, policy.RequiredInt("vertical_tokens", 0, kMaxPatternTokens));
    ASSIGN_OR_RETURN(slash, policy.RequiredInt("slash_tokens", 0, kMaxPatternTokens));
    if (vertical + slash == 0) {
      return policy.Error(
          "'vertical_tokens' and 'slash_tokens' are both 0; raise one, or give 'gamma'.");
    }
  }
  ASSIGN_OR_RETURN(const int64_t segment,
                   policy.Int("segment", 256, SharePattern::kTileRows, kMaxSegment));
  if (!std::has_single_bit(static_cast<uint64_t>(segment))) {
    return policy.Error(StrCat("'segment' is ", segment, "; allowed are powers of two from ",
                               SharePattern::kTileRows, " to ", kMaxSegment, "."));
  }
  RETURN_IF_ERROR(SharePattern::ReadLists(policy, &ranking));
  ranking.pooled_rows = static_cast<int32_t>(segment);
  ranking.vertical_pages = Pages(vertical);
  ranking.slash_pages = Pages(slash);
  return std::make_unique<SharePattern>(Text(ranking), ranking);
}

}  // namespace longstride::model

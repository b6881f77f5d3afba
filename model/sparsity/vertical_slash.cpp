// vertical_slash: prompts are estimated in segments of `segment` positions. The last 64 queries of
// a segment attend to all keys before them; its queries read the pages of the columns to which
// those pay most attention (as many pages as `vertical_tokens` fill) and what lies along the
// diagonals to which they do (`slash_tokens`, in runs of 64 diagonals); see
// kernels::PageScore::kVerticalSlash. A generated token reads all keys up to its own. Source: the
// vertical-slash heads of MInference (arXiv 2407.02490). With `gamma` instead, as many of both as
// hold that share of the attention (`vertical_tokens` and `slash_tokens` are then the least), as
// FlexPrefill's vertical-slash heads do (arXiv 2502.20766).
//
// Where this is another function than theirs: the paper estimates a whole prompt from its last
// queries, which is not known while its first chunk is computed; here each segment is estimated
// from its own (docs/decisions/0007). Columns are rounded up to pages of 64, diagonals to diagonals
// of pages; and one budget holds for all heads of a rule (write rules per head for a head table).
#include <bit>
#include <cmath>

#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

constexpr int32_t kTileRows = 128;
constexpr int64_t kMaxForcedPages = 1 << 16;
constexpr int64_t kMaxSegment = 1 << 16;

int64_t Pages(int64_t tokens) { return (tokens + kernels::kPageTokens - 1) / kernels::kPageTokens; }

class VerticalSlash : public SparsePattern {
 public:
  explicit VerticalSlash(const PageRanking& ranking) : ranking_(ranking) {}

  std::string Describe() const override {
    const bool per_query_head = ranking_.list_heads == kernels::ListHeads::kPerQHead;
    return StrCat("vertical_slash(",
                  ranking_.mass > 0 ? StrCat("gamma=", ranking_.mass, ",") : std::string(),
                  ranking_.vertical_pages, "+", ranking_.slash_pages,
                  " pages,segment=", ranking_.pooled_rows, ",sinks=", ranking_.sink_pages,
                  ",recent=", ranking_.recent_pages, per_query_head ? ",per_query_head)" : ")");
  }
  Retention retention() const override { return {}; }
  const PageRanking* ranking() const override { return &ranking_; }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    out->query_tile = kTileRows;
    for (const QueryRun& run : runs) {
      out->MakeTiles({&run, 1}, run.numerics == NumericsClass::kGenerated ? 1 : 0);
    }
    out->list_count.clear();
    for (const kernels::QueryTile& tile : out->tiles) {
      out->list_count.push_back(static_cast<int32_t>(kernels::CandidatePages(tile)));
    }
    out->edges.push_back({});
  }
  // The most: what is read is known when it has been.
  double VisibleKeys(int64_t position) const override { return static_cast<double>(position + 1); }
  bool Visible(int32_t, int64_t i, int64_t j) const override { return j >= 0 && j <= i; }

 private:
  PageRanking ranking_;
};

}  // namespace

PatternOr MakeVerticalSlash(const PatternPolicy& policy, const PatternContext&) {
  RETURN_IF_ERROR(policy.CheckKnown({"vertical_tokens", "slash_tokens", "gamma", "segment",
                                     "sink_pages", "recent_pages", "per_query_head"}));
  int64_t vertical = 0, slash = 0;
  double gamma = 0;
  if (policy.Has("gamma")) {
    ASSIGN_OR_RETURN(gamma, policy.RequiredNumber("gamma", 0.01, 1.0));
    ASSIGN_OR_RETURN(vertical, policy.Int("vertical_tokens", 0, 0, kMaxPatternTokens));
    ASSIGN_OR_RETURN(slash, policy.Int("slash_tokens", 0, 0, kMaxPatternTokens));
  } else {
    ASSIGN_OR_RETURN(vertical, policy.RequiredInt("vertical_tokens", 0, kMaxPatternTokens));
    ASSIGN_OR_RETURN(slash, policy.RequiredInt("slash_tokens", 0, kMaxPatternTokens));
    if (vertical + slash == 0) {
      return policy.Error(
          "'vertical_tokens' and 'slash_tokens' are both 0; raise one, or give 'gamma'.");
    }
  }
  ASSIGN_OR_RETURN(const int64_t segment, policy.Int("segment", 256, kTileRows, kMaxSegment));
  if (!std::has_single_bit(static_cast<uint64_t>(segment))) {
    return policy.Error(StrCat("'segment' is ", segment, "; allowed are powers of two from ",
                               kTileRows, " to ", kMaxSegment, "."));
  }
  ASSIGN_OR_RETURN(const int64_t sinks, policy.Int("sink_pages", 1, 0, kMaxForcedPages));
  ASSIGN_OR_RETURN(const int64_t recent, policy.Int("recent_pages", 1, 1, kMaxForcedPages));
  ASSIGN_OR_RETURN(const bool per_query_head, policy.Bool("per_query_head", true));
  return std::make_unique<VerticalSlash>(PageRanking{
      .score = kernels::PageScore::kVerticalSlash,
      .list_heads = per_query_head ? kernels::ListHeads::kPerQHead : kernels::ListHeads::kPerKvHead,
      .sink_pages = static_cast<int32_t>(sinks),
      .recent_pages = static_cast<int32_t>(recent),
      .pooled_rows = static_cast<int32_t>(segment),
      .mass = static_cast<float>(std::round(gamma * 1e6) / 1e6),
      .vertical_pages = static_cast<int32_t>(Pages(vertical)),
      .slash_pages = static_cast<int32_t>(Pages(slash))});
}

}  // namespace longstride::model

// xattention: the queries of a tile of 128 positions of the prompt read the pages that together
// hold `threshold` of the tile's attention, as the sums along the antidiagonals of squares of
// `stride` queries and keys estimate it (kernels::PageScore::kAntidiagonal). How many pages that is
// depends on the text. A generated token reads all keys up to its own. Source: XAttention (arXiv
// 2503.16428).
//
// Where this is another function than the authors' code: blocks of keys are pages of 64, not 128;
// the first `sink_pages` are always read (theirs forces the first row of queries instead); one
// threshold holds for all heads of a rule.
#include <cmath>

#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

constexpr int32_t kTileRows = 128;
constexpr int64_t kMaxForcedPages = 1 << 16;

class XAttention : public SparsePattern {
 public:
  explicit XAttention(const PageRanking& ranking) : ranking_(ranking) {}

  std::string Describe() const override {
    const bool per_query_head = ranking_.list_heads == kernels::ListHeads::kPerQHead;
    return StrCat("xattention(", ranking_.mass, ",stride=", ranking_.stride,
                  ",sinks=", ranking_.sink_pages, ",recent=", ranking_.recent_pages,
                  per_query_head ? ",per_query_head)" : ")");
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

PatternOr MakeXAttention(const PatternPolicy& policy, const PatternContext&) {
  RETURN_IF_ERROR(
      policy.CheckKnown({"threshold", "stride", "sink_pages", "recent_pages", "per_query_head"}));
  ASSIGN_OR_RETURN(const double threshold, policy.RequiredNumber("threshold", 0.01, 1.0));
  ASSIGN_OR_RETURN(const int64_t stride, policy.Int("stride", 16, 4, kernels::kPageTokens));
  if ((stride & (stride - 1)) != 0) {
    return policy.Error(StrCat("'stride' is ", stride, "; allowed are 4, 8, 16, 32 and 64."));
  }
  ASSIGN_OR_RETURN(const int64_t sinks, policy.Int("sink_pages", 1, 0, kMaxForcedPages));
  ASSIGN_OR_RETURN(const int64_t recent, policy.Int("recent_pages", 1, 1, kMaxForcedPages));
  ASSIGN_OR_RETURN(const bool per_query_head, policy.Bool("per_query_head", true));
  return std::make_unique<XAttention>(PageRanking{
      .score = kernels::PageScore::kAntidiagonal,
      .list_heads = per_query_head ? kernels::ListHeads::kPerQHead : kernels::ListHeads::kPerKvHead,
      .sink_pages = static_cast<int32_t>(sinks),
      .recent_pages = static_cast<int32_t>(recent),
      .pooled_rows = kTileRows,
      .mass = static_cast<float>(std::round(threshold * 1e6) / 1e6),
      .stride = static_cast<int32_t>(stride)});
}

}  // namespace longstride::model

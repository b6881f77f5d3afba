// block_topk: the queries of a tile of 128 positions of the prompt read the pages whose mean key has
// the largest product with the tile's mean query, beside their own pages; a generated token stands for
// itself. Source: the block-sparse heads of MInference (arXiv 2407.02490), which MoBA (arXiv 2502.13189)
// trains.
//
// Where this is another function than theirs: tiles have 128 queries and blocks of keys 64; a list
// belongs to a KV head, whose score is the largest of its query heads', unless `per_query_head`; the
// first `sink_pages` are always read; the budget may be a share of the context.
#include "model/sparsity/page_budget.h"
#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

constexpr int32_t kTileRows = 128;

class BlockTopK : public SparsePattern {
 public:
  BlockTopK(const PageBudget& budget, bool per_query_head) : budget_(budget) {
    ranking_ = {.score = kernels::PageScore::kMean,
                .list_heads = per_query_head ? kernels::ListHeads::kPerQHead
                                             : kernels::ListHeads::kPerKvHead,
                .sink_pages = budget.sink_pages(),
                .recent_pages = budget.recent_pages(),
                .pooled_rows = kTileRows};
  }

  std::string Describe() const override {
    const bool per_query_head = ranking_.list_heads == kernels::ListHeads::kPerQHead;
    return StrCat("block_topk(", budget_.Describe(), per_query_head ? ",per_query_head" : "", ")");
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
      out->list_count.push_back(budget_.PagesOf(tile));
    }
    out->edges.push_back({});
  }
  double VisibleKeys(int64_t position) const override {
    const int64_t first = position / kTileRows * kTileRows;
    const kernels::QueryTile tile = {.num_rows = kTileRows,
                                     .first_position = static_cast<int32_t>(first)};
    return budget_.VisibleKeys(tile, position);
  }
  double GeneratedVisibleKeys(int64_t position) const override {
    const kernels::QueryTile row = {.num_rows = 1,
                                    .first_position = static_cast<int32_t>(position)};
    return budget_.VisibleKeys(row, position);
  }
  bool Visible(int32_t, int64_t i, int64_t j) const override { return j >= 0 && j <= i; }

 private:
  PageBudget budget_;
  PageRanking ranking_;
};

}  // namespace

PatternOr MakeBlockTopK(const PatternPolicy& policy, const PatternContext&) {
  std::vector<std::string> known(std::begin(PageBudget::kParameters),
                                 std::end(PageBudget::kParameters));
  known.emplace_back("per_query_head");
  RETURN_IF_ERROR(policy.CheckKnown(known));
  ASSIGN_OR_RETURN(const PageBudget budget, PageBudget::FromPolicy(policy));
  ASSIGN_OR_RETURN(const bool per_query_head, policy.Bool("per_query_head", false));
  return std::make_unique<BlockTopK>(budget, per_query_head);
}

}  // namespace longstride::model

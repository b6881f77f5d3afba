// quest: a prompt's query reads all keys up to its own. A generated token's reads the pages whose keys
// may have the largest products with it: those with the largest sum_d max(q_d * min_d, q_d * max_d)
// over the page's minimum and maximum of each channel. Source: Quest (arXiv 2406.10774).
//
// Where this is another function than the paper's: pages have 64 tokens instead of 16; a list belongs
// to a KV head, whose score is the largest of its query heads' (the paper has one query head per KV
// head); the page being written is always read (as in the authors' kernels).
#include "model/sparsity/page_budget.h"
#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

class Quest : public SparsePattern {
 public:
  explicit Quest(const PageBudget& budget) : budget_(budget) {
    ranking_ = {.score = kernels::PageScore::kBound,
                .list_heads = kernels::ListHeads::kPerKvHead,
                .sink_pages = budget.sink_pages(),
                .recent_pages = budget.recent_pages(),
                .pooled_rows = 1};
  }

  std::string Describe() const override { return StrCat("quest(", budget_.Describe(), ")"); }
  Retention retention() const override { return {}; }
  const PageRanking* ranking() const override { return &ranking_; }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    std::vector<int32_t> counts;
    for (const QueryRun& run : runs) {
      const bool generated = run.numerics == NumericsClass::kGenerated;
      const size_t first = out->tiles.size();
      out->MakeTiles({&run, 1}, generated ? 1 : 0);
      for (size_t t = first; t < out->tiles.size(); ++t) {
        const kernels::QueryTile& tile = out->tiles[t];
        counts.push_back(generated ? budget_.PagesOf(tile)
                                   : static_cast<int32_t>(kernels::CandidatePages(tile)));
      }
    }
    out->list_count = std::move(counts);
    out->edges.push_back({});
  }
  double VisibleKeys(int64_t position) const override { return static_cast<double>(position + 1); }
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

PatternOr MakeQuest(const PatternPolicy& policy, const PatternContext&) {
  RETURN_IF_ERROR(policy.CheckKnown(
      {std::begin(PageBudget::kParameters), std::end(PageBudget::kParameters)}));
  ASSIGN_OR_RETURN(const PageBudget budget, PageBudget::FromPolicy(policy));
  return std::make_unique<Quest>(budget);
}

}  // namespace longstride::model

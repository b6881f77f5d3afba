#include "model/sparsity/share_pattern.h"

#include <cmath>

namespace longstride::model {

absl::Status SharePattern::ReadLists(const PatternPolicy& policy, PageRanking* ranking) {
  ASSIGN_OR_RETURN(const int64_t sinks, policy.Int("sink_pages", 1, 0, kMaxForcedPages));
  ASSIGN_OR_RETURN(const int64_t recent, policy.Int("recent_pages", 1, 1, kMaxForcedPages));
  ASSIGN_OR_RETURN(const bool per_query_head, policy.Bool("per_query_head", true));
  ranking->sink_pages = static_cast<int32_t>(sinks);
  ranking->recent_pages = static_cast<int32_t>(recent);
  ranking->list_heads =
      per_query_head ? kernels::ListHeads::kPerQHead : kernels::ListHeads::kPerKvHead;
  return absl::OkStatus();
}

std::string SharePattern::Describe() const {
  const bool per_query_head = ranking_.list_heads == kernels::ListHeads::kPerQHead;
  return StrCat(text_, ",sinks=", ranking_.sink_pages, ",recent=", ranking_.recent_pages,
                per_query_head ? ",per_query_head)" : ")");
}

void SharePattern::Select(std::span<const QueryRun> runs, SelectionBuilder* out) const {
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

float RoundedShare(double share) { return static_cast<float>(std::round(share * 1e6) / 1e6); }

}  // namespace longstride::model

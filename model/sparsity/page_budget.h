// How many pages a query-dependent pattern lets a query read.
#pragma once

#include <cstdint>
#include <string>

#include "config/base/status.h"
#include "kernels/kv_selection.h"
#include "model/sparsity/sparse_pattern.h"

namespace longstride::model {

// A number of tokens or a share of the pages that there are, and the pages that are read in any case:
// the first, the last, and those of the queries themselves.
class PageBudget {
 public:
  static constexpr const char* kParameters[] = {"budget_tokens", "fraction", "sink_pages",
                                                "recent_pages"};

  // Reads kParameters: one of "budget_tokens" and "fraction", "sink_pages" = 0, "recent_pages" = 1.
  // INVALID_ARGUMENT: a bad number, or a budget that the pages read in any case alone exceed.
  static absl::StatusOr<PageBudget> FromPolicy(const PatternPolicy& policy);

  // "2048 tokens,sinks=1,recent=1": the function of the budget.
  std::string Describe() const;
  int32_t sink_pages() const { return sink_pages_; }
  int32_t recent_pages() const { return recent_pages_; }

  // Pages that the lists of `tile` take, of its candidates.
  int32_t PagesOf(const kernels::QueryTile& tile) const;
  // Keys that the tile's query at `position` sees.
  double VisibleKeys(const kernels::QueryTile& tile, int64_t position) const;

 private:
  int32_t budget_tokens_ = 0;  // 0: the share holds
  int32_t millionths_ = 0;     // of the candidates
  int32_t sink_pages_ = 0;
  int32_t recent_pages_ = 1;
};

}  // namespace longstride::model

#include "model/sparsity/page_budget.h"

#include <algorithm>
#include <cmath>

#include "kernels/op_params.h"
#include "kernels/paged_kv.h"
#include "model/sparsity/patterns.h"

namespace longstride::model {

using kernels::kPageTokens;

absl::StatusOr<PageBudget> PageBudget::FromPolicy(const PatternPolicy& policy) {
  constexpr int64_t kMaxForcedPages = 1 << 16;
  if (policy.Has("budget_tokens") == policy.Has("fraction")) {
    return policy.Error(StrCat("pattern '", policy.pattern,
                               "' needs one of 'budget_tokens', the keys that a query reads, and "
                               "'fraction', their share of the keys before it."));
  }
  PageBudget budget;
  ASSIGN_OR_RETURN(const int64_t sinks, policy.Int("sink_pages", 0, 0, kMaxForcedPages));
  ASSIGN_OR_RETURN(const int64_t recent, policy.Int("recent_pages", 1, 1, kMaxForcedPages));
  budget.sink_pages_ = static_cast<int32_t>(sinks);
  budget.recent_pages_ = static_cast<int32_t>(recent);
  if (policy.Has("fraction")) {
    ASSIGN_OR_RETURN(const double fraction, policy.RequiredNumber("fraction", 0.001, 1.0));
    budget.millionths_ = static_cast<int32_t>(std::lround(fraction * 1e6));
    return budget;
  }
  ASSIGN_OR_RETURN(const int64_t tokens,
                   policy.RequiredInt("budget_tokens", kPageTokens, kMaxPatternTokens));
  if ((tokens + kPageTokens - 1) / kPageTokens < sinks + recent) {
    return policy.Error(StrCat("'budget_tokens' is ", tokens, ", but the first ", sinks,
                               " and the last ", recent, " pages of ", kPageTokens,
                               " tokens, which are always read, are ",
                               (sinks + recent) * kPageTokens, "; raise it to that or more."));
  }
  budget.budget_tokens_ = static_cast<int32_t>(tokens);
  return budget;
}

std::string PageBudget::Describe() const {
  return StrCat(budget_tokens_ > 0 ? StrCat(budget_tokens_, " tokens") : StrCat(millionths_ / 1e6),
                ",sinks=", sink_pages_, ",recent=", recent_pages_);
}

int32_t PageBudget::PagesOf(const kernels::QueryTile& tile) const {
  const int64_t candidates = kernels::CandidatePages(tile);
  const int64_t wanted = budget_tokens_ > 0
                             ? (budget_tokens_ + kPageTokens - 1) / kPageTokens
                             : (millionths_ * candidates + 999'999) / 1'000'000;
  const int64_t forced = kernels::ForcedPages(tile, sink_pages_, recent_pages_);
  return static_cast<int32_t>(std::clamp(wanted, forced, candidates));
}

double PageBudget::VisibleKeys(const kernels::QueryTile& tile, int64_t position) const {
  const int64_t ahead = kernels::CandidatePages(tile) - 1 - position / kPageTokens;
  const int64_t earlier = PagesOf(tile) - ahead - 1;
  return static_cast<double>(earlier * kPageTokens + position % kPageTokens + 1);
}

}  // namespace longstride::model

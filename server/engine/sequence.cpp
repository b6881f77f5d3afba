#include "server/engine/sequence.h"

#include <algorithm>
#include <limits>

namespace longstride::engine {

using kernels::kPageTokens;

int64_t PeakPages(const model::CacheGroup& group, int64_t tokens, int64_t step_tokens) {
  const auto pages = [](int64_t n) { return (n + kPageTokens - 1) / kPageTokens; };
  const model::Retention& retention = group.retention;
  if (retention.keeps_all()) return pages(tokens);
  int64_t live = std::numeric_limits<int64_t>::max();
  if (retention.window > 0) live = pages(retention.window - 1);
  if (retention.chunk > 0) {
    live = std::min(live, pages(retention.chunk) + (retention.chunk % kPageTokens != 0 ? 1 : 0));
  }
  return std::min(pages(tokens), retention.first_dead_page() + live + pages(step_tokens));
}

int64_t PeakBytes(const std::vector<model::CacheGroup>& groups, int64_t tokens,
                  int64_t step_tokens) {
  int64_t bytes = 0;
  for (const model::CacheGroup& group : groups) {
    bytes += PeakPages(group, tokens, step_tokens) * group.page_bytes;
  }
  return bytes;
}

}  // namespace longstride::engine

// A cache group: a set of (layer, KV head) pairs whose keys and values live and die together. The
// engine accounts for pages per group; the KvCache owns their memory; patterns decide retention.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/paged_kv.h"

namespace longstride::model {

// Which positions no later query of the group's layers will read, once the next query stands at
// `next` (positions below next are cached). Everything is kept where all fields are 0.
struct Retention {
  int32_t window = 0;       // the query at i sees j > i - window
  int32_t sink_tokens = 0;  // ... and j < sink_tokens
  int32_t chunk = 0;        // the query at i sees only its own chunk

  bool keeps_all() const { return window == 0 && chunk == 0; }

  // Positions in [sink_end(), live_begin(next)) are dead when the next query is at `next`.
  int64_t live_begin(int64_t next) const {
    int64_t begin = 0;
    if (window > 0) begin = std::max<int64_t>(begin, next - window + 1);
    if (chunk > 0) begin = std::max<int64_t>(begin, next / chunk * chunk);
    return begin;
  }
  // Logical pages in [first_dead_page(), end_dead_page(next)) are dead.
  int64_t first_dead_page() const {
    return (int64_t{sink_tokens} + kernels::kPageTokens - 1) / kernels::kPageTokens;
  }
  int64_t end_dead_page(int64_t next) const { return live_begin(next) / kernels::kPageTokens; }

  friend bool operator==(const Retention&, const Retention&) = default;
};

struct CacheGroup {
  std::string name;  // "full", "window512": the metric label
  Retention retention;
  std::vector<int32_t> layers;
  int32_t first_kv_head = 0;  // head range of those layers (per-head retention, tensor parallel)
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  bool summaries = false;  // pages carry summaries of their keys (PagedKv::summaries)
  bool segment_means = false;  // and these the means of segments
  bool value_mean = false;     // or of the page's values
  bool latent = false;         // an entry is key and value at once (LatentAttention), stored once
  int32_t index_dim = 0;       // channels of an index key beside every entry; 0: none
  // Of all layers and heads for one page: K, V (where it is not K), summaries and index keys.
  int64_t page_bytes = 0;
};

// A page's contents between its group's pages and the group's slots in host memory.
struct PageCopy {
  int32_t group = 0;
  int32_t page = 0;
  int32_t slot = 0;
  bool to_host = false;
};

// Bytes of one page of one layer of the group.
inline int64_t LayerPageBytes(const CacheGroup& group, kernels::KvDType dtype) {
  constexpr int64_t kAlignment = 64;
  int64_t bytes = (group.latent ? 1 : 2) * kernels::KvHeadPageBytes(dtype, group.head_dim);
  if (group.summaries) {
    bytes +=
        kernels::PageSummaryBytes(dtype, group.head_dim, group.segment_means, group.value_mean);
  }
  bytes *= group.num_kv_heads;
  if (group.summaries) bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (group.index_dim == 0) return bytes;
  return bytes + kernels::KvHeadPageBytes(dtype, group.index_dim);
}

// Pages of one group that a sequence of `tokens` cached positions holds while a step of up to
// `step_tokens` more is computed: the group's true need, used for admission.
inline int64_t PagesNeeded(const CacheGroup& group, int64_t tokens, int64_t step_tokens) {
  const auto pages = [](int64_t n) {
    return (n + kernels::kPageTokens - 1) / kernels::kPageTokens;
  };
  const int64_t total = pages(tokens + step_tokens);
  if (group.retention.keeps_all()) return total;
  const int64_t dead = std::max<int64_t>(
      0, group.retention.end_dead_page(tokens) - group.retention.first_dead_page());
  return total - dead;
}

}  // namespace longstride::model

// What lists show to query rows, worked out on the host from the lists alone.
#pragma once

#include <cstdint>

#include "config/base/status.h"
#include "kernels/op_params.h"

namespace longstride::kernels {

// Counts (query row, query head, key) triples of `query_heads` heads in time that follows the number
// of entries, not of keys. Padded lists that were made must lie in host memory. `kv_lens`:
// [sequences]. INTERNAL: a list does not ascend.
absl::StatusOr<AttentionCounters> CountKeys(const KvSelection& selection, const int32_t* kv_lens,
                                            int64_t query_heads);

// The positions that the query at `position` sees: [window, window_end], and of those in [low, high]
// outside it the sinks, which end at `sinks_end`.
struct Sight {
  int64_t low, high, window, window_end, sinks_end;
  Sight(const EdgeRule& edge, int64_t position, int64_t kv_len);
  // How many of the positions first to last.
  int64_t Sees(int64_t first, int64_t last) const;
};

}  // namespace longstride::kernels

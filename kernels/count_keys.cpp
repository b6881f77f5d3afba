#include "kernels/count_keys.h"

#include <algorithm>

namespace longstride::kernels {
namespace {

// Positions that two closed ranges share.
int64_t Shared(int64_t a, int64_t b, int64_t c, int64_t d) {
  return std::max<int64_t>(0, std::min(b, d) - std::max(a, c) + 1);
}

// Calls fn(first position, last position) for each run of consecutive entries of a list.
template <typename Fn>
absl::Status ForRuns(const int32_t* entries, int32_t count, int64_t entry_tokens, const Fn& fn) {
  int64_t previous = -1;
  for (int32_t i = 0; i < count;) {
    if (entries[i] == kNoEntry) {
      ++i;
      continue;
    }
    const int64_t first = entries[i];
    if (first <= previous) {
      return absl::InternalError(
          StrCat("Attention: list entries must ascend, got ", first, " after ", previous));
    }
    previous = first;
    for (++i; i < count && entries[i] == previous + 1; ++i) ++previous;
    fn(first * entry_tokens, (previous + 1) * entry_tokens - 1);
  }
  return absl::OkStatus();
}

// Lists of SelectPages hold the pages of their tile's rows and `count` in all; those of
// SelectTokens hold all that a row sees, or `count` tokens of one row.
AttentionCounters CountMadeLists(const KvSelection& s) {
  AttentionCounters total;
  const int64_t tokens = s.entry_tokens;
  for (int32_t h = 0; h < s.num_list_heads; ++h) {
    for (int32_t t = 0; t < s.num_tiles; ++t) {
      const QueryTile& tile = s.tiles[t];
      const int64_t count = s.list_count[int64_t{h} * s.num_tiles + t];
      if (count == 0) continue;
      const int64_t last = int64_t{tile.first_position} + tile.num_rows - 1;
      total.keys_read += ((count - 1) * tokens + last % tokens + 1) * tile.num_rows;
      for (int64_t i = tile.first_position; i <= last; ++i) {
        const int64_t ahead = last / tokens - i / tokens;
        total.keys_visible += (count - ahead - 1) * tokens + i % tokens + 1;
      }
    }
  }
  return total;
}

}  // namespace

Sight::Sight(const EdgeRule& e, int64_t i, int64_t kv_len) {
  low = e.chunk == 0 ? 0 : i / e.chunk * e.chunk;
  high = e.causal ? std::min(i, kv_len - 1) : kv_len - 1;
  if (e.chunk != 0) high = std::min(high, low + e.chunk - 1);
  const bool all = e.window == 0 || (!e.causal && i < e.sink_tokens);
  window = all ? low : std::max(low, i - e.window + 1);
  window_end = all ? high : std::min(high, i + e.window - 1);
  sinks_end = all ? -1 : e.sink_tokens - int64_t{1};
}

int64_t Sight::Sees(int64_t first, int64_t last) const {
  const int64_t sinks = std::min(high, sinks_end);
  return Shared(first, last, window, window_end) +
         Shared(first, last, low, std::min(window - 1, sinks)) +
         Shared(first, last, window_end + 1, sinks);
}

absl::StatusOr<AttentionCounters> CountKeys(const KvSelection& s, const int32_t* kv_lens,
                                            int64_t query_heads) {
  if (s.entries_made && !s.entries_padded) {
    const int64_t heads = query_heads / s.num_list_heads;
    const AttentionCounters made = CountMadeLists(s);
    return AttentionCounters{made.keys_visible * heads, made.keys_read * heads};
  }
  AttentionCounters total;
  for (int32_t h = 0; h < s.num_list_heads; ++h) {
    const EdgeRule& edge = s.edges[h];
    for (int32_t t = 0; t < s.num_tiles; ++t) {
      const QueryTile& tile = s.tiles[t];
      const int64_t kv_len = kv_lens[tile.sequence];
      const int64_t begin = tile.first_position, end = begin + tile.num_rows - 1;
      const int64_t list = int64_t{h} * s.num_tiles + t;
      const int64_t readable = edge.causal ? std::min(end, kv_len - 1) : kv_len - 1;
      RETURN_IF_ERROR(ForRuns(
          s.entries + s.list_begin[list], s.list_count[list], s.entry_tokens,
          [&](int64_t first, int64_t last) {
            total.keys_read += Shared(first, last, 0, readable) * tile.num_rows;
            for (int64_t i = begin; i <= end; ++i) {
              total.keys_visible += Sight(edge, i, kv_len).Sees(first, last);
            }
          }));
    }
  }
  const int64_t heads = query_heads / s.num_list_heads;
  return AttentionCounters{total.keys_visible * heads, total.keys_read * heads};
}

}  // namespace longstride::kernels

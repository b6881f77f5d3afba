#include "kernels/cuda/attention/host_lists.h"

#include <algorithm>

namespace longstride::kernels::cuda {
namespace {

// Positions that two closed ranges share.
int64_t Shared(int64_t a, int64_t b, int64_t c, int64_t d) {
  return std::max<int64_t>(0, std::min(b, d) - std::max(a, c) + 1);
}

// The positions that the query at i sees: [low, high] without those below `window`, and the sinks.
struct Sight {
  int64_t low, high, window, sinks_end;
  Sight(const EdgeRule& e, int64_t i, int64_t kv_len) {
    low = e.chunk == 0 ? 0 : i / e.chunk * e.chunk;
    high = e.causal ? std::min(i, kv_len - 1) : kv_len - 1;
    if (e.chunk != 0) high = std::min(high, low + e.chunk - 1);
    window = e.window == 0 ? low : std::max(low, i - e.window + 1);
    sinks_end = std::min<int64_t>(window, e.sink_tokens) - 1;
  }
  // Of the positions first to last.
  int64_t Sees(int64_t first, int64_t last) const {
    return Shared(first, last, window, high) +
           Shared(first, last, low, std::min(high, sinks_end));
  }
};

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

// Lists of SelectPages hold the pages of their tile's rows and `count` in all.
AttentionCounters CountMadeLists(const KvSelection& s) {
  AttentionCounters total;
  for (int32_t h = 0; h < s.num_list_heads; ++h) {
    for (int32_t t = 0; t < s.num_tiles; ++t) {
      const QueryTile& tile = s.tiles[t];
      const int64_t count = s.list_count[int64_t{h} * s.num_tiles + t];
      if (count == 0) continue;
      const int64_t last = int64_t{tile.first_position} + tile.num_rows - 1;
      total.keys_read += ((count - 1) * kPageTokens + last % kPageTokens + 1) * tile.num_rows;
      for (int64_t i = tile.first_position; i <= last; ++i) {
        const int64_t pages_ahead = last / kPageTokens - i / kPageTokens;
        total.keys_visible += (count - pages_ahead - 1) * kPageTokens + i % kPageTokens + 1;
      }
    }
  }
  return total;
}

}  // namespace

absl::StatusOr<AttentionCounters> CountKeys(const AttentionParams& p) {
  const KvSelection& s = p.selection;
  if (s.entries_made) {
    const int64_t heads = p.q.shape[1] / s.num_list_heads;
    const AttentionCounters made = CountMadeLists(s);
    return AttentionCounters{made.keys_visible * heads, made.keys_read * heads};
  }
  AttentionCounters total;
  for (int32_t h = 0; h < s.num_list_heads; ++h) {
    const EdgeRule& edge = s.edges[h];
    for (int32_t t = 0; t < s.num_tiles; ++t) {
      const QueryTile& tile = s.tiles[t];
      const int64_t kv_len = p.kv_lens[tile.sequence];
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
  const int64_t heads = p.q.shape[1] / s.num_list_heads;
  return AttentionCounters{total.keys_visible * heads, total.keys_read * heads};
}

void RowLists::Set(const AttentionParams& p, const std::vector<int32_t>& from) {
  const KvSelection& s = p.selection;
  tiles.clear();
  more.clear();
  longest = 0;
  std::vector<int32_t> parents;
  for (const int32_t t : from) {
    for (int32_t r = 0; r < s.tiles[t].num_rows; ++r) {
      const QueryTile& tile = s.tiles[t];
      tiles.push_back({tile.sequence, tile.row_begin + r, 1, tile.first_position + r});
      parents.push_back(t);
    }
  }
  list_begin.assign(tiles.size() * static_cast<size_t>(s.num_list_heads), 0);
  list_count.assign(list_begin.size(), 0);
  const int64_t width = s.entry_tokens;
  for (int32_t h = 0; h < s.num_list_heads; ++h) {
    for (size_t t = 0; t < tiles.size(); ++t) {
      const int64_t list = int64_t{h} * s.num_tiles + parents[t];
      if (s.entries_made) {
        // Entries are out of reach, and single rows' lists hold what the row sees.
        const size_t at = static_cast<size_t>(h) * tiles.size() + t;
        list_begin[at] = s.list_begin[list];
        list_count[at] = s.list_count[list];
        longest = std::max(longest, list_count[at]);
        continue;
      }
      const Sight sight(s.edges[h], tiles[t].first_position, p.kv_lens[tiles[t].sequence]);
      const auto seen = [&](int64_t at) {
        const int64_t e = s.entries[at];
        return e == kNoEntry || sight.Sees(e * width, (e + 1) * width - 1) > 0;
      };
      int64_t begin = s.list_begin[list], end = begin + s.list_count[list];
      while (begin < end && !seen(begin)) ++begin;
      while (begin < end && !seen(end - 1)) --end;
      bool gap = false;
      // With a window and sinks what is hidden may lie between.
      if (s.edges[h].window != 0 && s.edges[h].sink_tokens != 0) {
        for (int64_t at = begin; at < end && !gap; ++at) gap = !seen(at);
      }
      const size_t at = static_cast<size_t>(h) * tiles.size() + t;
      list_begin[at] = begin;
      list_count[at] = static_cast<int32_t>(end - begin);
      if (gap) {
        list_begin[at] = s.num_entries + static_cast<int64_t>(more.size());
        const size_t before = more.size();
        for (int64_t i = begin; i < end; ++i) {
          if (seen(i)) more.push_back(s.entries[i]);
        }
        list_count[at] = static_cast<int32_t>(more.size() - before);
      }
      longest = std::max(longest, list_count[at]);
    }
  }
}

}  // namespace longstride::kernels::cuda

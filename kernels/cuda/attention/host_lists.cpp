#include "kernels/cuda/attention/host_lists.h"

#include <algorithm>

#include "kernels/count_keys.h"

namespace longstride::kernels::cuda {

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

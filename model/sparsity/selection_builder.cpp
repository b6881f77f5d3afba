#include <algorithm>

#include "config/base/check.h"
#include "model/sparsity/sparse_pattern.h"

namespace longstride::model {

void SelectionBuilder::Clear() {
  tiles.clear();
  list_begin.clear();
  list_count.clear();
  entries.clear();
  edges.clear();
}

void SelectionBuilder::MakeTiles(std::span<const QueryRun> runs, int64_t boundary) {
  for (const QueryRun& run : runs) {
    int64_t position = run.first_position;
    const int64_t end = position + run.num_rows;
    while (position < end) {
      int64_t tile_end = (position / query_tile + 1) * query_tile;
      if (boundary > 0) tile_end = std::min(tile_end, (position / boundary + 1) * boundary);
      tile_end = std::min(tile_end, end);
      tiles.push_back(
          {.sequence = run.sequence,
           .row_begin = run.row_begin + static_cast<int32_t>(position - run.first_position),
           .num_rows = static_cast<int32_t>(tile_end - position),
           .first_position = static_cast<int32_t>(position)});
      position = tile_end;
    }
  }
}

void SelectionBuilder::MakeLists() {
  list_begin.assign(tiles.size() * static_cast<size_t>(num_list_heads), 0);
  list_count.assign(tiles.size() * static_cast<size_t>(num_list_heads), 0);
}

void SelectionBuilder::SetList(int32_t list_head, int32_t tile, int64_t begin, int64_t count) {
  const size_t at = static_cast<size_t>(list_head) * tiles.size() + static_cast<size_t>(tile);
  LS_CHECK_LT(at, list_begin.size());
  list_begin[at] = begin;
  list_count[at] = static_cast<int32_t>(count);
}

kernels::KvSelection SelectionBuilder::View() const {
  return {.list_heads = list_heads,
          .num_list_heads = num_list_heads,
          .entry_tokens = entry_tokens,
          .query_tile = query_tile,
          .num_tiles = static_cast<int32_t>(tiles.size()),
          .tiles = tiles.data(),
          .list_begin = list_begin.data(),
          .list_count = list_count.data(),
          .entries = entries.data(),
          .num_entries = static_cast<int64_t>(entries.size()),
          .edges = edges.data()};
}

}  // namespace longstride::model

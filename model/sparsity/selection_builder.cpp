#include <algorithm>
#include <bit>

#include "config/base/check.h"
#include "model/sparsity/sparse_pattern.h"

namespace longstride::model {
namespace {

// Padded sizes of short sequences, which would change often.
constexpr int32_t kLeastListBound = 16;
constexpr int64_t kLeastEntries = 64;

}  // namespace

int32_t PaddedListBound(int32_t longest) {
  return static_cast<int32_t>(
      std::bit_ceil(static_cast<uint32_t>(std::max(longest, kLeastListBound))));
}

int64_t PaddedEntries(int64_t entries) {
  return static_cast<int64_t>(
      std::bit_ceil(static_cast<uint64_t>(std::max(entries, kLeastEntries))));
}

void SelectionBuilder::Clear() {
  tiles.clear();
  kv_lens.clear();
  list_begin.clear();
  list_count.clear();
  entries.clear();
  edges.clear();
  max_list_entries = 0;
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
      kv_lens.push_back(run.kv_len);
      position = tile_end;
    }
  }
}

void SelectionBuilder::MakeLists() {
  list_begin.assign(tiles.size() * static_cast<size_t>(num_list_heads), 0);
  list_count.assign(tiles.size() * static_cast<size_t>(num_list_heads), 0);
}

void SelectionBuilder::MakeRowLists(std::span<const QueryRun> runs) {
  entry_tokens = query_tile = 1;
  MakeTiles(runs);
  MakeLists();
  edges.push_back({});
}

void SelectionBuilder::SetList(int32_t list_head, int32_t tile, int64_t begin, int64_t count) {
  const size_t at = static_cast<size_t>(list_head) * tiles.size() + static_cast<size_t>(tile);
  LS_CHECK_LT(at, list_begin.size());
  list_begin[at] = begin;
  list_count[at] = static_cast<int32_t>(count);
}

void SelectionBuilder::Pad(int32_t rows) {
  const auto before = static_cast<ptrdiff_t>(tiles.size());
  const ptrdiff_t more = rows - before;
  LS_CHECK(more >= 0);
  int32_t longest = 0;
  for (const int32_t count : list_count) longest = std::max(longest, count);
  max_list_entries = PaddedListBound(longest);
  for (auto r = static_cast<int32_t>(before); r < rows; ++r) {
    tiles.push_back({.sequence = r, .row_begin = r, .num_rows = 1, .first_position = 0});
  }
  // Behind each list head's tiles, the last first: what is before does not move.
  for (int32_t h = num_list_heads; more > 0 && h > 0; --h) {
    list_begin.insert(list_begin.begin() + h * before, static_cast<size_t>(more), 0);
    list_count.insert(list_count.begin() + h * before, static_cast<size_t>(more), 0);
  }
  entries.resize(static_cast<size_t>(PaddedEntries(std::ssize(entries))), kernels::kNoEntry);
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
          .max_list_entries = max_list_entries,
          .edges = edges.data()};
}

}  // namespace longstride::model

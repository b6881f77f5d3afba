#include "model/ranked_selection.h"

#include <algorithm>
#include <numeric>

namespace longstride::model {

void RankedSelection::Set(const SelectionBuilder& chosen) {
  ranked_ = chosen.tiles;
  tiles_ = chosen.tiles;
  counts_ = chosen.list_count;
  query_tile_ = chosen.query_tile;
  edges_.assign(static_cast<size_t>(num_list_heads_), chosen.edges.front());
  MakeLists();
}

void RankedSelection::SetWanted(const SelectionBuilder& chosen, std::span<const int32_t> wanted) {
  ranked_.clear();
  tiles_.clear();
  counts_.clear();
  std::vector<size_t> places;
  for (size_t t = 0; t < chosen.tiles.size(); ++t) {
    const kernels::QueryTile& tile = chosen.tiles[t];
    const auto begin = std::lower_bound(wanted.begin(), wanted.end(), tile.row_begin);
    const auto end = std::lower_bound(begin, wanted.end(), tile.row_begin + tile.num_rows);
    if (begin == end) continue;
    // A run's wanted rows are its last ones, so they are consecutive here too.
    ranked_.push_back(tile);
    tiles_.push_back({.sequence = tile.sequence,
                      .row_begin = static_cast<int32_t>(begin - wanted.begin()),
                      .num_rows = static_cast<int32_t>(end - begin),
                      .first_position = tile.first_position + *begin - tile.row_begin});
    counts_.push_back(chosen.list_count[t]);
    places.push_back(t);
  }
  query_tile_ = chosen.query_tile;
  edges_.assign(static_cast<size_t>(num_list_heads_), chosen.edges.front());
  MakeLists(chosen.list_count, places);
}

void RankedSelection::Pad(int32_t rows, int32_t longest) {
  const auto chosen = static_cast<int32_t>(counts_.size());
  for (const int32_t count : counts_) longest = std::max(longest, count);
  for (int32_t r = chosen; r < rows; ++r) {
    ranked_.push_back({.sequence = r, .row_begin = r, .num_rows = 1, .first_position = 0});
    counts_.push_back(0);
  }
  tiles_ = ranked_;
  MakeLists();
  max_list_entries_ = PaddedListBound(longest);
  num_entries_ = PaddedEntries(
      chosen > 0 ? num_entries_ : int64_t{num_list_heads_} * rows * max_list_entries_);
}

void RankedSelection::Empty() {
  std::fill(counts_.begin(), counts_.end(), 0);
  std::fill(list_count_.begin(), list_count_.end(), 0);
}

void RankedSelection::MakeLists() {
  std::vector<size_t> places(counts_.size());
  std::iota(places.begin(), places.end(), size_t{0});
  MakeLists(counts_, places);
}

void RankedSelection::MakeLists(std::span<const int32_t> counts, std::span<const size_t> places) {
  max_list_entries_ = 0;
  num_entries_ = 0;
  list_begin_.clear();
  list_count_.clear();
  for (int32_t h = 0; h < num_list_heads_; ++h) {
    size_t next = 0;
    for (size_t t = 0; t < counts.size(); ++t) {
      if (next < places.size() && places[next] == t) {
        list_begin_.push_back(num_entries_);
        list_count_.push_back(counts[t]);
        ++next;
      }
      num_entries_ += counts[t];
    }
  }
}

kernels::SelectPagesParams RankedSelection::ToSelect() const {
  return {.score = ranking_->score,
          .list_heads = ranking_->list_heads,
          .sink_pages = ranking_->sink_pages,
          .recent_pages = ranking_->recent_pages,
          .block_pages = ranking_->block_pages,
          .mass = ranking_->mass,
          .stride = ranking_->stride,
          .segment = ranking_->pooled_rows,
          .vertical_pages = ranking_->vertical_pages,
          .slash_pages = ranking_->slash_pages,
          .divergence = ranking_->divergence,
          .similarity = ranking_->similarity,
          .num_tiles = static_cast<int32_t>(ranked_.size()),
          .tiles = ranked_.data(),
          .counts = counts_.data(),
          .list_begin = list_begin_.data(),
          .num_entries = num_entries_};
}

kernels::SelectTokensParams RankedSelection::ToSelectTokens() const {
  return {.num_tiles = static_cast<int32_t>(ranked_.size()),
          .tiles = ranked_.data(),
          .counts = counts_.data(),
          .list_begin = list_begin_.data(),
          .num_entries = num_entries_};
}

kernels::KvSelection RankedSelection::View(const int32_t* entries) const {
  return {.list_heads = ranking_->list_heads,
          .num_list_heads = num_list_heads_,
          .entry_tokens = by_index() ? 1 : kernels::kPageTokens,
          .query_tile = query_tile_,
          .num_tiles = static_cast<int32_t>(tiles_.size()),
          .tiles = tiles_.data(),
          .list_begin = list_begin_.data(),
          .list_count = list_count_.data(),
          .entries = entries,
          .num_entries = num_entries_,
          .max_list_entries = max_list_entries_,
          .edges = edges_.data(),
          .entries_made = true,
          .entries_padded = !by_index() && !kernels::UsesSummaries(ranking_->score),
          .single_rows_from = ranking_->single_rows_from};
}

}  // namespace longstride::model

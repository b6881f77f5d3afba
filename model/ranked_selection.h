// The selection of a query-dependent pattern for one step: where each list will lie, and what is
// needed to make it. The lists themselves are made in every layer (Backend::SelectPages or
// SelectTokens) and lie in memory of the backend, which the layers share one after the other; a
// layer without an indexer reads those of the layer before it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/op_params.h"
#include "model/sparsity/sparse_pattern.h"

namespace longstride::model {

class RankedSelection {
 public:
  // `ranking` must outlive it.
  RankedSelection(const PageRanking* ranking, int32_t num_list_heads)
      : ranking_(ranking), num_list_heads_(num_list_heads) {}

  // From the tiles and counts that the pattern chose for all rows of a step.
  void Set(const SelectionBuilder& chosen);
  // The same where attention computes only the rows `wanted` (ascending). Lists still follow from
  // all of a tile's queries and lie where Set puts them; those of tiles without such a row are not
  // made.
  void SetWanted(const SelectionBuilder& chosen, std::span<const int32_t> wanted);

  // Brings a step of single generated rows to `rows` tiles, the further ones without lists, and what
  // the views say of sizes to powers of two. Where no tile was chosen, those of lists of `longest`.
  void Pad(int32_t rows, int32_t longest = 0);
  // Makes every list empty, where it is.
  void Empty();

  int32_t num_list_heads() const { return num_list_heads_; }
  // Room of all lists together.
  int64_t num_entries() const { return num_entries_; }

  // Whether lists are of tokens, by an indexer.
  bool by_index() const { return ranking_->by_index; }
  // For the caller to add q (of all the step's rows), cache, page table, scale and entries.
  kernels::SelectPagesParams ToSelect() const;
  // by_index: for the caller to add q and weights (of all the step's rows), cache, page table and
  // entries.
  kernels::SelectTokensParams ToSelectTokens() const;
  // What attention reads once the lists are made in `entries`.
  kernels::KvSelection View(const int32_t* entries) const;

  // Calls fn(vector) for each host array that the two views name.
  template <typename Fn>
  void ForArrays(const Fn& fn) const {
    fn(ranked_);
    fn(counts_);
    fn(list_begin_);
    fn(tiles_);
    fn(list_count_);
    fn(edges_);
  }

 private:
  // Lists for counts_, those of a list head behind each other as if there were all of `counts`, of
  // which counts_[t] is counts[places[t]].
  void MakeLists(std::span<const int32_t> counts, std::span<const size_t> places);
  void MakeLists();

  const PageRanking* ranking_;
  int32_t num_list_heads_;
  int32_t query_tile_ = 128;
  int64_t num_entries_ = 0;
  int32_t max_list_entries_ = 0;  // KvSelection's
  std::vector<kernels::QueryTile> ranked_;  // tiles by the step's rows
  std::vector<kernels::QueryTile> tiles_;   // the same by the rows that attention computes
  std::vector<int32_t> counts_;             // [tiles]
  std::vector<int64_t> list_begin_;         // [list heads, tiles]
  std::vector<int32_t> list_count_;         // [list heads, tiles]
  std::vector<kernels::EdgeRule> edges_;    // [list heads]
};

}  // namespace longstride::model

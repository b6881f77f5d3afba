#include "model/dual_chunk_step.h"

#include <algorithm>

#include "config/base/check.h"

namespace longstride::model {

void DualChunkStep::SetPositions(const StepLayout& layout) {
  positions_.clear();
  for (const int32_t position : layout.positions) {
    positions_.push_back(chunks_.KeyPosition(position));
  }
  for (int part = 1; part < DualChunk::kParts; ++part) {
    std::vector<int32_t>& turns = turns_[static_cast<size_t>(part - 1)];
    turns.clear();
    for (const int32_t i : layout.positions) {
      turns.push_back(chunks_.QueryPosition(i, part) - chunks_.QueryPosition(i, part - 1));
    }
    std::vector<int32_t>& wanted = wanted_turns_[static_cast<size_t>(part - 1)];
    wanted.clear();
    for (const int32_t row : layout.wanted) wanted.push_back(turns[static_cast<size_t>(row)]);
  }
}

void DualChunkStep::Cut(const std::vector<SelectionBuilder>& selections,
                        const std::vector<SelectionBuilder>& wanted) {
  num_parts_ = 1;
  lists_.resize(selections.size());
  wanted_lists_.resize(wanted.size());
  for (size_t p = 0; p < selections.size(); ++p) CutOne(selections[p], &lists_[p]);
  for (size_t p = 0; p < wanted.size(); ++p) CutOne(wanted[p], &wanted_lists_[p]);
}

void DualChunkStep::CutOne(const SelectionBuilder& whole, CutLists* out) {
  const size_t lists = whole.list_begin.size();
  for (auto& begin : out->begin) begin.resize(lists);
  for (auto& count : out->count) count.resize(lists);
  const int64_t stride = chunks_.stride();
  LS_CHECK_EQ(stride % DualChunk::kAlignment, 0);
  const int64_t run_entries = stride / whole.entry_tokens;
  for (size_t at = 0; at < lists; ++at) {
    const kernels::QueryTile& tile = whole.tiles[at % whole.tiles.size()];
    const int64_t run = tile.first_position / stride;
    const auto first = whole.entries.begin() + whole.list_begin[at];
    const auto last = first + whole.list_count[at];
    // Entries ascend: earlier runs, the run before, the query's own.
    const auto before = std::lower_bound(first, last, (run - 1) * run_entries);
    const auto own = std::lower_bound(before, last, run * run_entries);
    const std::array<std::pair<decltype(own), decltype(own)>, DualChunk::kParts> parts = {
        {{own, last}, {before, own}, {first, before}}};
    for (int part = 0; part < DualChunk::kParts; ++part) {
      const auto& [begin, end] = parts[static_cast<size_t>(part)];
      out->begin[static_cast<size_t>(part)][at] = begin - whole.entries.begin();
      out->count[static_cast<size_t>(part)][at] = static_cast<int32_t>(end - begin);
      if (end > begin) num_parts_ = std::max(num_parts_, part + 1);
    }
  }
}

kernels::KvSelection DualChunkStep::View(const SelectionBuilder& whole, size_t pattern, int part,
                                         bool wanted) const {
  const CutLists& lists = (wanted ? wanted_lists_ : lists_)[pattern];
  kernels::KvSelection view = whole.View();
  view.list_begin = lists.begin[static_cast<size_t>(part)].data();
  view.list_count = lists.count[static_cast<size_t>(part)].data();
  return view;
}

}  // namespace longstride::model

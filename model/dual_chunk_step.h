// What dual chunk attention (DualChunk, model_spec.h) adds to a step: the rotary positions of its
// rows, and each selection cut into the three parts whose keys a query meets with different
// rotations. Any selection that follows from positions can be cut: a part is a stretch of every
// list.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/kv_selection.h"
#include "model/model_spec.h"
#include "model/sparsity/sparse_pattern.h"
#include "model/step_layout.h"

namespace longstride::model {

class DualChunkStep {
 public:
  explicit DualChunkStep(const DualChunk& chunks) : chunks_(chunks) {}

  // Positions of the layout's rows and of those wanted, padded or not.
  void SetPositions(const StepLayout& layout);
  // Where keys, and queries among those of their own run, are rotated to: [rows].
  const std::vector<int32_t>& positions() const { return positions_; }
  // By how much queries that stand at part - 1 are rotated on for `part` (1 or 2): [rows], of all
  // rows or of those that are wanted. May be negative.
  const std::vector<int32_t>& turns(int part, bool wanted) const {
    return (wanted ? wanted_turns_ : turns_)[static_cast<size_t>(part - 1)];
  }

  // Cuts the selections of the patterns: of all rows and of the wanted ones. Both must outlive
  // their views. Those of patterns that are not in use may be empty.
  void Cut(const std::vector<SelectionBuilder>& selections,
           const std::vector<SelectionBuilder>& wanted);
  // Parts with keys that some row sees are the first num_parts(), of which there is one at least.
  int num_parts() const { return num_parts_; }
  void UseAllParts() { num_parts_ = DualChunk::kParts; }
  kernels::KvSelection View(const SelectionBuilder& whole, size_t pattern, int part,
                            bool wanted) const;

  // Calls fn with every host array that ops read.
  template <typename Fn>
  void ForArrays(bool all_wanted, const Fn& fn) const {
    fn(positions_);
    for (const auto& turns : turns_) fn(turns);
    for (const CutLists& lists : lists_) lists.ForArrays(fn);
    if (all_wanted) return;
    for (const auto& turns : wanted_turns_) fn(turns);
    for (const CutLists& lists : wanted_lists_) lists.ForArrays(fn);
  }

 private:
  // The lists of one selection: [part][list heads, tiles].
  struct CutLists {
    std::array<std::vector<int64_t>, DualChunk::kParts> begin;
    std::array<std::vector<int32_t>, DualChunk::kParts> count;
    template <typename Fn>
    void ForArrays(const Fn& fn) const {
      for (const auto& values : begin) fn(values);
      for (const auto& values : count) fn(values);
    }
  };
  void CutOne(const SelectionBuilder& whole, CutLists* out);

  DualChunk chunks_;
  std::vector<int32_t> positions_;
  std::array<std::vector<int32_t>, DualChunk::kParts - 1> turns_, wanted_turns_;
  std::vector<CutLists> lists_, wanted_lists_;  // [pattern]
  int num_parts_ = 1;
};

}  // namespace longstride::model

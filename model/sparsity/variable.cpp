// variable: the blocks are cut into windows of the sizes `local_window_blocks`, from position 0, of
// which the last one repeats; a query in block I reads the blocks of its own window up to I, and
// the global blocks up to I: those of `global_block_indices`, each alone, or up to the block before
// its end in `global_block_end_indices`. Inside its own block a query reads up to itself.
//
// Source: DeepSpeed's VariableSparsityConfig, unidirectional, without its random blocks, which it
// draws anew in every process (`bigbird` has random blocks that stay). Its FixedSparsityConfig,
// unidirectional, is `fixed` with local_ctx = num_local_blocks * block, vertsize =
// num_global_blocks and num_verts = num_different_global_patterns, but for a last window shorter
// than num_global_blocks (docs/sparsity.md).
#include <algorithm>

#include "absl/strings/str_join.h"
#include "model/sparsity/block_rows.h"
#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

constexpr int64_t kMaxBlocks = 1 << 20;

class Variable : public BlockRows {
 public:
  Variable(int32_t block, HeadRange heads, std::vector<int64_t> windows,
           std::vector<int32_t> globals)
      : BlockRows(block, heads, false), windows_(std::move(windows)), globals_(std::move(globals)) {
    for (const int64_t window : windows_)
      ends_.push_back((ends_.empty() ? 0 : ends_.back()) + window);
  }

  std::string Describe() const override {
    return StrCat("variable(block=", block(), ",windows=", absl::StrJoin(windows_, "/"),
                  ",globals=", absl::StrJoin(globals_, "/"), ")");
  }

 protected:
  bool Reads(int32_t, int64_t row, int64_t column) const override {
    return column >= WindowBegin(row) ||
           std::binary_search(globals_.begin(), globals_.end(), static_cast<int32_t>(column));
  }
  void AppendRow(int32_t, int64_t row, std::vector<int32_t>* columns) const override {
    const int64_t begin = WindowBegin(row);
    columns->insert(columns->end(), globals_.begin(), globals_.begin() + GlobalsBefore(begin));
    for (int64_t c = begin; c <= row; ++c) columns->push_back(static_cast<int32_t>(c));
  }
  int64_t RowSize(int32_t, int64_t row) const override {
    const int64_t begin = WindowBegin(row);
    return GlobalsBefore(begin) + row + 1 - begin;
  }

 private:
  int64_t WindowBegin(int64_t row) const {
    const int64_t listed = ends_.back();
    if (row >= listed) return listed + (row - listed) / windows_.back() * windows_.back();
    const auto end = std::upper_bound(ends_.begin(), ends_.end(), row);
    return end == ends_.begin() ? 0 : *(end - 1);
  }
  int64_t GlobalsBefore(int64_t column) const {
    return std::lower_bound(globals_.begin(), globals_.end(), column) - globals_.begin();
  }

  std::vector<int64_t> windows_, ends_;  // sizes, and where each ends
  std::vector<int32_t> globals_;         // ascending
};

// A list of integers of [least, kMaxBlocks], or `fallback`.
absl::StatusOr<std::vector<int64_t>> Blocks(const PatternPolicy& policy, const std::string& name,
                                            int64_t least, std::vector<int64_t> fallback) {
  if (!policy.Has(name)) return fallback;
  ASSIGN_OR_RETURN(std::vector<int64_t> values, policy.IntList(name));
  for (const int64_t value : values) {
    if (value < least || value > kMaxBlocks) {
      return policy.Error(
          StrCat("'", name, "' holds ", value, "; allowed are ", least, " to ", kMaxBlocks, "."));
    }
  }
  return values;
}

}  // namespace

PatternOr MakeVariable(const PatternPolicy& policy, const PatternContext& context) {
  constexpr size_t kMaxWindows = 4096;
  RETURN_IF_ERROR(policy.CheckKnown(
      {"block", "local_window_blocks", "global_block_indices", "global_block_end_indices"}));
  ASSIGN_OR_RETURN(const int32_t block, BlockSize(policy, 16));
  ASSIGN_OR_RETURN(std::vector<int64_t> windows, Blocks(policy, "local_window_blocks", 1, {4}));
  ASSIGN_OR_RETURN(const std::vector<int64_t> begins,
                   Blocks(policy, "global_block_indices", 0, {0}));
  ASSIGN_OR_RETURN(std::vector<int64_t> ends, Blocks(policy, "global_block_end_indices", 1, {}));
  if (windows.empty() || windows.size() > kMaxWindows) {
    return policy.Error(StrCat("'local_window_blocks' names ", windows.size(),
                               " windows; give 1 to ", kMaxWindows,
                               ", of which the last repeats."));
  }
  if (!policy.Has("global_block_end_indices")) {
    for (const int64_t begin : begins) ends.push_back(begin + 1);
  }
  if (ends.size() != begins.size()) {
    return policy.Error(StrCat("'global_block_end_indices' names ", ends.size(), " ends of ",
                               begins.size(), " 'global_block_indices'; give one for each."));
  }
  std::vector<int32_t> globals;
  for (size_t i = 0; i < begins.size(); ++i) {
    if (begins[i] >= ends[i] || (i > 0 && begins[i] < ends[i - 1])) {
      return policy.Error(
          StrCat("global blocks ", begins[i], " to ", ends[i] - 1,
                 begins[i] >= ends[i] ? " are none" : " begin before those named before",
                 "; name them in ascending order, each range with its end above its "
                 "beginning."));
    }
    for (int64_t c = begins[i]; c < ends[i]; ++c) globals.push_back(static_cast<int32_t>(c));
  }
  return std::make_unique<Variable>(block, context.heads, std::move(windows), std::move(globals));
}

}  // namespace longstride::model

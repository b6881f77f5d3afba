// strided: a query at i reads the keys j <= i with (i - j) mod stride == 0, and, where `local` is
// set, the last `local` keys too (the query itself counts). Source: Sparse Transformer
// (arXiv 1904.10509), strided attention; `local` merges its first step into the same call.
//
// Runs as token lists. Rows of one residue class read prefixes of one list, shared by all
// sequences, so a step costs O(keys of the longest row) per residue class in use and no position is
// masked.
#include <algorithm>

#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

class Strided : public SparsePattern {
 public:
  Strided(int32_t stride, int32_t local) : stride_(stride), local_(local) {}

  std::string Describe() const override {
    std::string text = StrCat("strided(", stride_, ")");
    if (local_ > 1) StrAppend(&text, "+local(", local_, ")");
    return text;
  }
  Retention retention() const override { return {}; }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    out->MakeRowLists(runs);
    if (local_ > 1) {
      SelectUnited(out);
    } else {
      SelectClasses(out);
    }
  }
  double VisibleKeys(int64_t position) const override {
    const int64_t begin = LocalBegin(position);
    return static_cast<double>(ClassKeysBefore(position, begin) + position + 1 - begin);
  }
  bool Visible(int32_t, int64_t i, int64_t j) const override {
    return j >= 0 && j <= i && ((i - j) % stride_ == 0 || j > i - local_);
  }

 private:
  // First of the keys that the local part reads; the query itself always is one.
  int64_t LocalBegin(int64_t position) const {
    return std::max<int64_t>(0, position - std::max(local_, 1) + 1);
  }
  // Keys below `end` of the residue class of `position` (end <= position + 1).
  int64_t ClassKeysBefore(int64_t position, int64_t end) const {
    const int64_t residue = position % stride_;
    return end <= residue ? 0 : (end - 1 - residue) / stride_ + 1;
  }

  // One list per residue class in use; each row's list is a prefix of it.
  void SelectClasses(SelectionBuilder* out) const {
    std::vector<int64_t>& length = out->scratch;  // [stride]: longest prefix wanted, then its start
    length.resize(static_cast<size_t>(stride_), 0);
    for (const kernels::QueryTile& tile : out->tiles) {
      int64_t& wanted = length[static_cast<size_t>(tile.first_position % stride_)];
      wanted = std::max<int64_t>(wanted, tile.first_position / stride_ + 1);
    }
    // Positive: a length still to be laid out; negative: -1 - start of a list that is there.
    for (size_t t = 0; t < out->tiles.size(); ++t) {
      const int64_t position = out->tiles[t].first_position;
      const int64_t residue = position % stride_;
      int64_t& state = length[static_cast<size_t>(residue)];
      if (state > 0) {
        const auto start = static_cast<int64_t>(out->entries.size());
        for (int64_t k = 0; k < state; ++k) {
          out->entries.push_back(static_cast<int32_t>(residue + k * stride_));
        }
        state = -1 - start;
      }
      out->SetList(0, static_cast<int32_t>(t), -1 - state, position / stride_ + 1);
    }
    for (const kernels::QueryTile& tile : out->tiles) {
      length[static_cast<size_t>(tile.first_position % stride_)] = 0;
    }
  }

  // A list per row: its residue class below the local part, then the local part.
  void SelectUnited(SelectionBuilder* out) const {
    for (size_t t = 0; t < out->tiles.size(); ++t) {
      const int64_t position = out->tiles[t].first_position;
      const int64_t begin = LocalBegin(position);
      const int64_t far = ClassKeysBefore(position, begin);
      const int64_t near = position + 1 - begin;
      const size_t start = out->entries.size();
      out->entries.resize(start + static_cast<size_t>(far + near));
      int32_t* entry = out->entries.data() + start;
      int64_t key = position % stride_;
      for (int64_t k = 0; k < far; ++k, key += stride_) *entry++ = static_cast<int32_t>(key);
      for (int64_t k = begin; k <= position; ++k) *entry++ = static_cast<int32_t>(k);
      out->SetList(0, static_cast<int32_t>(t), static_cast<int64_t>(start), far + near);
    }
  }

  int32_t stride_;
  int32_t local_;
};

}  // namespace

PatternOr MakeStrided(const PatternPolicy& policy, const PatternContext&) {
  constexpr int64_t kMaxStride = 1 << 20;
  RETURN_IF_ERROR(policy.CheckKnown({"stride", "local"}));
  ASSIGN_OR_RETURN(const int64_t stride, policy.RequiredInt("stride", 2, kMaxStride));
  ASSIGN_OR_RETURN(const int64_t local, policy.Int("local", 0, 0, kMaxPatternTokens));
  return std::make_unique<Strided>(static_cast<int32_t>(stride), static_cast<int32_t>(local));
}

}  // namespace longstride::model

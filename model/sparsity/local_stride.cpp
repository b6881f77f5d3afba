// local_stride: blocks of queries read the last `local_blocks` (their own counts) and, of the
// earlier ones, every `vert_stride`-th; which of them moves from head to head, so that the heads
// together read everything. Source: the block-sparse attention of Phi-3-small (arXiv 2404.14219,
// section 2), as in its released code: with step = max(1, vert_stride / query heads), head h reads
// the earlier block J where (J + h * step + 1) mod vert_stride == 0.
#include <algorithm>

#include "model/sparsity/block_rows.h"
#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

class LocalStride : public BlockRows {
 public:
  LocalStride(int32_t block, int32_t local, int32_t stride, int32_t step, HeadRange heads)
      : BlockRows(block, heads, step > 0), local_(local), stride_(stride), step_(step) {}

  std::string Describe() const override {
    return StrCat("local_stride(block=", block(), ",local=", local_, ",stride=", stride_,
                  ",step=", step_, ")", HeadsText());
  }

 protected:
  bool Reads(int32_t head, int64_t row, int64_t column) const override {
    return row - column < local_ || column % stride_ == First(head);
  }
  void AppendRow(int32_t head, int64_t row, std::vector<int32_t>* columns) const override {
    const int64_t near = NearBegin(row);
    for (int64_t c = First(head); c < near; c += stride_) {
      columns->push_back(static_cast<int32_t>(c));
    }
    for (int64_t c = near; c <= row; ++c) columns->push_back(static_cast<int32_t>(c));
  }
  int64_t RowSize(int32_t head, int64_t row) const override {
    const int64_t near = NearBegin(row), first = First(head);
    return row + 1 - near + (near > first ? (near - first - 1) / stride_ + 1 : 0);
  }

 private:
  int64_t NearBegin(int64_t row) const { return std::max<int64_t>(0, row - local_ + 1); }
  // The first column of the stride.
  int64_t First(int32_t head) const { return stride_ - 1 - (int64_t{head} * step_) % stride_; }

  int32_t local_, stride_;
  int32_t step_;  // 0: all heads read the same
};

}  // namespace

PatternOr MakeLocalStride(const PatternPolicy& policy, const PatternContext& context) {
  constexpr int64_t kMaxBlocks = 1 << 20;
  RETURN_IF_ERROR(policy.CheckKnown({"block", "local_blocks", "vert_stride", "same_for_heads"}));
  ASSIGN_OR_RETURN(const int32_t block, BlockSize(policy, 64));
  ASSIGN_OR_RETURN(const int64_t local, policy.Int("local_blocks", 16, 1, kMaxBlocks));
  ASSIGN_OR_RETURN(const int64_t stride, policy.Int("vert_stride", 8, 1, kMaxBlocks));
  ASSIGN_OR_RETURN(const bool same, policy.Bool("same_for_heads", false));
  const int64_t step =
      same ? 0 : std::max<int64_t>(1, stride / std::max(1, context.num_query_heads));
  return std::make_unique<LocalStride>(block, static_cast<int32_t>(local),
                                       static_cast<int32_t>(stride), static_cast<int32_t>(step),
                                       context.heads);
}

}  // namespace longstride::model

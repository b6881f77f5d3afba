#include "model/sparsity/block_rows.h"

#include <bit>

namespace longstride::model {

void BlockRows::Select(std::span<const QueryRun> runs, SelectionBuilder* out) const {
  out->list_heads = per_head_ ? kernels::ListHeads::kPerQHead : kernels::ListHeads::kShared;
  out->num_list_heads = num_lists();
  out->entry_tokens = block_;
  out->query_tile = block_;
  out->MakeTiles(runs);
  out->MakeLists();
  out->edges.assign(static_cast<size_t>(num_lists()), {});
  for (int32_t h = 0; h < num_lists(); ++h) {
    for (size_t t = 0; t < out->tiles.size(); ++t) {
      const auto begin = static_cast<int64_t>(out->entries.size());
      AppendRow(heads_.first + h, out->tiles[t].first_position / block_, &out->entries);
      out->SetList(h, static_cast<int32_t>(t), begin,
                   static_cast<int64_t>(out->entries.size()) - begin);
    }
  }
}

double BlockRows::VisibleKeys(int64_t position) const {
  int64_t blocks = 0;
  for (int32_t h = 0; h < num_lists(); ++h) {
    blocks += RowSize(heads_.first + h, position / block_);
  }
  const double earlier = static_cast<double>(blocks) / num_lists() - 1;
  return earlier * block_ + static_cast<double>(position % block_ + 1);
}

bool BlockRows::Visible(int32_t head, int64_t i, int64_t j) const {
  return j >= 0 && j <= i && Reads(per_head_ ? head : heads_.first, i / block_, j / block_);
}

std::string BlockRows::HeadsText() const {
  if (!per_head_) return "";
  return StrCat(" heads ", heads_.first, "-", heads_.first + heads_.count - 1);
}

absl::StatusOr<int32_t> RequiredBlockSize(const PatternPolicy& policy) {
  ASSIGN_OR_RETURN(const int64_t block, policy.RequiredInt("block", 16, 128));
  if (!std::has_single_bit(static_cast<uint64_t>(block))) {
    return policy.Error(StrCat("'block' is ", block, "; allowed are 16, 32, 64 and 128."));
  }
  return static_cast<int32_t>(block);
}

absl::StatusOr<int32_t> BlockSize(const PatternPolicy& policy, int64_t fallback) {
  if (!policy.Has("block")) return static_cast<int32_t>(fallback);
  return RequiredBlockSize(policy);
}

}  // namespace longstride::model

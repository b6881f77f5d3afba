// block_sparse: the operator's own block mask. The mask has one row per block of `block` queries
// and names the blocks of keys that these queries read; inside its own block a query reads up to
// itself. `rows` is one mask for all heads, `head_rows` one per query head of the layer.
#include <algorithm>
#include <bit>

#include "model/sparsity/hash.h"
#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

// One mask: row r's columns are columns[begin[r], begin[r + 1]), ascending.
struct BlockMask {
  std::vector<int64_t> begin;
  std::vector<int32_t> columns;

  std::span<const int32_t> Row(int64_t row) const {
    const auto r = static_cast<size_t>(row);
    return {columns.data() + begin[r], static_cast<size_t>(begin[r + 1] - begin[r])};
  }
};

class BlockSparse : public SparsePattern {
 public:
  BlockSparse(int32_t block, HeadRange heads, std::vector<BlockMask> masks)
      : block_(block), heads_(heads), masks_(std::move(masks)) {
    std::string bytes;
    for (const BlockMask& mask : masks_) {
      bytes.append(reinterpret_cast<const char*>(mask.begin.data()),
                   mask.begin.size() * sizeof(mask.begin[0]));
      bytes.append(reinterpret_cast<const char*>(mask.columns.data()),
                   mask.columns.size() * sizeof(mask.columns[0]));
    }
    mask_digest_ = Digest128(bytes);
  }

  std::string Describe() const override {
    std::string text = StrCat("block_sparse(block=", block_, ",mask=", mask_digest_, ")");
    if (masks_.size() > 1) {
      StrAppend(&text, " heads ", heads_.first, "-", heads_.first + heads_.count - 1);
    }
    return text;
  }
  // Keeps all pages: a mask may come back to any block.
  Retention retention() const override { return {}; }

  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    const auto num_lists = static_cast<int32_t>(masks_.size());
    out->list_heads = num_lists > 1 ? kernels::ListHeads::kPerQHead : kernels::ListHeads::kShared;
    out->num_list_heads = num_lists;
    out->entry_tokens = block_;
    out->query_tile = block_;
    out->MakeTiles(runs);
    out->MakeLists();
    out->edges.assign(static_cast<size_t>(num_lists), {});
    for (int32_t h = 0; h < num_lists; ++h) {
      for (size_t t = 0; t < out->tiles.size(); ++t) {
        const auto row = masks_[static_cast<size_t>(h)].Row(out->tiles[t].first_position / block_);
        out->SetList(h, static_cast<int32_t>(t), static_cast<int64_t>(out->entries.size()),
                     static_cast<int64_t>(row.size()));
        out->entries.insert(out->entries.end(), row.begin(), row.end());
      }
    }
  }
  double VisibleKeys(int64_t position) const override {
    int64_t blocks = 0;
    for (const BlockMask& mask : masks_) {
      blocks += static_cast<int64_t>(mask.Row(position / block_).size());
    }
    const double earlier = static_cast<double>(blocks) / static_cast<double>(masks_.size()) - 1;
    return earlier * block_ + static_cast<double>(position % block_ + 1);
  }
  bool Visible(int32_t head, int64_t i, int64_t j) const override {
    if (j < 0 || j > i) return false;
    const auto mask = masks_.size() > 1 ? static_cast<size_t>(head - heads_.first) : 0;
    const auto row = masks_[mask].Row(i / block_);
    return std::binary_search(row.begin(), row.end(), static_cast<int32_t>(j / block_));
  }

 private:
  int32_t block_;
  HeadRange heads_;
  std::vector<BlockMask> masks_;  // one, or one per head of heads_
  std::string mask_digest_;
};

absl::StatusOr<BlockMask> ToMask(const PatternPolicy& policy, const std::string& what,
                                 const IntRows& rows, int64_t rows_needed) {
  if (static_cast<int64_t>(rows.size()) < rows_needed) {
    return policy.Error(StrCat(what, " has ", rows.size(), " rows; the served context needs ",
                               rows_needed,
                               ", one per block. Give more rows or lower the context."));
  }
  BlockMask mask;
  mask.begin.push_back(0);
  for (int64_t r = 0; r < rows_needed; ++r) {
    std::vector<int64_t> row = rows[static_cast<size_t>(r)];
    std::sort(row.begin(), row.end());
    if (std::adjacent_find(row.begin(), row.end()) != row.end()) {
      return policy.Error(StrCat(what, " names a column twice in row ", r, "; keep one."));
    }
    if (!row.empty() && (row.front() < 0 || row.back() > r)) {
      const int64_t bad = row.front() < 0 ? row.front() : row.back();
      return policy.Error(StrCat(what, " names column ", bad, " in row ", r, "; allowed are 0 to ",
                                 r, " (a query reads no later block)."));
    }
    if (row.empty() || row.back() != r) {
      return policy.Error(StrCat(what, " lacks column ", r, " in row ", r,
                                 "; every block must read itself, or its queries see nothing."));
    }
    for (const int64_t column : row) mask.columns.push_back(static_cast<int32_t>(column));
    mask.begin.push_back(static_cast<int64_t>(mask.columns.size()));
  }
  return mask;
}

}  // namespace

PatternOr MakeBlockSparse(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({"block", "rows", "head_rows"}));
  ASSIGN_OR_RETURN(const int64_t block, policy.RequiredInt("block", 16, 128));
  if (!std::has_single_bit(static_cast<uint64_t>(block))) {
    return policy.Error(StrCat("'block' is ", block, "; allowed are 16, 32, 64 and 128."));
  }
  if (policy.Has("rows") == policy.Has("head_rows")) {
    return policy.Error("pattern 'block_sparse' needs one of 'rows' (all heads) and 'head_rows'.");
  }
  const int64_t rows_needed = (context.max_positions + block - 1) / block;
  std::vector<BlockMask> masks;
  if (policy.Has("rows")) {
    ASSIGN_OR_RETURN(const IntRows rows, policy.Rows("rows"));
    ASSIGN_OR_RETURN(BlockMask mask, ToMask(policy, "'rows'", rows, rows_needed));
    masks.push_back(std::move(mask));
  } else {
    ASSIGN_OR_RETURN(const std::vector<IntRows> heads, policy.RowsPerHead("head_rows"));
    if (static_cast<int32_t>(heads.size()) != context.num_query_heads) {
      return policy.Error(StrCat("'head_rows' has ", heads.size(), " masks; the layer has ",
                                 context.num_query_heads, " query heads and needs one for each."));
    }
    for (int32_t h = context.heads.first; h < context.heads.first + context.heads.count; ++h) {
      ASSIGN_OR_RETURN(BlockMask mask, ToMask(policy, StrCat("'head_rows', head ", h, ","),
                                              heads[static_cast<size_t>(h)], rows_needed));
      masks.push_back(std::move(mask));
    }
  }
  return std::make_unique<BlockSparse>(static_cast<int32_t>(block), context.heads,
                                       std::move(masks));
}

}  // namespace longstride::model

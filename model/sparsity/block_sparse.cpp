// block_sparse: the operator's own block mask. The mask has one row per block of `block` queries
// and names the blocks of keys that these queries read; inside its own block a query reads up to
// itself. `rows` is one mask for all heads, `head_rows` one per query head of the layer.
#include <algorithm>

#include "model/sparsity/block_rows.h"
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

class BlockSparse : public BlockRows {
 public:
  BlockSparse(int32_t block, HeadRange heads, std::vector<BlockMask> masks)
      : BlockRows(block, heads, masks.size() > 1), heads_(heads), masks_(std::move(masks)) {
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
    return StrCat("block_sparse(block=", block(), ",mask=", mask_digest_, ")", HeadsText());
  }

 protected:
  bool Reads(int32_t head, int64_t row, int64_t column) const override {
    const auto columns = Row(head, row);
    return std::binary_search(columns.begin(), columns.end(), static_cast<int32_t>(column));
  }
  void AppendRow(int32_t head, int64_t row, std::vector<int32_t>* columns) const override {
    const auto own = Row(head, row);
    columns->insert(columns->end(), own.begin(), own.end());
  }
  int64_t RowSize(int32_t head, int64_t row) const override {
    return static_cast<int64_t>(Row(head, row).size());
  }

 private:
  std::span<const int32_t> Row(int32_t head, int64_t row) const {
    return masks_[static_cast<size_t>(masks_.size() > 1 ? head - heads_.first : 0)].Row(row);
  }

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
  ASSIGN_OR_RETURN(const int32_t block, RequiredBlockSize(policy));
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
  return std::make_unique<BlockSparse>(block, context.heads, std::move(masks));
}

}  // namespace longstride::model

// Patterns over fixed blocks: the queries of a block read whole blocks of keys, and inside their
// own block up to themselves. A pattern says which blocks; the lists, the definition and the counts
// follow.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/sparsity/sparse_pattern.h"

namespace longstride::model {

class BlockRows : public SparsePattern {
 public:
  // block: 16, 32, 64 or 128 positions. per_head: whether the heads of `heads` differ.
  BlockRows(int32_t block, HeadRange heads, bool per_head)
      : block_(block), heads_(heads), per_head_(per_head) {}

  // Keeps all pages: a later row may come back to any block.
  Retention retention() const override { return {}; }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override;
  double VisibleKeys(int64_t position) const override;
  bool Visible(int32_t head, int64_t i, int64_t j) const override;

 protected:
  // Whether block `row` of queries reads block `column` of keys (column <= row; row reads itself).
  // head: absolute; the first of the range where heads do not differ.
  virtual bool Reads(int32_t head, int64_t row, int64_t column) const = 0;
  // Appends all columns that Reads, ascending.
  virtual void AppendRow(int32_t head, int64_t row, std::vector<int32_t>* columns) const = 0;
  // How many those are.
  virtual int64_t RowSize(int32_t head, int64_t row) const = 0;

  int32_t block() const { return block_; }
  // End of Describe: " heads 0-3", or nothing where heads do not differ.
  std::string HeadsText() const;

 private:
  int32_t num_lists() const { return per_head_ ? heads_.count : 1; }

  int32_t block_;
  HeadRange heads_;
  bool per_head_;
};

// 'block' of a policy. INVALID_ARGUMENT where it is none of 16, 32, 64 and 128.
absl::StatusOr<int32_t> BlockSize(const PatternPolicy& policy, int64_t fallback);
absl::StatusOr<int32_t> RequiredBlockSize(const PatternPolicy& policy);

}  // namespace longstride::model

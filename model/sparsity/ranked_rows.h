// What the patterns share whose rows choose entries (pages, or tokens by an indexer) one by one, in
// prompts as in decoding, once they see more than they may read; before that a row reads all keys
// up to its own.
#pragma once

#include <string>

#include "model/sparsity/sparse_pattern.h"

namespace longstride::model {

class RankedRows : public SparsePattern {
 public:
  Retention retention() const override { return {}; }
  const PageRanking* ranking() const override { return &ranking_; }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override;
  double VisibleKeys(int64_t position) const override;
  double GeneratedVisibleKeys(int64_t position) const override;
  bool Visible(int32_t, int64_t i, int64_t j) const override { return j >= 0 && j <= i; }

 protected:
  // `ranking`'s single_rows_from is the first row that chooses. `generated_choose` false: generated
  // rows read everything.
  RankedRows(const PageRanking& ranking, bool generated_choose);

 private:
  // Entries that the row at `position` reads, its own page among them; it is one that chooses.
  virtual int64_t EntriesOf(int64_t position) const = 0;
  int64_t entry_tokens() const { return ranking_.by_index ? 1 : kernels::kPageTokens; }
  bool Chooses(int64_t position, NumericsClass numerics) const;

  PageRanking ranking_;
  bool generated_choose_;
};

}  // namespace longstride::model

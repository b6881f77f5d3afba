// The patterns whose prompts choose by shares of attention (kernels::PageScore without summaries):
// how many pages a list takes follows from the text, and generated tokens read everything before
// them.
#pragma once

#include <string>
#include <utility>

#include "model/sparsity/sparse_pattern.h"

namespace longstride::model {

class SharePattern : public SparsePattern {
 public:
  // `text`: what is special about the pattern's function, "xattention(0.9,stride=16".
  SharePattern(std::string text, const PageRanking& ranking)
      : text_(std::move(text)), ranking_(ranking) {}

  static constexpr int32_t kTileRows = 128;
  static constexpr int64_t kMaxForcedPages = 1 << 16;

  // Reads "sink_pages" = 1, "recent_pages" = 1 and "per_query_head" = true.
  static absl::Status ReadLists(const PatternPolicy& policy, PageRanking* ranking);

  std::string Describe() const override;
  Retention retention() const override { return {}; }
  const PageRanking* ranking() const override { return &ranking_; }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override;
  // The most: what is read is known when it has been.
  double VisibleKeys(int64_t position) const override { return static_cast<double>(position + 1); }
  bool Visible(int32_t, int64_t i, int64_t j) const override { return j >= 0 && j <= i; }

 private:
  std::string text_;
  PageRanking ranking_;
};

// A share as it is described and computed with: to millionths.
float RoundedShare(double share);

}  // namespace longstride::model

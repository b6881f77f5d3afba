// dilated: a query at i reads `window` keys `dilation` apart, i, i - dilation, i - 2 dilation, …,
// and the first `global_tokens` of the sequence. Source: Longformer (arXiv 2004.05150), dilated
// sliding windows and global attention, in causal form: global tokens are read by all later ones
// but read nothing ahead. Its checkpoints' own projections for global tokens are not part of a
// pattern.
//
// Runs as token lists, one per row, ascending: globals below the window's first key, then the
// window's keys with the globals between them.
#include <algorithm>

#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

class Dilated : public SparsePattern {
 public:
  Dilated(int32_t window, int32_t dilation, int32_t global_tokens)
      : window_(window), dilation_(dilation), global_tokens_(global_tokens) {}

  std::string Describe() const override {
    std::string text = StrCat("dilated(", window_, "x", dilation_, ")");
    if (global_tokens_ > 0) StrAppend(&text, "+globals(", global_tokens_, ")");
    return text;
  }
  Retention retention() const override {
    return {.window = static_cast<int32_t>(int64_t{window_ - 1} * dilation_ + 1),
            .sink_tokens = global_tokens_,
            .chunk = 0};
  }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    out->MakeRowLists(runs);
    for (size_t t = 0; t < out->tiles.size(); ++t) {
      const int64_t position = out->tiles[t].first_position;
      const auto begin = static_cast<int64_t>(out->entries.size());
      for (int64_t j = 0; j < Globals(position); ++j) {
        out->entries.push_back(static_cast<int32_t>(j));
      }
      for (int64_t j = FirstAfterGlobals(position); j <= position; j += dilation_) {
        out->entries.push_back(static_cast<int32_t>(j));
      }
      out->SetList(0, static_cast<int32_t>(t), begin,
                   static_cast<int64_t>(out->entries.size()) - begin);
    }
  }
  double VisibleKeys(int64_t position) const override {
    const int64_t first = FirstAfterGlobals(position);
    const int64_t far = first > position ? 0 : (position - first) / dilation_ + 1;
    return static_cast<double>(Globals(position) + far);
  }
  bool Visible(int32_t, int64_t i, int64_t j) const override {
    if (j < 0 || j > i) return false;
    return j < global_tokens_ || ((i - j) % dilation_ == 0 && (i - j) / dilation_ < window_);
  }

 private:
  int64_t Globals(int64_t position) const {
    return std::min<int64_t>(global_tokens_, position + 1);
  }
  // The window's first key that is no global token; beyond `position` where there is none.
  int64_t FirstAfterGlobals(int64_t position) const {
    const int64_t least =
        std::max<int64_t>(global_tokens_, position - int64_t{window_ - 1} * dilation_);
    // The smallest j >= least of the position's residue class.
    return least + ((position - least) % dilation_ + dilation_) % dilation_;
  }

  int32_t window_, dilation_, global_tokens_;
};

}  // namespace

PatternOr MakeDilated(const PatternPolicy& policy, const PatternContext&) {
  RETURN_IF_ERROR(policy.CheckKnown({"window", "dilation", "global_tokens"}));
  ASSIGN_OR_RETURN(const int64_t window, policy.RequiredInt("window", 1, kMaxPatternTokens));
  ASSIGN_OR_RETURN(const int64_t dilation, policy.Int("dilation", 2, 1, 1 << 20));
  ASSIGN_OR_RETURN(const int64_t globals, policy.Int("global_tokens", 0, 0, kMaxPatternTokens));
  if ((window - 1) * dilation >= kMaxPatternTokens) {
    return policy.Error(StrCat("'window' ", window, " times 'dilation' ", dilation,
                               " reaches further back than ", kMaxPatternTokens,
                               " tokens; lower one of them."));
  }
  return std::make_unique<Dilated>(static_cast<int32_t>(window), static_cast<int32_t>(dilation),
                                   static_cast<int32_t>(globals));
}

}  // namespace longstride::model

// window: a query at i reads the keys j with i - window < j <= i (the query itself counts, as in
// Mistral and Gemma) and the first `sink_tokens` of the sequence. In an encoder it reads the keys j
// with |i - j| < window.
//
// With sinks this is the streaming attention of DuoAttention (arXiv 2410.10819): keys keep the
// rotary positions that they were computed with, so distances are the true ones. StreamingLLM
// (arXiv 2309.17453) re-numbers positions inside its cache at every step; that is another function,
// and not this pattern.
#include <algorithm>

#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

KeyRange InWindow(const kernels::QueryTile& tile, int64_t, int64_t window) {
  return {std::max<int64_t>(0, tile.first_position - window + 1),
          int64_t{tile.first_position} + tile.num_rows};
}
KeyRange AroundTile(const kernels::QueryTile& tile, int64_t kv_len, int64_t window) {
  KeyRange keys = InWindow(tile, kv_len, window);
  keys.end = std::min(kv_len, keys.end + window - 1);
  return keys;
}

class Window : public SparsePattern {
 public:
  Window(int32_t window, int32_t sink_tokens, bool causal)
      : window_(window), sink_tokens_(sink_tokens), causal_(causal) {}

  std::string Describe() const override {
    std::string text = StrCat(causal_ ? "window(" : "bidirectional_window(", window_, ")");
    if (sink_tokens_ > 0) StrAppend(&text, "+sinks(", sink_tokens_, ")");
    return text;
  }
  Retention retention() const override {
    if (!causal_) return {};  // no later query comes
    return {.window = window_, .sink_tokens = sink_tokens_, .chunk = 0};
  }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    // A tile's list is the union over its rows, up to query_tile - 1 keys more than one row's
    // window: small windows take small tiles, so that few of the listed keys are masked again.
    out->query_tile = window_ >= kWideTileWindow ? 128 : 64;
    out->MakeTiles(runs);
    out->MakeLists();
    SelectPageRanges(sink_tokens_, causal_ ? InWindow : AroundTile, window_, out);
    out->edges.push_back(
        {.causal = causal_, .window = window_, .sink_tokens = sink_tokens_, .chunk = 0});
  }
  bool edges_alone() const override { return true; }
  double VisibleKeys(int64_t position) const override {
    if (!causal_) {
      return static_cast<double>(std::min<int64_t>(position + 1, window_) +
                                 std::min<int64_t>(position, window_ - 1));
    }
    const int64_t begin = std::max<int64_t>(0, position - window_ + 1);
    return static_cast<double>(position + 1 - begin + std::min<int64_t>(begin, sink_tokens_));
  }
  bool Visible(int32_t, int64_t i, int64_t j) const override {
    if (!causal_) return j >= 0 && j > i - window_ && j < i + window_;
    return j >= 0 && j <= i && (j > i - window_ || j < sink_tokens_);
  }

 private:
  static constexpr int32_t kWideTileWindow = 448;
  int32_t window_;
  int32_t sink_tokens_;  // 0 unless causal
  bool causal_;
};

}  // namespace

std::unique_ptr<SparsePattern> NewWindow(int32_t window, int32_t sink_tokens, bool causal) {
  return std::make_unique<Window>(window, sink_tokens, causal);
}

PatternOr MakeWindow(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({"window", "sink_tokens"}));
  ASSIGN_OR_RETURN(const int64_t window, policy.RequiredInt("window", 1, kMaxPatternTokens));
  ASSIGN_OR_RETURN(const int64_t sinks, policy.Int("sink_tokens", 0, 0, kMaxPatternTokens));
  if (!context.causal && sinks > 0) {
    return policy.Error("sink_tokens keep what a causal window leaves behind; an encoder's has none.");
  }
  return NewWindow(static_cast<int32_t>(window), static_cast<int32_t>(sinks), context.causal);
}

}  // namespace longstride::model

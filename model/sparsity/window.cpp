// window: a query at i reads the keys j with i - window < j <= i (the query itself counts, as in
// Mistral and Gemma) and the first `sink_tokens` of the sequence. In an encoder it reads the keys j
// with |i - j| < window.
//
// With sinks this is the streaming attention of DuoAttention (arXiv 2410.10819): keys keep the
// rotary positions that they were computed with, so distances are the true ones. StreamingLLM
// (arXiv 2309.17453) re-numbers positions inside its cache at every step; that is another function,
// and not this pattern.
//
// In an encoder the first `global_tokens` stand where sinks do, and read everything themselves.
// Source: Longformer (arXiv 2004.05150).
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
    if (sink_tokens_ > 0) {
      StrAppend(&text, causal_ ? "+sinks(" : "+globals(", sink_tokens_, ")");
    }
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
    if (causal_ || sink_tokens_ == 0) {
      out->MakeTiles(runs);
    } else {
      MakeTilesApart(runs, out);
    }
    out->MakeLists();
    SelectPageRanges(sink_tokens_, causal_ ? InWindow : AroundTile, window_, out);
    for (size_t t = 0; !causal_ && t < out->tiles.size(); ++t) {
      if (out->tiles[t].first_position >= sink_tokens_) continue;
      ReadAll(static_cast<int32_t>(t), out);
    }
    out->edges.push_back(
        {.causal = causal_, .window = window_, .sink_tokens = sink_tokens_, .chunk = 0});
  }
  bool edges_alone() const override { return true; }
  double VisibleKeys(int64_t position) const override {
    if (!causal_) {
      // A global token outside the window is read, and reads: both count where the other one
      // stands.
      const int64_t outside = std::max<int64_t>(0, position + 1 - window_);
      return static_cast<double>(std::min<int64_t>(position + 1, window_) +
                                 std::min<int64_t>(position, window_ - 1) +
                                 2 * std::min<int64_t>(outside, sink_tokens_));
    }
    const int64_t begin = std::max<int64_t>(0, position - window_ + 1);
    return static_cast<double>(position + 1 - begin + std::min<int64_t>(begin, sink_tokens_));
  }
  bool Visible(int32_t, int64_t i, int64_t j) const override {
    if (!causal_) {
      return j >= 0 && ((j > i - window_ && j < i + window_) || std::min(i, j) < sink_tokens_);
    }
    return j >= 0 && j <= i && (j > i - window_ || j < sink_tokens_);
  }

 private:
  static constexpr int32_t kWideTileWindow = 448;

  // No tile has global tokens and others: those would walk the whole text.
  void MakeTilesApart(std::span<const QueryRun> runs, SelectionBuilder* out) const {
    for (QueryRun run : runs) {
      const int64_t globals =
          std::clamp<int64_t>(sink_tokens_ - run.first_position, 0, run.num_rows);
      QueryRun first = run;
      first.num_rows = static_cast<int32_t>(globals);
      run.row_begin += first.num_rows;
      run.num_rows -= first.num_rows;
      run.first_position += globals;
      out->MakeTiles({&first, 1});
      out->MakeTiles({&run, 1});
    }
  }
  static void ReadAll(int32_t tile, SelectionBuilder* out) {
    const int64_t entry = out->entry_tokens;
    const int64_t count = (out->kv_lens[static_cast<size_t>(tile)] + entry - 1) / entry;
    const auto begin = std::ssize(out->entries);
    for (int64_t e = 0; e < count; ++e) out->entries.push_back(static_cast<int32_t>(e));
    out->SetList(0, tile, begin, count);
  }

  int32_t window_;
  int32_t sink_tokens_;  // global tokens, unless causal
  bool causal_;
};

}  // namespace

std::unique_ptr<SparsePattern> NewWindow(int32_t window, int32_t sink_tokens, bool causal) {
  return std::make_unique<Window>(window, sink_tokens, causal);
}

PatternOr MakeWindow(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({"window", "sink_tokens", "global_tokens"}));
  ASSIGN_OR_RETURN(const int64_t window, policy.RequiredInt("window", 1, kMaxPatternTokens));
  ASSIGN_OR_RETURN(const int64_t sinks, policy.Int("sink_tokens", 0, 0, kMaxPatternTokens));
  if (!context.causal && sinks > 0) {
    return policy.Error("sink_tokens keep what a causal window leaves behind; an encoder's has none.");
  }
  ASSIGN_OR_RETURN(const int64_t globals, policy.Int("global_tokens", 0, 0, kMaxPatternTokens));
  if (context.causal && globals > 0) {
    return policy.Error("global_tokens read ahead, which only an encoder's do; name sink_tokens.");
  }
  return NewWindow(static_cast<int32_t>(window), static_cast<int32_t>(sinks + globals),
                   context.causal);
}

}  // namespace longstride::model

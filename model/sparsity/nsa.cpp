// nsa: three attentions of a layer, each a softmax of its own, summed by the checkpoint's gates
// (AttentionSpec::gates):
// - compressed: a query reads the mean key and the mean value of every block of 64 whose keys it
//   all sees, or nothing where there is none;
// - selected: its own block up to itself, and the blocks to whose means the query heads of its KV
//   head pay most attention in the compressed part (kernels::PageScore::kMeanShares),
//   `block_counts` in all;
// - sliding: the last `window_size` keys.
// Source: NSA (arXiv 2502.11089) as github.com/fla-org/native-sparse-attention trains it. The paper
// compresses by a learned network over overlapping blocks and always selects the first block and
// two local ones; that is another function, of which no weights are public.
//
// Where this is another function than that code: means are rounded to the cache's type.
#include <algorithm>
#include <array>
#include <numeric>

#include "model/sparsity/patterns.h"
#include "model/sparsity/ranked_rows.h"

namespace longstride::model {
namespace {

using kernels::kPageTokens;

constexpr int64_t kMaxBlocks = 1 << 20;

// Blocks whose keys the query at `position` all sees.
int64_t WholeBlocks(int64_t position) { return (position + 1) / kPageTokens; }

class CompressedBlocks : public SparsePattern {
 public:
  std::string Describe() const override { return "nsa_compressed"; }
  Retention retention() const override { return {}; }
  bool reads_means() const override { return true; }
  double VisibleKeys(int64_t position) const override {
    return static_cast<double>(WholeBlocks(position));
  }
  bool Visible(int32_t, int64_t i, int64_t j) const override {
    return j >= 0 && j / kPageTokens < WholeBlocks(i);
  }

  // Rows read prefixes of one list.
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    out->MakeRowLists(runs);
    int64_t most = 0;
    for (size_t t = 0; t < out->tiles.size(); ++t) {
      const int64_t count = WholeBlocks(out->tiles[t].first_position);
      out->list_begin[t] = 0;
      out->list_count[t] = static_cast<int32_t>(count);
      most = std::max(most, count);
    }
    out->entries.resize(static_cast<size_t>(most));
    std::iota(out->entries.begin(), out->entries.end(), 0);
    out->max_list_entries = static_cast<int32_t>(most);
  }
};

class SelectedBlocks : public RankedRows {
 public:
  explicit SelectedBlocks(int32_t blocks)
      : RankedRows({.score = kernels::PageScore::kMeanShares,
                    .list_heads = kernels::ListHeads::kPerKvHead,
                    .single_rows_from = blocks * kPageTokens},
                   /*generated_choose=*/true),
        blocks_(blocks) {}

  std::string Describe() const override { return StrCat("nsa_selected(", blocks_, ")"); }

 private:
  int64_t EntriesOf(int64_t) const override { return blocks_; }

  int32_t blocks_;
};

// The sliding part of a checkpoint without a window.
class Nothing : public SparsePattern {
 public:
  std::string Describe() const override { return "nothing"; }
  Retention retention() const override { return {.window = 1}; }
  double VisibleKeys(int64_t) const override { return 0; }
  bool Visible(int32_t, int64_t, int64_t) const override { return false; }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    out->MakeTiles(runs);
    out->MakeLists();
    out->edges.push_back({});
  }
};

class NsaPattern : public SparsePattern {
 public:
  explicit NsaPattern(const Nsa& p)
      : parameters_(p),
        parts_{std::make_shared<CompressedBlocks>(),
               std::make_shared<SelectedBlocks>(p.block_counts), Sliding(p.window)} {}

  std::string Describe() const override {
    return StrCat("nsa(", parameters_.block_counts, " blocks,window=", parameters_.window, ")");
  }
  Retention retention() const override { return {}; }
  std::span<const std::shared_ptr<const SparsePattern>> parts() const override { return parts_; }
  void Select(std::span<const QueryRun>, SelectionBuilder*) const override {}
  double VisibleKeys(int64_t position) const override {
    double sum = 0;
    for (const auto& part : parts_) sum += part->VisibleKeys(position);
    return sum;
  }
  bool Visible(int32_t head, int64_t i, int64_t j) const override {
    return std::any_of(parts_.begin(), parts_.end(),
                       [&](const auto& part) { return part->Visible(head, i, j); });
  }

 private:
  static std::shared_ptr<const SparsePattern> Sliding(int32_t window) {
    if (window == 0) return std::make_shared<Nothing>();
    return NewWindow(window, 0);
  }

  Nsa parameters_;
  std::array<std::shared_ptr<const SparsePattern>, Nsa::kParts> parts_;
};

}  // namespace

std::unique_ptr<SparsePattern> NewNsa(const Nsa& native) {
  return std::make_unique<NsaPattern>(native);
}

PatternOr MakeNsa(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({"block_counts", "window_size"}));
  const Nsa& native = context.native.nsa;
  if (native.block_counts == 0) {
    return policy.Error(
        "the pattern \"nsa\" sums three attentions by gates, which the checkpoint does not have in "
        "this layer; choose another pattern, such as native or quest.");
  }
  ASSIGN_OR_RETURN(const int64_t blocks,
                   policy.Int("block_counts", native.block_counts, 1, kMaxBlocks));
  ASSIGN_OR_RETURN(const int64_t window,
                   policy.Int("window_size", native.window, 0, kMaxPatternTokens));
  return NewNsa(
      {.block_counts = static_cast<int32_t>(blocks), .window = static_cast<int32_t>(window)});
}

}  // namespace longstride::model

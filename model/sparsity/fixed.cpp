// fixed: the sequence is cut into regions of `local_ctx` positions, each of s = local_ctx / block
// blocks. A query in block I reads block J <= I if both lie in one region, or if J is one of its
// head's summary columns: the s columns of a region, listed from the last to the first, are cut
// into groups of `vertsize`, and head h reads group h mod `num_verts` of every earlier region.
// Inside its own block a query reads up to itself.
//
// Source: Sparse Transformer (arXiv 1904.10509), fixed attention, in the block layout of its
// released code (the paper's rule counts single tokens, with the same columns for all heads).
#include <algorithm>
#include <bit>

#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

struct FixedRule {
  int32_t block = 32;
  int32_t local_ctx = 128;
  int32_t num_verts = 4;
  int32_t vertsize = 1;
};

class Fixed : public SparsePattern {
 public:
  Fixed(const FixedRule& rule, const HeadRange& heads)
      : rule_(rule), heads_(heads), region_blocks_(rule.local_ctx / rule.block) {}

  std::string Describe() const override {
    std::string text = StrCat("fixed(block=", rule_.block, ",local=", rule_.local_ctx,
                              ",verts=", rule_.num_verts, ",vertsize=", rule_.vertsize, ")");
    if (rule_.num_verts > 1) {
      StrAppend(&text, " heads ", heads_.first, "-", heads_.first + heads_.count - 1);
    }
    return text;
  }
  // Keeps all pages: the summary columns of a page's heads differ, and a page holds more than one
  // block.
  Retention retention() const override { return {}; }

  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    const bool per_head = rule_.num_verts > 1 && heads_.count > 1;
    out->list_heads = per_head ? kernels::ListHeads::kPerQHead : kernels::ListHeads::kShared;
    out->num_list_heads = per_head ? heads_.count : 1;
    out->entry_tokens = rule_.block;
    // Rows of one region share a list (the diagonal masks its later blocks); rows of two do not.
    out->MakeTiles(runs, rule_.local_ctx);
    out->MakeLists();
    out->edges.assign(static_cast<size_t>(out->num_list_heads), {});
    for (int32_t h = 0; h < out->num_list_heads; ++h) {
      // Heads that read the same columns read the same lists.
      const int32_t twin = h >= rule_.num_verts ? h - rule_.num_verts : -1;
      for (size_t t = 0; t < out->tiles.size(); ++t) {
        const auto tile = static_cast<int32_t>(t);
        if (twin >= 0) {
          const size_t at = static_cast<size_t>(twin) * out->tiles.size() + t;
          out->SetList(h, tile, out->list_begin[at], out->list_count[at]);
        } else {
          AddList(h, tile, out);
        }
      }
    }
  }
  double VisibleKeys(int64_t position) const override {
    const int64_t region = position / rule_.local_ctx;
    return static_cast<double>(region * rule_.vertsize * rule_.block +
                               (position - region * rule_.local_ctx) + 1);
  }
  bool Visible(int32_t head, int64_t i, int64_t j) const override {
    if (j < 0 || j > i) return false;
    if (j / rule_.local_ctx == i / rule_.local_ctx) return true;
    const int64_t from_last = region_blocks_ - 1 - j / rule_.block % region_blocks_;
    return from_last / rule_.vertsize == head % rule_.num_verts;
  }

 private:
  void AddList(int32_t list_head, int32_t tile_index, SelectionBuilder* out) const {
    const kernels::QueryTile& tile = out->tiles[static_cast<size_t>(tile_index)];
    const int64_t region = tile.first_position / rule_.local_ctx;
    const int64_t last_block = (int64_t{tile.first_position} + tile.num_rows - 1) / rule_.block;
    const int64_t group = (heads_.first + list_head) % rule_.num_verts;
    const int64_t column = region_blocks_ - (group + 1) * rule_.vertsize;  // first of the group
    const auto start = static_cast<int64_t>(out->entries.size());
    for (int64_t r = 0; r < region; ++r) {
      for (int64_t v = 0; v < rule_.vertsize; ++v) {
        out->entries.push_back(static_cast<int32_t>(r * region_blocks_ + column + v));
      }
    }
    for (int64_t b = region * region_blocks_; b <= last_block; ++b) {
      out->entries.push_back(static_cast<int32_t>(b));
    }
    out->SetList(list_head, tile_index, start, static_cast<int64_t>(out->entries.size()) - start);
  }

  FixedRule rule_;
  HeadRange heads_;
  int64_t region_blocks_;
};

}  // namespace

PatternOr MakeFixed(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({"block", "local_ctx", "num_verts", "vertsize"}));
  ASSIGN_OR_RETURN(const int64_t block, policy.Int("block", 32, 16, 128));
  ASSIGN_OR_RETURN(const int64_t local, policy.Int("local_ctx", 128, block, kMaxPatternTokens));
  ASSIGN_OR_RETURN(const int64_t verts, policy.Int("num_verts", 4, 1, 1 << 16));
  ASSIGN_OR_RETURN(const int64_t vertsize, policy.Int("vertsize", 1, 1, 1 << 16));
  if (!std::has_single_bit(static_cast<uint64_t>(block))) {
    return policy.Error(StrCat("'block' is ", block, "; allowed are 16, 32, 64 and 128."));
  }
  if (local % block != 0) {
    return policy.Error(
        StrCat("'local_ctx' is ", local, "; it must be a multiple of 'block', ", block, "."));
  }
  const int64_t blocks = local / block;
  if (vertsize > blocks || blocks % vertsize != 0) {
    return policy.Error(
        StrCat("'vertsize' is ", vertsize, "; it must divide local_ctx / block, ", blocks, "."));
  }
  if (verts > blocks / vertsize) {
    return policy.Error(StrCat("'num_verts' is ", verts, "; a region of ", blocks,
                               " blocks has only ", blocks / vertsize, " groups of 'vertsize' ",
                               vertsize, "."));
  }
  if (context.num_query_heads % verts != 0) {
    return policy.Error(StrCat("'num_verts' is ", verts, "; it must divide the layer's ",
                               context.num_query_heads, " query heads."));
  }
  const FixedRule rule = {.block = static_cast<int32_t>(block),
                          .local_ctx = static_cast<int32_t>(local),
                          .num_verts = static_cast<int32_t>(verts),
                          .vertsize = static_cast<int32_t>(vertsize)};
  return std::make_unique<Fixed>(rule, context.heads);
}

}  // namespace longstride::model

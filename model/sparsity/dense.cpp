// dense: every query reads all keys up to its own; in an encoder, all keys of the document.
#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

KeyRange UpToTile(const kernels::QueryTile& tile, int64_t, int64_t) {
  return {0, int64_t{tile.first_position} + tile.num_rows};
}
KeyRange All(const kernels::QueryTile&, int64_t kv_len, int64_t) { return {0, kv_len}; }

class Dense : public SparsePattern {
 public:
  explicit Dense(bool causal) : causal_(causal) {}

  std::string Describe() const override { return causal_ ? "dense" : "bidirectional"; }
  Retention retention() const override { return {}; }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    out->MakeTiles(runs);
    out->MakeLists();
    SelectPageRanges(0, causal_ ? UpToTile : All, 0, out);
    out->edges.push_back({.causal = causal_});
  }
  bool edges_alone() const override { return true; }
  double VisibleKeys(int64_t position) const override {
    return static_cast<double>(causal_ ? position + 1 : 2 * position + 1);
  }
  bool Visible(int32_t, int64_t i, int64_t j) const override {
    return j >= 0 && (!causal_ || j <= i);
  }

 private:
  bool causal_;
};

}  // namespace

std::unique_ptr<SparsePattern> NewDense(bool causal) { return std::make_unique<Dense>(causal); }

PatternOr MakeDense(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({}));
  return NewDense(context.causal);
}

}  // namespace longstride::model

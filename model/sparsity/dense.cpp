// dense: every query reads all keys up to its own.
#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

KeyRange All(const kernels::QueryTile& tile, int64_t) {
  return {0, int64_t{tile.first_position} + tile.num_rows};
}

class Dense : public SparsePattern {
 public:
  std::string Describe() const override { return "dense"; }
  Retention retention() const override { return {}; }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    out->MakeTiles(runs);
    out->MakeLists();
    SelectPageRanges(0, All, 0, out);
    out->edges.push_back({});
  }
  double VisibleKeys(int64_t position) const override { return static_cast<double>(position + 1); }
  bool Visible(int32_t, int64_t i, int64_t j) const override { return j >= 0 && j <= i; }
};

}  // namespace

std::unique_ptr<SparsePattern> NewDense() { return std::make_unique<Dense>(); }

PatternOr MakeDense(const PatternPolicy& policy, const PatternContext&) {
  RETURN_IF_ERROR(policy.CheckKnown({}));
  return NewDense();
}

}  // namespace longstride::model

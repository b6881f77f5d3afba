// chunked: a query reads the keys up to its own within its chunk of `chunk` positions, counted from
// the start of the sequence (Llama 4).
#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

KeyRange InChunk(const kernels::QueryTile& tile, int64_t, int64_t chunk) {
  return {tile.first_position / chunk * chunk, int64_t{tile.first_position} + tile.num_rows};
}

class Chunked : public SparsePattern {
 public:
  explicit Chunked(int32_t chunk) : chunk_(chunk) {}

  std::string Describe() const override { return StrCat("chunked(", chunk_, ")"); }
  Retention retention() const override { return {.window = 0, .sink_tokens = 0, .chunk = chunk_}; }
  void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const override {
    // No tile crosses a chunk's edge: rows after it must not list the chunk before.
    out->MakeTiles(runs, chunk_);
    out->MakeLists();
    SelectPageRanges(0, InChunk, chunk_, out);
    out->edges.push_back({.causal = 1, .window = 0, .sink_tokens = 0, .chunk = chunk_});
  }
  bool edges_alone() const override { return true; }
  double VisibleKeys(int64_t position) const override {
    return static_cast<double>(position % chunk_ + 1);
  }
  bool Visible(int32_t, int64_t i, int64_t j) const override {
    return j >= 0 && j <= i && j / chunk_ == i / chunk_;
  }

 private:
  int32_t chunk_;
};

}  // namespace

std::unique_ptr<SparsePattern> NewChunked(int32_t chunk) {
  return std::make_unique<Chunked>(chunk);
}

PatternOr MakeChunked(const PatternPolicy& policy, const PatternContext&) {
  RETURN_IF_ERROR(policy.CheckKnown({"chunk"}));
  ASSIGN_OR_RETURN(const int64_t chunk, policy.RequiredInt("chunk", 1, kMaxPatternTokens));
  return NewChunked(static_cast<int32_t>(chunk));
}

}  // namespace longstride::model

// moba: keys are cut into blocks of `chunk_size`. A query of the prompt reads its own block up to
// itself and the `topk` - 1 earlier blocks whose mean key has the largest product with it, each
// query head for itself; see SelectPagesParams::block_pages. Source: MoBA (arXiv 2502.13189). Its
// authors' code computes generated tokens with full attention; `generated` makes them choose as a
// prompt's do.
//
// Where this is another function: a block's mean key is the mean of its pages' means, which are
// rounded to the cache's type.
#include "model/sparsity/patterns.h"
#include "model/sparsity/ranked_rows.h"

namespace longstride::model {
namespace {

using kernels::kPageTokens;

constexpr int64_t kMaxChunk = 1 << 20;
constexpr int64_t kMaxTopK = 1024;

class MobaPattern : public RankedRows {
 public:
  explicit MobaPattern(const Moba& p)
      : RankedRows({.score = kernels::PageScore::kMean,
                    .list_heads = kernels::ListHeads::kPerQHead,
                    .block_pages = p.chunk / kPageTokens,
                    .single_rows_from = p.topk * p.chunk},
                   p.generated),
        parameters_(p) {}

  std::string Describe() const override {
    return StrCat("moba(", parameters_.topk, " of ", parameters_.chunk,
                  parameters_.generated ? ",generated)" : ")");
  }

 private:
  int64_t EntriesOf(int64_t position) const override {
    const int64_t pages = parameters_.chunk / kPageTokens;
    return (parameters_.topk - 1) * pages + position / kPageTokens % pages + 1;
  }

  Moba parameters_;
};

}  // namespace

std::unique_ptr<SparsePattern> NewMoba(const Moba& native) {
  return std::make_unique<MobaPattern>(native);
}

PatternOr MakeMoba(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({"chunk_size", "topk", "generated"}));
  const Moba& native = context.native.moba;
  ASSIGN_OR_RETURN(const int64_t chunk,
                   native.chunk > 0 ? policy.Int("chunk_size", native.chunk, kPageTokens, kMaxChunk)
                                    : policy.RequiredInt("chunk_size", kPageTokens, kMaxChunk));
  ASSIGN_OR_RETURN(const int64_t topk, native.chunk > 0
                                           ? policy.Int("topk", native.topk, 1, kMaxTopK)
                                           : policy.RequiredInt("topk", 1, kMaxTopK));
  ASSIGN_OR_RETURN(const bool generated, policy.Bool("generated", native.generated));
  if (chunk % kPageTokens != 0) {
    return policy.Error(StrCat("'chunk_size' is ", chunk, "; allowed are multiples of ",
                               kPageTokens, " from ", kPageTokens, " to ", kMaxChunk, "."));
  }
  return NewMoba({.chunk = static_cast<int32_t>(chunk),
                  .topk = static_cast<int32_t>(topk),
                  .generated = generated});
}

}  // namespace longstride::model

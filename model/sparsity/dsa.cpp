// dsa: a query reads the `topk` keys up to itself that the layer's indexer scores highest, one set
// for all heads, in prompts as in decoding; a query that sees no more keys than that reads them
// all. Its own key is not forced. See kernels::SelectTokensParams for the scores and Indexer
// (model_spec.h) for what they are made of. Source: DeepSeek-V3.2
// (github.com/deepseek-ai/DeepSeek-V3.2-Exp).
//
// Where this is another function than the released code: scores are of float32 queries and of keys
// as the cache stores them; theirs rotates both by a Hadamard matrix, which changes no product, and
// rounds both to fp8 in blocks of 128.
#include "model/sparsity/patterns.h"
#include "model/sparsity/ranked_rows.h"

namespace longstride::model {
namespace {

class DsaPattern : public RankedRows {
 public:
  explicit DsaPattern(const Dsa& p)
      : RankedRows({.by_index = true,
                    .list_heads = kernels::ListHeads::kShared,
                    .single_rows_from = p.topk},
                   /*generated_choose=*/true),
        topk_(p.topk) {}

  std::string Describe() const override { return StrCat("dsa(", topk_, ")"); }

 private:
  int64_t EntriesOf(int64_t) const override { return topk_; }

  int32_t topk_;
};

}  // namespace

std::unique_ptr<SparsePattern> NewDsa(const Dsa& native) {
  return std::make_unique<DsaPattern>(native);
}

PatternOr MakeDsa(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({"topk"}));
  const Dsa& native = context.native.dsa;
  if (native.topk == 0) {
    return policy.Error(
        "the pattern \"dsa\" chooses keys by an indexer, which the checkpoint does not have in "
        "this "
        "layer; choose another pattern, such as native or quest.");
  }
  ASSIGN_OR_RETURN(const int64_t topk, policy.Int("topk", native.topk, 1, kMaxPatternTokens));
  return NewDsa({.topk = static_cast<int32_t>(topk)});
}

}  // namespace longstride::model

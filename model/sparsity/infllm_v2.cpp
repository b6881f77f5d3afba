// infllm_v2: a query reads the first blocks of 64 keys, those of a window before it, and the blocks
// to whose compressed keys the query heads of its KV head pay most attention; see
// kernels::PageScore::kCompressedKeys. One list for each token and KV head, in prompts as in
// decoding. Source: InfLLM-v2 (arXiv 2509.24663), as MiniCPM4 and 4.1 have it: compressed keys of
// 32 keys every 16; topk + window / 64 blocks in all, among them the first `init_blocks`, the
// query's own and the window / 64 before it.
//
// Where this is another function than the released code:
// - Theirs is dense while the *sequence* is shorter than dense_len, so that a long prompt's early
//   tokens are computed otherwise than a short one's. Here a query that sees fewer than dense_len
//   keys reads them all, whatever follows it (docs/decisions/0013): equal in decoding, and in a
//   prompt from dense_len on.
// - Theirs may divide by an estimate of the softmax's sum from keys four times as coarse; here it
// is
//   the sum.
#include <algorithm>

#include "model/sparsity/patterns.h"
#include "model/sparsity/ranked_rows.h"

namespace longstride::model {
namespace {

using kernels::kPageTokens;

constexpr int64_t kMaxBlocks = 1 << 20;

int32_t LocalBlocks(const InfLlmV2& p) { return p.window / kPageTokens; }
int32_t AllBlocks(const InfLlmV2& p) { return p.topk + LocalBlocks(p); }

class InfLlmV2Pattern : public RankedRows {
 public:
  explicit InfLlmV2Pattern(const InfLlmV2& p)
      : RankedRows({.score = kernels::PageScore::kCompressedKeys,
                    .list_heads = kernels::ListHeads::kPerKvHead,
                    .sink_pages = p.init_blocks,
                    .recent_pages = LocalBlocks(p) + 1,
                    .single_rows_from =
                        std::max(AllBlocks(p) * kPageTokens, std::max(p.dense_len, 1) - 1)},
                   /*generated_choose=*/true),
        parameters_(p) {}

  std::string Describe() const override {
    return StrCat("infllm_v2(topk=", parameters_.topk, ",init=", parameters_.init_blocks,
                  ",window=", LocalBlocks(parameters_) * kPageTokens,
                  ",dense_len=", parameters_.dense_len, ")");
  }

 private:
  int64_t EntriesOf(int64_t) const override { return AllBlocks(parameters_); }

  InfLlmV2 parameters_;
};

}  // namespace

std::unique_ptr<SparsePattern> NewInfLlmV2(const InfLlmV2& native) {
  return std::make_unique<InfLlmV2Pattern>(native);
}

PatternOr MakeInfLlmV2(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({"topk", "init_blocks", "window_size", "dense_len"}));
  // What is left out is the checkpoint's, or MiniCPM4's.
  InfLlmV2 fallback = context.native.infllm_v2;
  if (fallback.topk == 0) fallback.topk = 64;
  ASSIGN_OR_RETURN(const int64_t topk, policy.Int("topk", fallback.topk, 1, kMaxBlocks));
  ASSIGN_OR_RETURN(const int64_t init,
                   policy.Int("init_blocks", fallback.init_blocks, 0, kMaxBlocks));
  ASSIGN_OR_RETURN(const int64_t window,
                   policy.Int("window_size", fallback.window, 0, kMaxBlocks * kPageTokens));
  ASSIGN_OR_RETURN(const int64_t dense_len,
                   policy.Int("dense_len", fallback.dense_len, 0, kMaxPatternTokens));
  if (topk <= init) {
    return policy.Error(StrCat("'topk' is ", topk, ", but the first ", init,
                               " blocks and the query's own are read in any case; raise it to ",
                               init + 1, " or more."));
  }
  return NewInfLlmV2({.topk = static_cast<int32_t>(topk),
                      .init_blocks = static_cast<int32_t>(init),
                      .window = static_cast<int32_t>(window),
                      .dense_len = static_cast<int32_t>(dense_len)});
}

}  // namespace longstride::model

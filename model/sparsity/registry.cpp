#include "config/nearest_name.h"
#include "model/sparsity/patterns.h"

namespace longstride::model {

const std::vector<PatternFactory>& PatternRegistry() {
  static const std::vector<PatternFactory> kPatterns = {
      {"native", "what the checkpoint was trained with in this layer", MakeNative, true},
      {"dense", "all keys up to the query", MakeDense, true},
      {"window", "the last `window` keys, and the first `sink_tokens`", MakeWindow, true},
      {"chunked", "the keys of the query's own chunk of `chunk` positions", MakeChunked},
      {"strided", "every `stride`-th key back from the query, and the last `local`", MakeStrided},
      {"dilated", "`window` keys `dilation` apart, and the first `global_tokens`", MakeDilated},
      {"fixed", "the query's own region of `local_ctx` keys, and summary columns of earlier ones",
       MakeFixed},
      {"block_sparse", "an own block mask: `rows` of key blocks per block of queries",
       MakeBlockSparse},
      {"bigbird", "blocks: the first, the last, and some at random between (BigBird, causal)",
       MakeBigBird},
      {"local_stride", "blocks: the last, and every `vert_stride`-th, by head (Phi-3-small)",
       MakeLocalStride},
      {"variable", "windows of blocks of several sizes, and global blocks (DeepSpeed)",
       MakeVariable},
      {"quest", "prompts dense; generated tokens read the pages that may hold the largest scores",
       MakeQuest},
      {"block_topk", "the pages whose mean key suits the mean of the queries' tile best",
       MakeBlockTopK},
      {"xattention",
       "prompts read the pages that hold `threshold` of a tile's attention, by its antidiagonals",
       MakeXAttention},
      {"spargeattn",
       "prompts read the pages that hold `threshold` of a tile's attention, by means of queries "
       "and keys",
       MakeSpargeAttn},
      {"vertical_slash",
       "prompts read the columns and diagonals that the last queries of a segment attend to",
       MakeVerticalSlash},
      {"infllm_v2",
       "the first blocks, a window, and those whose compressed keys get most attention (MiniCPM4)",
       MakeInfLlmV2},
      {"moba", "the query's own block and those whose mean key suits it best (MoBA)", MakeMoba},
      {"dsa", "the `topk` keys that the layer's indexer scores highest (DeepSeek-V3.2)", MakeDsa},
      {"nsa",
       "three attentions summed by gates: blocks' means, `block_counts` blocks chosen by them, and "
       "a window",
       MakeNsa},
  };
  return kPatterns;
}

absl::StatusOr<std::unique_ptr<SparsePattern>> MakePattern(const PatternPolicy& policy,
                                                           const PatternContext& context) {
  std::vector<std::string> names;
  for (const PatternFactory& factory : PatternRegistry()) {
    if (factory.name == policy.pattern) {
      if (context.causal || factory.reads_ahead) return factory.make(policy, context);
      return policy.Error(StrCat("the pattern ", Quoted(policy.pattern),
                                 " is causal, but the checkpoint is an encoder, which reads in both "
                                 "directions; choose native, dense or window."));
    }
    names.emplace_back(factory.name);
  }
  return policy.Error(StrCat("unknown pattern ", Quoted(policy.pattern), "; known patterns are ",
                             JoinNames(names), ".", DidYouMean(policy.pattern, names)));
}

}  // namespace longstride::model

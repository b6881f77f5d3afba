// native: what the checkpoint was trained with in this layer.
#include "model/sparsity/patterns.h"

namespace longstride::model {

PatternOr MakeNative(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({}));
  // What masks nothing in the served context is dense, so that such layers share
  // a cache group with full ones.
  const NativeSparsity& native = context.native;
  if (native.nsa.block_counts > 0) return NewNsa(native.nsa);
  std::unique_ptr<SparsePattern> learned;
  if (native.chunk > 0 && native.chunk < context.max_positions) return NewChunked(native.chunk);
  if (native.window > 0 && native.window < context.max_positions) {
    return NewWindow(native.window, native.global_tokens, context.causal);
  }
  if (native.infllm_v2.topk > 0) learned = NewInfLlmV2(native.infllm_v2);
  if (native.moba.chunk > 0) learned = NewMoba(native.moba);
  if (native.dsa.topk > 0) learned = NewDsa(native.dsa);
  if (learned != nullptr && learned->ranking()->single_rows_from < context.max_positions) {
    return learned;
  }
  return NewDense(context.causal);
}

}  // namespace longstride::model

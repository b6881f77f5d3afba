// native: what the checkpoint was trained with in this layer.
#include "model/sparsity/patterns.h"

namespace longstride::model {

PatternOr MakeNative(const PatternPolicy& policy, const PatternContext& context) {
  RETURN_IF_ERROR(policy.CheckKnown({}));
  // A window or chunk that spans the served context masks nothing: dense, so that such layers share
  // a cache group with full ones.
  if (context.native_chunk > 0 && context.native_chunk < context.max_positions) {
    return NewChunked(context.native_chunk);
  }
  if (context.native_window > 0 && context.native_window < context.max_positions) {
    return NewWindow(context.native_window, 0, context.causal);
  }
  return NewDense(context.causal);
}

}  // namespace longstride::model

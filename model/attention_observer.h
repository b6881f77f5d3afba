// A view of a decoder's attention calls for those who measure it (fidelity reports, live shadows).
#pragma once

#include <cstdint>
#include <span>

#include "kernels/op_params.h"
#include "model/sparsity/sparsity_plan.h"

namespace longstride::model {

// One attention call of a step (of dual chunk attention: of a part of the keys), after it was
// issued. Everything pointed to is valid during the call of the observer only; on a device that
// computes behind the calls `params->out` may be unwritten.
struct AttentionCall {
  int32_t layer = 0;
  const HeadSegment* segment = nullptr;
  // q holds rotated queries [rows, segment heads, head_dim]; the cache holds this step's keys, too.
  const kernels::AttentionParams* params = nullptr;
  std::span<const QueryRun> runs;  // of q's rows
  int64_t keys_total = 0;          // (row, head, key) triples that dense causal attention reads
  kernels::AttentionCounters counters;  // without what a device adds when the step ends
};

class AttentionObserver {
 public:
  virtual ~AttentionObserver() = default;
  virtual void OnAttention(const AttentionCall& call) = 0;
};

}  // namespace longstride::model

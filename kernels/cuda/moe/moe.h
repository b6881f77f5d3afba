// Mixture-of-experts layers on the GPU: routing, grouped matrix products, activation and combination
// without the host knowing who was chosen.
#pragma once

#include "kernels/cuda/linear/linear.h"

namespace longstride::kernels::cuda {

// MoeParams as op_params.h says, in device memory; router_logits float32. Queued on the context's
// stream. A row's bits do not depend on the other rows: experts' products keep one order of
// summation (linear.h), and ranks are added in ascending order.
// UNIMPLEMENTED: more than 512 experts, or experts of one layer whose weights differ in format.
absl::Status RunCudaMoe(const MoeParams& p, DeviceContext& context);

}  // namespace longstride::kernels::cuda

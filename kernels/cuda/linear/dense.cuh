// The two kernels of f16, bf16 and fp8 weights. Both sum K in the same order, so that a
// row's bits do not depend on which of them computed it.
#pragma once

#include "kernels/cuda/linear/product.h"

namespace longstride::kernels::cuda {

// Tiles of 8, 32, 64 or 128 activation rows.
cudaError_t LaunchDenseNarrow(const Product& p, int tokens, cudaStream_t stream);
// Tiles of 256 activation rows (fp8: 192) by 128 weight rows.
cudaError_t LaunchDenseWide(const Product& p, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

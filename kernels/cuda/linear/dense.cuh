// The two kernels of f16 and bf16 weights. Both sum K in order in steps of 16 columns, so that a
// row's bits do not depend on which of them computed it.
#pragma once

#include "kernels/cuda/linear/product.h"

namespace longstride::kernels::cuda {

// Tiles of 8, 64 or 128 activation rows.
cudaError_t LaunchDenseNarrow(const Product& p, int tokens, cudaStream_t stream);
// Tiles of 256 activation rows by 128 weight rows.
cudaError_t LaunchDenseWide(const Product& p, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

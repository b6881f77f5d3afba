// The portable kernels' side of product.h: sm_80 and later. A row has one order of summation, K in
// steps of 16 columns into one accumulator, whatever the tile.
#pragma once

#include "kernels/cuda/linear/product.h"

namespace longstride::kernels::cuda {

// Tiles of up to `tokens` activation rows, at most 256 (fp8: 128).
cudaError_t LaunchPortableDense(const Product& p, int tokens, cudaStream_t stream);
template <DType kType>
cudaError_t LaunchPortableBlocks(const Product& p, int tokens, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

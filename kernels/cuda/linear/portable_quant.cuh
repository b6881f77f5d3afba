// The portable kernels of a block format: tiles of 8, 64, 128 and 256 tokens.
#pragma once

#include "kernels/cuda/linear/portable.h"
#include "kernels/cuda/linear/portable_product.cuh"

namespace longstride::kernels::cuda {

template <DType kType>
cudaError_t LaunchPortableBlocks(const Product& p, int tokens, cudaStream_t stream) {
  using Few = PortableShape<16, 8, 16, 8, 4, 16>;
  using Some = PortableShape<64, 64, 16, 64, 1, 4>;
  using Many = PortableShape<128, 128, 32, 64, 1, 2>;
  using Wide = PortableShape<128, 256, 32, 128, 1, 1>;
  if (tokens <= Few::kTokens) return LaunchPortable<BlockWeights<kType>, Few>(p, stream);
  if (tokens <= Some::kTokens) return LaunchPortable<BlockWeights<kType>, Some>(p, stream);
  if (tokens <= Many::kTokens) return LaunchPortable<BlockWeights<kType>, Many>(p, stream);
  return LaunchPortable<BlockWeights<kType>, Wide>(p, stream);
}

}  // namespace longstride::kernels::cuda

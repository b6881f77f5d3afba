// The three tile heights of a block format's product. 9 formats x 3 heights are all instantiations.
#pragma once

#include "kernels/cuda/linear/quant_product.cuh"

namespace longstride::kernels::cuda {

template <DType kType>
cudaError_t LaunchQuant(const Product& p, cudaStream_t stream) {
  const int tokens = p.groups != nullptr ? p.groups->tile_rows
                                         : TileRows(p.path, p.weight_dtype, p.n, p.x.rows);
  if (tokens == 8) return LaunchQuantShape<kType, 8>(p, stream);
  if (tokens == 64) return LaunchQuantShape<kType, 64>(p, stream);
  return LaunchQuantShape<kType, 128>(p, stream);
}

}  // namespace longstride::kernels::cuda

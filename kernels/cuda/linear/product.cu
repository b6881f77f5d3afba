#include "kernels/cuda/linear/product.h"

#include "kernels/cuda/linear/dense.cuh"
#include "kernels/cuda/linear/packed_weight.h"

namespace longstride::kernels::cuda {

template <DType kType>
cudaError_t LaunchQuant(const Product& p, cudaStream_t stream);

int TileRows(DType weight_dtype, int64_t n, int64_t rows) {
  if (rows <= 8) return 8;
  if (rows <= 64) return 64;
  if (IsQuantized(weight_dtype) || rows <= 128) return 128;
  // The wide kernel (128 weight rows by 256) wins once its tiles fill the chip.
  const int64_t wide_tiles = CeilDiv(n, 128) * CeilDiv(rows, 256);
  return wide_tiles >= 100 ? 256 : 128;
}

cudaError_t LaunchDenseProduct(const Product& p, cudaStream_t stream) {
  const int tokens = p.groups != nullptr ? p.groups->tile_rows
                                         : TileRows(p.weight_dtype, p.n, p.x.rows);
  return tokens == 256 ? LaunchDenseWide(p, stream) : LaunchDenseNarrow(p, tokens, stream);
}

cudaError_t LaunchQuantProduct(const Product& p, cudaStream_t stream) {
  switch (p.weight_dtype) {
    case DType::kQ8_0: return LaunchQuant<DType::kQ8_0>(p, stream);
    case DType::kQ4_0: return LaunchQuant<DType::kQ4_0>(p, stream);
    case DType::kQ4_1: return LaunchQuant<DType::kQ4_1>(p, stream);
    case DType::kQ5_0: return LaunchQuant<DType::kQ5_0>(p, stream);
    case DType::kQ5_1: return LaunchQuant<DType::kQ5_1>(p, stream);
    case DType::kMXFP4: return LaunchQuant<DType::kMXFP4>(p, stream);
    case DType::kQ4_K: return LaunchQuant<DType::kQ4_K>(p, stream);
    case DType::kQ5_K: return LaunchQuant<DType::kQ5_K>(p, stream);
    case DType::kQ6_K: return LaunchQuant<DType::kQ6_K>(p, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace longstride::kernels::cuda

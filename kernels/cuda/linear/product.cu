#include "kernels/cuda/linear/product.h"

#include "kernels/cuda/linear/dense.cuh"
#include "kernels/cuda/linear/packed_weight.h"
#include "kernels/cuda/linear/portable.h"

namespace longstride::kernels::cuda {

template <DType kType>
cudaError_t LaunchQuant(const Product& p, cudaStream_t stream);

namespace {

int FastTileRows(DType weight_dtype, int64_t n, int64_t rows) {
  if (rows <= 8) return 8;
  if (rows <= 32 && IsDense(weight_dtype)) return 32;
  if (rows <= 64) return 64;
  if (!IsDense(weight_dtype) || rows <= 128) return 128;
  // The wide kernel (128 weight rows by 256, or 192 in fp8) wins once its tiles fill the chip.
  const int wide = weight_dtype == DType::kFP8_128 ? 192 : 256;
  return CeilDiv(n, 128) * CeilDiv(rows, wide) >= 100 ? wide : 128;
}

int PortableTileRows(DType weight_dtype, int64_t n, int64_t rows) {
  if (rows <= 8) return 8;
  if (rows <= 64) return 64;
  if (weight_dtype == DType::kFP8_128) return 128;
  if (rows > 128 && CeilDiv(n, 128) * CeilDiv(rows, 256) >= 100) return 256;
  return IsDense(weight_dtype) ? 64 : 128;
}

int TileRowsOf(const Product& p) {
  return p.groups != nullptr ? p.groups->tile_rows
                             : TileRows(p.path, p.weight_dtype, p.n, p.x.rows);
}

template <DType kType>
cudaError_t LaunchBlocks(const Product& p, cudaStream_t stream) {
  return p.path == KernelPath::kPortable ? LaunchPortableBlocks<kType>(p, TileRowsOf(p), stream)
                                         : LaunchQuant<kType>(p, stream);
}

}  // namespace

int TileRows(KernelPath path, DType weight_dtype, int64_t n, int64_t rows) {
  return path == KernelPath::kPortable ? PortableTileRows(weight_dtype, n, rows)
                                       : FastTileRows(weight_dtype, n, rows);
}

cudaError_t LaunchDenseProduct(const Product& p, cudaStream_t stream) {
  const int tokens = TileRowsOf(p);
  if (p.path == KernelPath::kPortable) return LaunchPortableDense(p, tokens, stream);
  return tokens > 128 ? LaunchDenseWide(p, stream) : LaunchDenseNarrow(p, tokens, stream);
}

cudaError_t LaunchQuantProduct(const Product& p, cudaStream_t stream) {
  switch (p.weight_dtype) {
    case DType::kQ8_0: return LaunchBlocks<DType::kQ8_0>(p, stream);
    case DType::kQ4_0: return LaunchBlocks<DType::kQ4_0>(p, stream);
    case DType::kQ4_1: return LaunchBlocks<DType::kQ4_1>(p, stream);
    case DType::kQ5_0: return LaunchBlocks<DType::kQ5_0>(p, stream);
    case DType::kQ5_1: return LaunchBlocks<DType::kQ5_1>(p, stream);
    case DType::kMXFP4: return LaunchBlocks<DType::kMXFP4>(p, stream);
    case DType::kQ4_K: return LaunchBlocks<DType::kQ4_K>(p, stream);
    case DType::kQ5_K: return LaunchBlocks<DType::kQ5_K>(p, stream);
    case DType::kQ6_K: return LaunchBlocks<DType::kQ6_K>(p, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace longstride::kernels::cuda

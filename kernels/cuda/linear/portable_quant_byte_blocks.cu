#include "kernels/cuda/linear/portable_quant.cuh"

namespace longstride::kernels::cuda {

template cudaError_t LaunchPortableBlocks<DType::kQ8_0>(const Product&, int, cudaStream_t);
template cudaError_t LaunchPortableBlocks<DType::kMXFP4>(const Product&, int, cudaStream_t);

}  // namespace longstride::kernels::cuda

#include "kernels/cuda/linear/portable_quant.cuh"

namespace longstride::kernels::cuda {

template cudaError_t LaunchPortableBlocks<DType::kQ4_0>(const Product&, int, cudaStream_t);
template cudaError_t LaunchPortableBlocks<DType::kQ4_1>(const Product&, int, cudaStream_t);
template cudaError_t LaunchPortableBlocks<DType::kQ5_0>(const Product&, int, cudaStream_t);
template cudaError_t LaunchPortableBlocks<DType::kQ5_1>(const Product&, int, cudaStream_t);

}  // namespace longstride::kernels::cuda

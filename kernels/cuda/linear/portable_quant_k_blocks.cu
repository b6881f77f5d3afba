#include "kernels/cuda/linear/portable_quant.cuh"

namespace longstride::kernels::cuda {

template cudaError_t LaunchPortableBlocks<DType::kQ4_K>(const Product&, int, cudaStream_t);
template cudaError_t LaunchPortableBlocks<DType::kQ5_K>(const Product&, int, cudaStream_t);
template cudaError_t LaunchPortableBlocks<DType::kQ6_K>(const Product&, int, cudaStream_t);

}  // namespace longstride::kernels::cuda

#include "kernels/cuda/linear/quant_dispatch.cuh"

namespace longstride::kernels::cuda {

template cudaError_t LaunchQuant<DType::kQ4_0>(const Product&, cudaStream_t);
template cudaError_t LaunchQuant<DType::kQ4_1>(const Product&, cudaStream_t);
template cudaError_t LaunchQuant<DType::kQ5_0>(const Product&, cudaStream_t);
template cudaError_t LaunchQuant<DType::kQ5_1>(const Product&, cudaStream_t);

}  // namespace longstride::kernels::cuda

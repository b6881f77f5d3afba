#include "kernels/cuda/linear/quant_dispatch.cuh"

namespace longstride::kernels::cuda {

template cudaError_t LaunchQuant<DType::kQ4_K>(const Product&, cudaStream_t);
template cudaError_t LaunchQuant<DType::kQ5_K>(const Product&, cudaStream_t);
template cudaError_t LaunchQuant<DType::kQ6_K>(const Product&, cudaStream_t);

}  // namespace longstride::kernels::cuda

#include "kernels/cuda/linear/quant_dispatch.cuh"

namespace longstride::kernels::cuda {

template cudaError_t LaunchQuant<DType::kQ8_0>(const Product&, cudaStream_t);
template cudaError_t LaunchQuant<DType::kMXFP4>(const Product&, cudaStream_t);

}  // namespace longstride::kernels::cuda

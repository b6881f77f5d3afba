// Whether this build has code that the current device can run.
#pragma once

#include <cuda_runtime_api.h>

namespace longstride::kernels::cuda {

// cudaErrorNoKernelImageForDevice (or what a device of another kind gives): it has none.
cudaError_t FindKernelImage();

}  // namespace longstride::kernels::cuda

#include "kernels/cuda/make_cuda_backend.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device/kernel_image.h"

namespace longstride::kernels {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options) {
  return cuda::CudaBackend::Create(options);
}

absl::StatusOr<DeviceMemory> CudaMemory() {
  ASSIGN_OR_RETURN(const CudaDeviceInfo info, FindCudaDevice(0));
  ASSIGN_OR_RETURN(const DeviceMemory memory, MemoryOfCudaDevice(info.index));
  if (cuda::FindKernelImage() != cudaSuccess) {
    return absl::UnavailableError(StrCat("this build has no code for ", info.name));
  }
  return memory;
}

}  // namespace longstride::kernels

#include "kernels/cuda/device_info.h"

#include <cuda_runtime_api.h>

namespace longstride::kernels {
namespace {

// CUDA's integers: 12040 is 12.4.
std::string VersionString(int version) { return StrCat(version / 1000, ".", version % 1000 / 10); }

absl::Status NoDevice(cudaError_t error) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) {
    return absl::UnavailableError(
        "No NVIDIA driver is visible to this process; install one (in a container: pass the GPU "
        "in), or use the CPU backend.");
  }
  if (error == cudaErrorInsufficientDriver) {
    return absl::UnavailableError(StrCat("The NVIDIA driver supports CUDA ", VersionString(driver),
                                         ", this build needs ", VersionString(CUDART_VERSION),
                                         "; update the driver or use the CPU backend."));
  }
  return absl::UnavailableError(
      StrCat("No CUDA device can be used: ", cudaGetErrorString(error), "; use the CPU backend."));
}

}  // namespace

absl::StatusOr<CudaDeviceInfo> FindCudaDevice(int index) {
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaSuccess) return NoDevice(counted);
  if (count == 0) return NoDevice(cudaErrorNoDevice);
  if (index < 0 || index >= count) {
    return absl::InvalidArgumentError(
        StrCat("CUDA device ", index, " does not exist; there are ", count, ", counted from 0."));
  }
  cudaDeviceProp properties;
  const cudaError_t got = cudaGetDeviceProperties(&properties, index);
  if (got != cudaSuccess) return NoDevice(got);
  if (properties.major < 8) {
    return absl::UnavailableError(StrCat(
        "CUDA device ", index, " (", properties.name, ") has compute capability ", properties.major,
        ".", properties.minor, "; the kernels need 8.0 (A100) or newer. Use the CPU backend."));
  }
  CudaDeviceInfo info;
  info.index = index;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return info;
}

absl::StatusOr<DeviceMemory> MemoryOfCudaDevice(int index) {
  size_t free_bytes = 0, total = 0;
  cudaError_t error = cudaSetDevice(index);
  if (error == cudaSuccess) error = cudaMemGetInfo(&free_bytes, &total);
  if (error != cudaSuccess) {
    return absl::InternalError(
        StrCat("CUDA, asking for free memory: ", cudaGetErrorString(error)));
  }
  return DeviceMemory{static_cast<int64_t>(free_bytes), static_cast<int64_t>(total)};
}

}  // namespace longstride::kernels

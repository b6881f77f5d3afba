// Which CUDA device this process can use, or a sentence that says why none.
#pragma once

#include <cstdint>
#include <string>

#include "config/base/status.h"
#include "kernels/backend.h"

namespace longstride::kernels {

struct CudaDeviceInfo {
  int index = 0;
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  // Whether the Hopper kernels (sm_90a: 9.0 and nothing newer) run on it.
  bool has_fast_kernels() const { return major == 9 && minor == 0; }
};

// UNAVAILABLE: no driver, a driver too old for this build's CUDA, no device, or a device older than
// compute capability 8.0. INVALID_ARGUMENT: `index` is not one of the devices.
absl::StatusOr<CudaDeviceInfo> FindCudaDevice(int index);

// Of a device that can be used. INTERNAL: it does not answer.
absl::StatusOr<DeviceMemory> MemoryOfCudaDevice(int index);

}  // namespace longstride::kernels

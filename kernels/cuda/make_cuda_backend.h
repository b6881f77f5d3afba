// The seam to the CUDA backend: one of two files defines these functions, so that nothing else knows
// whether the build has CUDA. kernels/cuda_absent.cpp in a build without, kernels/cuda/ with.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace longstride::kernels {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options);
// Errors: as MakeCudaBackend's.
absl::StatusOr<DeviceMemory> CudaMemory();

}  // namespace longstride::kernels

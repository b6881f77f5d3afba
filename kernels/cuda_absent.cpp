#include "kernels/cuda/make_cuda_backend.h"

namespace longstride::kernels {
namespace {

absl::Status Absent() {
  return absl::UnimplementedError("built without CUDA; configure with the cuda preset");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options) {
  return Absent();
}

absl::StatusOr<DeviceMemory> CudaMemory() { return Absent(); }

}  // namespace longstride::kernels

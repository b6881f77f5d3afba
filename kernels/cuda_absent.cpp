#include "kernels/cuda/make_cuda_backend.h"

namespace longstride::kernels {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options) {
  return absl::UnimplementedError("built without CUDA; configure with the cuda preset");
}

}  // namespace longstride::kernels

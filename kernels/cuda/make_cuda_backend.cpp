#include "kernels/cuda/make_cuda_backend.h"

#include "kernels/cuda/cuda_backend.h"

namespace longstride::kernels {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options) {
  return cuda::CudaBackend::Create(options);
}

}  // namespace longstride::kernels

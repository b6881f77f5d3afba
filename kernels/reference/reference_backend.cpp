#include "kernels/reference/reference_backend.h"

namespace longstride::kernels {

std::unique_ptr<Backend> MakeReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace longstride::kernels

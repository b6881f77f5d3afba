#include "kernels/cpu/cpu_backend.h"

namespace longstride::kernels::cpu {

absl::Status CpuBackend::DoGatedActivation(const GatedActivationParams& p) {
  ForRows(p.out.shape[0], p.out.shape[1], [&](int64_t r) {
    kernels_.gated_activation(p.activation, p.limit, p.gate.row<float>(r),
                              p.up.data == nullptr ? nullptr : p.up.row<float>(r), p.out.shape[1],
                              p.out.row<float>(r));
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoAdd(const AddParams& p) {
  ForRows(p.out.shape[0], p.out.shape[1], [&](int64_t r) {
    kernels_.add(p.a, p.x.row<float>(r), p.b, p.y.row<float>(r), p.out.shape[1],
                 p.out.row<float>(r));
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoSoftcap(const SoftcapParams& p) {
  ForRows(p.x.shape[0], p.x.shape[1], [&](int64_t r) {
    kernels_.softcap(p.x.row<float>(r), p.scale, p.softcap, p.x.shape[1]);
  });
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

#include "kernels/cpu/cpu_backend.h"

namespace longstride::kernels::cpu {
namespace {

// Vectors of a norm; see reference/norm.cpp.
struct Vectors {
  explicit Vectors(const TensorView& x, const TensorView& weight)
      : heads(x.rank == 3 ? x.shape[1] : 1), dim(x.shape[x.rank - 1]) {
    weight_step = weight.data != nullptr && weight.shape[0] == heads * dim && heads > 1 ? dim : 0;
  }
  int64_t heads, dim, weight_step;
};

float* At(const TensorView& t, int64_t r, int64_t h) {
  return t.ptr<float>() + r * t.strides[0] + (t.rank == 3 ? h * t.strides[1] : 0);
}

const float* WeightAt(const TensorView& weight, int64_t offset) {
  return weight.data == nullptr ? nullptr : weight.ptr<float>() + offset;
}

}  // namespace

absl::Status CpuBackend::DoRmsNorm(const RmsNormParams& p) {
  const Vectors v(p.x, p.weight);
  ForRows(p.x.shape[0], v.heads * v.dim, [&](int64_t r) {
    for (int64_t h = 0; h < v.heads; ++h) {
      kernels_.rms_norm(At(p.x, r, h), WeightAt(p.weight, h * v.weight_step), p.weight_offset,
                        p.eps, v.dim, At(p.out, r, h));
    }
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoLayerNorm(const LayerNormParams& p) {
  const Vectors v(p.x, p.weight);
  ForRows(p.x.shape[0], v.heads * v.dim, [&](int64_t r) {
    for (int64_t h = 0; h < v.heads; ++h) {
      kernels_.layer_norm(At(p.x, r, h), WeightAt(p.weight, h * v.weight_step),
                          WeightAt(p.bias, h * v.weight_step), p.eps, v.dim, At(p.out, r, h));
    }
  });
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

#include <cmath>

#include "kernels/reference/reference_backend.h"

namespace longstride::kernels {

absl::Status ReferenceBackend::DoRope(const RopeParams& p) {
  for (int64_t r = 0; r < p.x.shape[0]; ++r) {
    for (int64_t h = 0; h < p.x.shape[1]; ++h) {
      float* x = p.x.ptr<float>() + r * p.x.strides[0] + h * p.x.strides[1];
      for (int32_t f = 0; f < p.num_frequencies; ++f) {
        // The angle is rounded to float32, as the models' own implementations do.
        const float angle = static_cast<float>(p.positions[r]) * p.inv_freq[f];
        const float c = std::cos(angle) * p.scale;
        const float s = std::sin(angle) * p.scale;
        float& a = p.interleaved ? x[2 * f] : x[f];
        float& b = p.interleaved ? x[2 * f + 1] : x[f + p.num_frequencies];
        const float rotated = a * c - b * s;
        b = a * s + b * c;
        a = rotated;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::DoPositionScale(const PositionScaleParams& p) {
  for (int64_t r = 0; r < p.x.shape[0]; ++r) {
    const float steps = std::floor((static_cast<float>(p.positions[r]) + 1.0f) / p.floor_scale);
    const float factor = 1.0f + p.attn_scale * std::log(1.0f + steps);
    for (int64_t h = 0; h < p.x.shape[1]; ++h) {
      float* x = p.x.ptr<float>() + r * p.x.strides[0] + h * p.x.strides[1];
      for (int64_t c = 0; c < p.x.shape[2]; ++c) x[c] *= factor;
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels

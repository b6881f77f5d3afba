#include <algorithm>
#include <cmath>

#include "kernels/reference/reference_backend.h"

namespace longstride::kernels {
namespace {

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

}  // namespace

float GatedActivationValue(Activation activation, float gate, float up, float limit) {
  switch (activation) {
    case Activation::kSilu:
      return gate * Sigmoid(gate) * up;
    case Activation::kGeluTanh: {
      const float inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
      return 0.5f * gate * (1.0f + std::tanh(inner)) * up;
    }
    case Activation::kGelu:
      return 0.5f * gate * (1.0f + std::erf(gate * 0.7071067812f)) * up;
    case Activation::kSwigluOai: {
      const float g = std::min(gate, limit);
      const float u = std::clamp(up, -limit, limit);
      return (u + 1.0f) * g * Sigmoid(1.702f * g);
    }
  }
  return 0.0f;
}

absl::Status ReferenceBackend::DoGatedActivation(const GatedActivationParams& p) {
  for (int64_t r = 0; r < p.out.shape[0]; ++r) {
    const float* gate = p.gate.row<float>(r);
    const float* up = p.up.data == nullptr ? nullptr : p.up.row<float>(r);
    float* out = p.out.row<float>(r);
    for (int64_t c = 0; c < p.out.shape[1]; ++c) {
      out[c] = GatedActivationValue(p.activation, gate[c], up == nullptr ? 1.0f : up[c], p.limit);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::DoAdd(const AddParams& p) {
  for (int64_t r = 0; r < p.out.shape[0]; ++r) {
    const float* x = p.x.row<float>(r);
    const float* y = p.y.row<float>(r);
    float* out = p.out.row<float>(r);
    for (int64_t c = 0; c < p.out.shape[1]; ++c) out[c] = p.a * x[c] + p.b * y[c];
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::DoSoftcap(const SoftcapParams& p) {
  for (int64_t r = 0; r < p.x.shape[0]; ++r) {
    float* x = p.x.row<float>(r);
    for (int64_t c = 0; c < p.x.shape[1]; ++c) {
      const float s = p.scale * x[c];
      x[c] = p.softcap > 0.0f ? p.softcap * std::tanh(s / p.softcap) : s;
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels

#include <cmath>

#include "kernels/reference/reference_backend.h"

namespace longstride::kernels {
namespace {

// The vectors of a norm: rank 2 has one per row, rank 3 one per row and head.
struct Vectors {
  int64_t rows, heads, dim;
  int64_t weight_step;  // from one head's weight to the next
};

Vectors VectorsOf(const TensorView& x, const TensorView& weight) {
  const bool per_head = x.rank == 3;
  const int64_t dim = x.shape[x.rank - 1];
  const int64_t heads = per_head ? x.shape[1] : 1;
  const bool weight_per_head = weight.data != nullptr && weight.shape[0] == heads * dim;
  return {x.shape[0], heads, dim, weight_per_head ? dim : 0};
}

float* At(const TensorView& t, int64_t r, int64_t h) {
  return t.ptr<float>() + r * t.strides[0] + (t.rank == 3 ? h * t.strides[1] : 0);
}

}  // namespace

absl::Status ReferenceBackend::DoRmsNorm(const RmsNormParams& p) {
  const Vectors v = VectorsOf(p.x, p.weight);
  for (int64_t r = 0; r < v.rows; ++r) {
    for (int64_t h = 0; h < v.heads; ++h) {
      const float* x = At(p.x, r, h);
      float* out = At(p.out, r, h);
      double squares = 0.0;
      for (int64_t c = 0; c < v.dim; ++c) squares += double{x[c]} * x[c];
      const auto mean = static_cast<float>(squares / static_cast<double>(v.dim));
      const float inverse = 1.0f / std::sqrt(mean + p.eps);
      for (int64_t c = 0; c < v.dim; ++c) {
        const float w = p.weight.data == nullptr
                            ? 1.0f
                            : p.weight.ptr<float>()[h * v.weight_step + c] + p.weight_offset;
        out[c] = x[c] * inverse * w;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::DoLayerNorm(const LayerNormParams& p) {
  const Vectors v = VectorsOf(p.x, p.weight);
  for (int64_t r = 0; r < v.rows; ++r) {
    for (int64_t h = 0; h < v.heads; ++h) {
      const float* x = At(p.x, r, h);
      float* out = At(p.out, r, h);
      double sum = 0.0;
      for (int64_t c = 0; c < v.dim; ++c) sum += x[c];
      const double mean = sum / static_cast<double>(v.dim);
      double squares = 0.0;
      for (int64_t c = 0; c < v.dim; ++c) squares += (x[c] - mean) * (x[c] - mean);
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(v.dim) + p.eps);
      const int64_t w = h * v.weight_step;
      for (int64_t c = 0; c < v.dim; ++c) {
        const float bias = p.bias.data == nullptr ? 0.0f : p.bias.ptr<float>()[w + c];
        out[c] = static_cast<float>((x[c] - mean) * inverse) * p.weight.ptr<float>()[w + c] + bias;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels

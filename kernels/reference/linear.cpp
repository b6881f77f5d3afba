#include <vector>

#include "config/base/check.h"
#include "kernels/quant.h"
#include "kernels/reference/reference_backend.h"

namespace longstride::kernels {

void ReferenceLinearWeight::ReadRow(int64_t n, float* out) const {
  for (const TensorView& part : parts_) {
    if (n < part.shape[0]) {
      const int64_t row_bytes = IsQuantized(part.dtype) ? RowBytes(part.dtype, part.shape[1])
                                                        : part.strides[0] * BlockBytes(part.dtype);
      DequantizeRow(part.dtype, part.ptr<char>() + n * row_bytes, cols_, out);
      return;
    }
    n -= part.shape[0];
  }
  LS_CHECK(false && "row outside the weight");
}

absl::StatusOr<std::unique_ptr<LinearWeight>> ReferenceBackend::DoPrepareLinear(
    std::span<const TensorView> parts, bool* keeps_views) {
  int64_t rows = 0;
  for (const TensorView& part : parts) rows += part.shape[0];
  if (keeps_views != nullptr) *keeps_views = true;
  return std::make_unique<ReferenceLinearWeight>(parts, rows, parts[0].shape[1]);
}

absl::Status ReferenceBackend::DoLinear(const LinearParams& p) {
  const auto* weight = dynamic_cast<const ReferenceLinearWeight*>(p.weight);
  if (weight == nullptr) return absl::InternalError("Linear: a weight of another backend");
  const int64_t rows = p.x.shape[0];
  const int64_t k_size = weight->cols();
  std::vector<float> w(static_cast<size_t>(k_size));
  for (int64_t n = 0; n < weight->rows(); ++n) {
    weight->ReadRow(n, w.data());
    for (int64_t m = 0; m < rows; ++m) {
      const float* x = p.x.row<float>(m);
      double sum = p.bias.data != nullptr ? p.bias.ptr<float>()[n] : 0.0;
      for (int64_t k = 0; k < k_size; ++k) sum += double{x[k]} * w[k];
      float* out = p.out.row<float>(m) + n;
      *out = static_cast<float>(p.accumulate ? *out + sum : sum);
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels

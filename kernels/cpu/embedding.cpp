#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/quant.h"

namespace longstride::kernels::cpu {

absl::Status CpuBackend::DoEmbedding(const EmbeddingParams& p) {
  const int64_t dim = p.table.shape[1];
  const int64_t row_bytes = IsQuantized(p.table.dtype)
                                ? RowBytes(p.table.dtype, dim)
                                : p.table.strides[0] * BlockBytes(p.table.dtype);
  ForRows(p.out.shape[0], dim, [&](int64_t r) {
    float* out = p.out.row<float>(r);
    DequantizeRow(p.table.dtype, p.table.ptr<char>() + p.ids[r] * row_bytes, dim, out);
    if (p.scale != 1.0f) {
      for (int64_t c = 0; c < dim; ++c) out[c] *= p.scale;
    }
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoGatherRows(const GatherRowsParams& p) {
  for (int64_t r = 0; r < p.out.shape[0]; ++r) {
    std::memcpy(p.out.row<float>(r), p.x.row<float>(p.rows[r]),
                static_cast<size_t>(p.out.shape[1]) * sizeof(float));
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

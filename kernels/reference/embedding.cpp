#include "kernels/quant.h"
#include "kernels/reference/reference_backend.h"

namespace longstride::kernels {

absl::Status ReferenceBackend::DoEmbedding(const EmbeddingParams& p) {
  const int64_t dim = p.table.shape[1];
  const int64_t row_bytes = IsQuantized(p.table.dtype)
                                ? RowBytes(p.table.dtype, dim)
                                : p.table.strides[0] * BlockBytes(p.table.dtype);
  for (int64_t r = 0; r < p.out.shape[0]; ++r) {
    float* out = p.out.row<float>(r);
    DequantizeRow(p.table.dtype, p.table.ptr<char>() + p.ids[r] * row_bytes, dim, out);
    for (int64_t c = 0; c < dim; ++c) out[c] *= p.scale;
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::DoGatherRows(const GatherRowsParams& p) {
  for (int64_t r = 0; r < p.out.shape[0]; ++r) {
    const float* x = p.x.row<float>(p.rows[r]);
    float* out = p.out.row<float>(r);
    for (int64_t c = 0; c < p.out.shape[1]; ++c) out[c] = x[c];
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels

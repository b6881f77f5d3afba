#include <cstring>

#include "kernels/quant.h"
#include "kernels/reference/reference_backend.h"

namespace longstride::kernels {
namespace {

// Stores head_dim values as row `slot` of the head's page that starts at `page`.
void StoreRow(const PagedKv& cache, float scale, char* page, int32_t slot, const float* x) {
  const int64_t dim = cache.head_dim;
  switch (cache.dtype) {
    case KvDType::kF32:
      std::memcpy(reinterpret_cast<float*>(page) + slot * dim, x, dim * sizeof(float));
      return;
    case KvDType::kF16:
    case KvDType::kBF16: {
      auto* row = reinterpret_cast<uint16_t*>(page) + slot * dim;
      for (int64_t c = 0; c < dim; ++c) {
        row[c] = cache.dtype == KvDType::kF16 ? FloatToHalf(x[c]) : FloatToBfloat16(x[c]);
      }
      return;
    }
    case KvDType::kFp8: {
      auto* row = reinterpret_cast<uint8_t*>(page) + slot * dim;
      for (int64_t c = 0; c < dim; ++c) row[c] = FloatToE4m3(x[c] / scale);
      return;
    }
    case KvDType::kQ8: {
      auto* codes = reinterpret_cast<int8_t*>(page) + slot * dim;
      float scale;
      QuantizeKvRow(x, dim, codes, &scale);
      std::memcpy(page + kPageTokens * dim + slot * sizeof(float), &scale, sizeof(scale));
      return;
    }
  }
}

}  // namespace

absl::Status ReferenceBackend::DoKvWrite(const KvWriteParams& p) {
  for (int64_t r = 0; r < p.k.shape[0]; ++r) {
    if (p.page_ids[r] == kNoPage) continue;
    for (int32_t h = 0; h < p.cache.num_heads; ++h) {
      const int64_t offset = p.page_ids[r] * p.cache.page_stride + h * p.cache.head_stride;
      const float* k = p.k.ptr<float>() + r * p.k.strides[0] + h * p.k.strides[1];
      const float* v = p.v.ptr<float>() + r * p.v.strides[0] + h * p.v.strides[1];
      StoreRow(p.cache, p.cache.k_scale, static_cast<char*>(p.cache.k) + offset, p.slots[r], k);
      StoreRow(p.cache, p.cache.v_scale, static_cast<char*>(p.cache.v) + offset, p.slots[r], v);
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels

#include "kernels/cpu/cpu_backend.h"

namespace longstride::kernels::cpu {
namespace {

void StoreRow(const CpuKernels& kernels, const PagedKv& cache, float scale, char* page,
              int64_t slot, const float* x) {
  const int64_t dim = cache.head_dim;
  const bool q8 = cache.dtype == KvDType::kQ8;
  const int64_t row_bytes = q8 ? dim : KvHeadPageBytes(cache.dtype, cache.head_dim) / kPageTokens;
  float* row_scale = q8 ? reinterpret_cast<float*>(page + kPageTokens * dim) + slot : &scale;
  kernels.store_kv(cache.dtype, x, dim, page + slot * row_bytes, row_scale);
}

}  // namespace

absl::Status CpuBackend::DoKvWrite(const KvWriteParams& p) {
  ForRows(p.k.shape[0], 2 * int64_t{p.cache.num_heads} * p.cache.head_dim, [&](int64_t r) {
    if (p.page_ids[r] == kNoPage) return;
    for (int32_t h = 0; h < p.cache.num_heads; ++h) {
      const int64_t offset = p.page_ids[r] * p.cache.page_stride + h * p.cache.head_stride;
      const float* k = p.k.ptr<float>() + r * p.k.strides[0] + h * p.k.strides[1];
      const float* v = p.v.ptr<float>() + r * p.v.strides[0] + h * p.v.strides[1];
      StoreRow(kernels_, p.cache, p.cache.k_scale, static_cast<char*>(p.cache.k) + offset,
               p.slots[r], k);
      StoreRow(kernels_, p.cache, p.cache.v_scale, static_cast<char*>(p.cache.v) + offset,
               p.slots[r], v);
    }
  });
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

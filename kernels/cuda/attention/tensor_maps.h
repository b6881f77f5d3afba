// Tensor maps of queries and of the paged cache for the bulk copy engine. Internal to this folder.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

// Panels of 64 columns, 128-byte swizzle. q: (column, head, row), box 64 x box_heads x box_rows.
cudaError_t EncodeQueryMap(const TensorView& q, int box_heads, int box_rows, CUtensorMap* map);
// Who reads a page: many blocks at about the same time, or one.
enum class PageReads : uint8_t { kShared, kOnce };
// Bytes of a row of a panel of a page with rows of that many.
__host__ __device__ constexpr int PagePanelBytes(int row_bytes) {
  return row_bytes < 128 ? row_bytes : 128;
}
// One of the cache's two halves: (column, token, head, page), box PagePanelBytes x 64 x 1 x 1,
// swizzled as wide as it is: 16 bytes lie where PanelOffset says.
cudaError_t EncodePageMap(const PagedKv& cache, void* base, PageReads reads, CUtensorMap* map);

template <int kPanelRowBytes>
__device__ __forceinline__ uint32_t PanelOffset(int row, int chunk) {
  static_assert(kPanelRowBytes == 64 || kPanelRowBytes == 128);
  const int swizzled = kPanelRowBytes == 128 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
  return static_cast<uint32_t>(row * kPanelRowBytes + (swizzled << 4));
}

}  // namespace longstride::kernels::cuda

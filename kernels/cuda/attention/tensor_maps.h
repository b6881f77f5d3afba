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
// One of the cache's two halves: (column, token, head, page), box 64 x 64 x 1 x 1.
cudaError_t EncodePageMap(const PagedKv& cache, void* base, PageReads reads, CUtensorMap* map);

}  // namespace longstride::kernels::cuda

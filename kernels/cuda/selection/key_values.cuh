// Single values of keys as they lie in a page of one head.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/math.cuh"
#include "kernels/paged_kv.h"

namespace longstride::kernels::cuda {

__device__ __forceinline__ float KeyValue(const __half* page, int32_t slot, int32_t dim,
                                          int32_t d) {
  return __half2float(page[static_cast<int64_t>(slot) * dim + d]);
}
__device__ __forceinline__ float KeyValue(const __nv_bfloat16* page, int32_t slot, int32_t dim,
                                          int32_t d) {
  return __bfloat162float(page[static_cast<int64_t>(slot) * dim + d]);
}
__device__ __forceinline__ float KeyValue(const float* page, int32_t slot, int32_t dim, int32_t d) {
  return page[static_cast<int64_t>(slot) * dim + d];
}
__device__ __forceinline__ float KeyValue(const uint8_t* page, int32_t slot, int32_t dim,
                                          int32_t d) {  // kFp8
  return FromE4m3(page[static_cast<int64_t>(slot) * dim + d]);
}
// kQ8: codes, then a scale for each slot.
__device__ __forceinline__ float KeyValue(const int8_t* page, int32_t slot, int32_t dim,
                                          int32_t d) {
  const auto* scales =
      reinterpret_cast<const float*>(page + static_cast<int64_t>(kPageTokens) * dim);
  return __fmul_rn(static_cast<float>(page[static_cast<int64_t>(slot) * dim + d]), scales[slot]);
}

}  // namespace longstride::kernels::cuda

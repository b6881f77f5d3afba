// Grids for row-wise kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace longstride::kernels::cuda {

inline constexpr int kRowThreads = 256;

// Blocks for `rows` x `columns` elements: x over rows (which may be many), y over column chunks.
struct RowGrid {
  dim3 blocks;
  bool empty;
  RowGrid(int64_t rows, int64_t columns, int columns_per_thread = 1)
      : blocks(static_cast<unsigned>(rows),
               static_cast<unsigned>((columns + int64_t{kRowThreads} * columns_per_thread - 1) /
                                     (int64_t{kRowThreads} * columns_per_thread))),
        empty(rows == 0 || columns == 0) {}
};

// The next kernel of the stream may start its part that does not depend on this one, if it was
// launched to do so (a matrix product, which reads its weights).
__device__ __forceinline__ void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Results as float32 or bf16.
__device__ __forceinline__ void Store(float* to, float x) { *to = x; }
__device__ __forceinline__ void Store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void Store4(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
__device__ __forceinline__ void Store4(__nv_bfloat16* to, float4 x) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y), high = __floats2bfloat162_rn(x.z, x.w);
  uint2 both;
  both.x = reinterpret_cast<const uint32_t&>(low);
  both.y = reinterpret_cast<const uint32_t&>(high);
  *reinterpret_cast<uint2*>(to) = both;
}

}  // namespace longstride::kernels::cuda

// What the dense kernels do other than usual for fp8_128 weights: a step is 128 columns, whose products
// the tensor cores sum with few bits, so that each step's sums are scaled and added in float32.
// Technique: DeepSeek-V3 (arXiv 2412.19437), section 3.3.2.
#pragma once

#include <cuda_fp8.h>

#include <type_traits>

#include "kernels/cuda/linear/hopper.cuh"

namespace longstride::kernels::cuda {

template <typename T>
inline constexpr bool kIsFp8 = std::is_same_v<T, __nv_fp8_e4m3>;
// Which of 16 columns lies at a place (packed_weight.h).
__device__ constexpr int Fp8Column(int place) {
  return place / 4 * 2 + (place & 1) + (place & 2) * 4;
}
// Columns of one step.
template <typename T>
inline constexpr int kStepColumns = 128 / static_cast<int>(sizeof(T));

// Adds one step of 64 weight rows: `part` are this thread's accumulators of its products, `scales` the
// address of the 64 rows' scales in shared memory. The same operations in every kernel: a result's
// bits are one function of its row.
template <int kCount>
__device__ __forceinline__ void AddScaled(const float (&part)[kCount], uint32_t scales,
                                          float (&sum)[kCount]) {
  const int thread = static_cast<int>(threadIdx.x) & 127;
  const uint32_t row = (thread >> 5) * 16 + (thread >> 2 & 7);
  const float w[2] = {__uint_as_float(LoadShared4(scales + row * 4)),
                      __uint_as_float(LoadShared4(scales + row * 4 + 32))};
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] = __fmaf_rn(part[i], w[i >> 1 & 1], sum[i]);
}

}  // namespace longstride::kernels::cuda

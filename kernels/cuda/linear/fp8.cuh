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

// Adds one step of 64 weight rows: `part` are this thread's accumulators of its products,
// `weight_scales` the scales of the 64 rows and `token_scales` those of the activation rows, in shared
// memory; those of every kRun rows lie side by side, `run_bytes` from the next. The same operations in
// every kernel: a result's bits are one function of its row.
template <int kTokens, int kRun = kTokens>
__device__ __forceinline__ void AddScaled(const float (&part)[kTokens / 2], uint32_t weight_scales,
                                          uint32_t token_scales, int run_bytes,
                                          float (&sum)[kTokens / 2]) {
  const int thread = static_cast<int>(threadIdx.x) & 127;
  const uint32_t row = (thread >> 5) * 16 + (thread >> 2 & 7);
  const float w0 = __uint_as_float(LoadShared4(weight_scales + row * 4));
  const float w1 = __uint_as_float(LoadShared4(weight_scales + row * 4 + 32));
#pragma unroll
  for (int i = 0; i < kTokens / 2; i += 4) {
    const int token = i * 2;
    const uint2 pair = LoadShared8(token_scales + token / kRun * run_bytes +
                                   (token % kRun + (thread & 3) * 2) * 4);
    const float x0 = __uint_as_float(pair.x), x1 = __uint_as_float(pair.y);
    sum[i] = __fmaf_rn(part[i], __fmul_rn(x0, w0), sum[i]);
    sum[i + 1] = __fmaf_rn(part[i + 1], __fmul_rn(x1, w0), sum[i + 1]);
    sum[i + 2] = __fmaf_rn(part[i + 2], __fmul_rn(x0, w1), sum[i + 2]);
    sum[i + 3] = __fmaf_rn(part[i + 3], __fmul_rn(x1, w1), sum[i + 3]);
  }
}

}  // namespace longstride::kernels::cuda

// Products of float32 queries with rows of 16-bit values by tensor cores, as exact as float32: each
// head's queries are scaled by a power of two and split into parts of the rows' type whose sum
// differs from them by less than 2^-21 of the head's largest; the parts are rows of one operand,
// and their sums are added. A warp takes 8 rows and 8 heads at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/selection/lists.cuh"

namespace longstride::kernels::cuda {

inline constexpr int kHeadsAtOnce = 8;

template <typename T>
constexpr int kParts = std::is_same_v<T, __half> ? 2 : 3;
// Rows of summaries that a score reads: minimum and maximum, or the mean.
template <PageScore kKind>
constexpr int kRowsRead = kKind == PageScore::kMean ? 1 : 2;

// Values from one row of parts to the next: rows that are read together start in different banks.
__host__ __device__ constexpr int32_t RowStride(int32_t dim) {
  return dim + (dim % 64 == 0 ? 32 : 0);
}

__device__ __forceinline__ void Put(__half* to, float value) { *to = __float2half_rn(value); }
__device__ __forceinline__ void Put(__nv_bfloat16* to, float value) {
  *to = __float2bfloat16_rn(value);
}
__device__ __forceinline__ float Get(__half value) { return __half2float(value); }
__device__ __forceinline__ float Get(__nv_bfloat16 value) { return __bfloat162float(value); }

// Writes head `row`'s scaled queries as parts [rows read][part][kHeadsAtOnce][stride]; returns what
// scores have to be multiplied by. A warp. q: null for a row of zeros.
template <typename T, PageScore kKind>
__device__ __forceinline__ float SplitQueries(const float* q, int32_t dim, int32_t row,
                                              int32_t lane, T* parts) {
  float most = 0.0f;
  for (int32_t d = lane; q != nullptr && d < dim; d += 32) most = fmaxf(most, fabsf(q[d]));
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
  const uint32_t exponent = min(max(__float_as_uint(most) >> 23, 1u), 253u);
  const float down = __uint_as_float((254u - exponent) << 23);
  const int32_t stride = RowStride(dim);
  for (int32_t d = lane; d < dim; d += 32) {
    const float x = q == nullptr ? 0.0f : q[d] * down;
#pragma unroll
    for (int r = 0; r < kRowsRead<kKind>; ++r) {
      // Row 0 of a summary is the minimum, 1 the maximum. What is not a number stays so.
      float rest = x;
      if (kKind == PageScore::kBound && (r == 0 ? x > 0.0f : x < 0.0f)) rest = 0.0f;
#pragma unroll
      for (int part = 0; part < kParts<T>; ++part) {
        T* to = parts + ((r * kParts<T> + part) * kHeadsAtOnce + row) * stride + d;
        Put(to, rest);
        rest -= Get(*to);
      }
    }
  }
  return __uint_as_float(exponent << 23);
}

// acc += the products of 32 channels of 8 heads' parts and 8 pages. x, y, z: 8 channels of a row of
// each part; the order of channels within the 32 is one for both operands.
template <typename T>
__device__ __forceinline__ void Multiply(const T* parts, int32_t stride, const uint4& pages,
                                         float* acc) {
  const uint4 x = *reinterpret_cast<const uint4*>(parts);
  const uint4 y = *reinterpret_cast<const uint4*>(parts + kHeadsAtOnce * stride);
  const uint32_t first[2] = {pages.x, pages.y}, second[2] = {pages.z, pages.w};
  const uint32_t a[4] = {x.x, y.x, x.y, y.y}, b[4] = {x.z, y.z, x.w, y.w};
  Mma16x8x16<T>(acc, a, first);
  Mma16x8x16<T>(acc, b, second);
  if constexpr (kParts<T> == 3) {
    const uint4 z = *reinterpret_cast<const uint4*>(parts + 2 * kHeadsAtOnce * stride);
    const uint32_t c[4] = {z.x, 0, z.y, 0}, d[4] = {z.z, 0, z.w, 0};
    Mma16x8x16<T>(acc, c, first);
    Mma16x8x16<T>(acc, d, second);
  }
}

}  // namespace longstride::kernels::cuda

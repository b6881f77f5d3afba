// Activations to the operands of the tensor cores; see Conversion in product.h. One block a row: the
// largest magnitude first where the type is f16 or e4m3, then the rounding.
// Bound: memory, input once (a second read hits the first-level cache) and output once.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <type_traits>

#include "kernels/cuda/linear/fp8.cuh"
#include "kernels/cuda/linear/hopper.cuh"
#include "kernels/cuda/linear/packed_weight.h"
#include "kernels/cuda/linear/product.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float ToFloat(float v) { return v; }
__device__ float ToFloat(__half v) { return __half2float(v); }
__device__ float ToFloat(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ void FromFloat(float v, __half* out) { *out = __float2half(v); }
__device__ void FromFloat(float v, __nv_bfloat16* out) { *out = __float2bfloat16(v); }

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T v[kCount];
};

__device__ float BlockMax(float value) {
  __shared__ float warps[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float max = 0.0f;
  for (int w = 0; w < kThreads / 32; ++w) max = fmaxf(max, warps[w]);
  return max;
}

// The power of two that brings `largest` into [2^13, 2^14), or 1 where there is none.
__device__ float ScaleFor(float largest) {
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23 & 255);
  if (exponent == 0 || exponent == 255) return 1.0f;  // zero, subnormal, infinite
  const int wanted = 127 + 13 - (exponent - 127);     // biased exponent of the factor
  // The factor and its inverse stay normal numbers.
  return __uint_as_float(static_cast<uint32_t>(min(max(wanted, 1), 252)) << 23);
}

template <typename X, typename T, int kVector>
__global__ void __launch_bounds__(kThreads) ConvertRows(const Conversion c) {
  BeginOverlapped();
  const int64_t row = blockIdx.x;
  const int64_t source = c.source_rows == nullptr ? row : c.source_rows[row];
  if (source < 0) return;
  const auto* x = static_cast<const X*>(c.x.data) + source * c.x.strides[0];
  auto* out = static_cast<T*>(c.out) + row * c.pitch;
  const float factor = c.factors == nullptr ? 1.0f : c.factors[row];
  const int64_t cols = c.x.shape[1];
  float scale = 1.0f;
  if constexpr (std::is_same_v<T, __half>) {
    float max = 0.0f;
    for (int64_t k = threadIdx.x * kVector; k < cols; k += kThreads * kVector) {
      const auto v = *reinterpret_cast<const Pack<X, kVector>*>(x + k);
#pragma unroll
      for (int i = 0; i < kVector; ++i) max = fmaxf(max, fabsf(ToFloat(v.v[i]) * factor));
    }
    scale = ScaleFor(BlockMax(max));
    if (threadIdx.x == 0) c.row_scale[row] = 1.0f / scale;
  }
  for (int64_t k = threadIdx.x * kVector; k < cols; k += kThreads * kVector) {
    const auto v = *reinterpret_cast<const Pack<X, kVector>*>(x + k);
    Pack<T, kVector> to;
#pragma unroll
    for (int i = 0; i < kVector; ++i) FromFloat(ToFloat(v.v[i]) * factor * scale, &to.v[i]);
    *reinterpret_cast<Pack<T, kVector>*>(out + k) = to;
  }
}

// Vectors of 4 where rows are aligned for them.
template <typename X, typename T>
cudaError_t Launch(const Conversion& c, cudaStream_t stream) {
  const bool aligned = c.x.shape[1] % 4 == 0 && c.x.strides[0] % 4 == 0 && c.pitch % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(c.x.data) % (4 * sizeof(X)) == 0;
  const auto rows = static_cast<unsigned>(c.rows);
  return LaunchOverlapped(aligned ? ConvertRows<X, T, 4> : ConvertRows<X, T, 1>, rows, kThreads, 0,
                          stream, c);
}

// Rows to e4m3: a thread takes 16 columns at a time.
constexpr int kFp8Threads = 1024;  // at most
// Rows without a larger element are scaled as if they had one: the quotient stays finite.
constexpr float kFp8Least = 1e-30f;

template <typename X, bool kAligned>
struct Fp8Row {
  const X* x;
  float factor;

  // Rounded to bf16; returns the largest magnitude.
  __device__ __forceinline__ float Load(int64_t column, float (&v)[16]) const {
    constexpr int kVector = kAligned ? 16 / sizeof(X) : 1;
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i += kVector) {
      const auto some = *reinterpret_cast<const Pack<X, kVector>*>(x + column + i);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        v[i + j] = __bfloat162float(__float2bfloat16(ToFloat(some.v[j]) * factor));
        largest = fmaxf(largest, fabsf(v[i + j]));
      }
    }
    return largest;
  }
};

__device__ __forceinline__ uint4 ToFp8(const float (&v)[16], float scale) {
  uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    uint32_t pairs[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int place = w * 4 + i * 2;
      pairs[i] = __nv_cvt_float2_to_fp8x2(
          make_float2(v[Fp8Column(place)] * scale, v[Fp8Column(place + 1)] * scale), __NV_SATFINITE,
          __NV_E4M3);
    }
    words[w] = pairs[0] | pairs[1] << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename X, bool kAligned>
__global__ void __launch_bounds__(kFp8Threads) ConvertToFp8(const Conversion c) {
  BeginOverlapped();
  const int64_t row = blockIdx.x;
  const int64_t source = c.source_rows == nullptr ? row : c.source_rows[row];
  if (source < 0) return;
  const Fp8Row<X, kAligned> from = {static_cast<const X*>(c.x.data) + source * c.x.strides[0],
                                    c.factors == nullptr ? 1.0f : c.factors[row]};
  auto* out = static_cast<uint8_t*>(c.out) + row * c.pitch;
  const int64_t cols = c.x.shape[1], first = int64_t{threadIdx.x} * 16;
  const int64_t step = int64_t{blockDim.x} * 16;
  float v[16], largest = kFp8Least;
  if (first < cols) largest = fmaxf(largest, from.Load(first, v));
  for (int64_t k = first + step; k < cols; k += step) {
    float others[16];
    largest = fmaxf(largest, from.Load(k, others));
  }
  __shared__ float warps[kFp8Threads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) largest = fmaxf(largest, warps[w]);
  const float scale = __fdiv_rn(448.0f, largest);
  if (threadIdx.x == 0) c.row_scale[row] = __fdiv_rn(largest, 448.0f);
  for (int64_t k = first; k < cols; k += step) {
    if (k != first) from.Load(k, v);
    *reinterpret_cast<uint4*>(out + k) = ToFp8(v, scale);
  }
}

template <typename X>
cudaError_t LaunchFp8(const Conversion& c, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(X);
  const bool aligned =
      c.x.strides[0] % kVector == 0 && reinterpret_cast<uintptr_t>(c.x.data) % 16 == 0;
  const int64_t wanted = CeilDiv(c.x.shape[1] / 16, 32) * 32;
  const auto rows = static_cast<unsigned>(c.rows);
  const auto threads = static_cast<unsigned>(wanted < kFp8Threads ? wanted : kFp8Threads);
  return LaunchOverlapped(aligned ? ConvertToFp8<X, true> : ConvertToFp8<X, false>, rows, threads, 0,
                          stream, c);
}

template <typename X>
cudaError_t LaunchFrom(const Conversion& c, cudaStream_t stream) {
  switch (c.to) {
    case DType::kF8E4M3: return LaunchFp8<X>(c, stream);
    case DType::kF16: return Launch<X, __half>(c, stream);
    default: return Launch<X, __nv_bfloat16>(c, stream);
  }
}

}  // namespace

cudaError_t LaunchConversion(const Conversion& c, cudaStream_t stream) {
  if (c.rows == 0) return cudaSuccess;
  switch (c.x.dtype) {
    case DType::kF32: return LaunchFrom<float>(c, stream);
    case DType::kF16: return LaunchFrom<__half>(c, stream);
    case DType::kBF16: return LaunchFrom<__nv_bfloat16>(c, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace longstride::kernels::cuda

// Activations to the 16-bit operands of the tensor cores; see Conversion in product.h. One block a
// row: the largest magnitude first where the type is f16, then the rounding.
// Bound: memory, input once (a second read hits the first-level cache) and output once.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

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
  LetDependentsStart();
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
void Launch(const Conversion& c, cudaStream_t stream) {
  const bool aligned = c.x.shape[1] % 4 == 0 && c.x.strides[0] % 4 == 0 && c.pitch % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(c.x.data) % (4 * sizeof(X)) == 0;
  const auto rows = static_cast<unsigned>(c.rows);
  if (aligned) {
    ConvertRows<X, T, 4><<<rows, kThreads, 0, stream>>>(c);
  } else {
    ConvertRows<X, T, 1><<<rows, kThreads, 0, stream>>>(c);
  }
}

template <typename X>
cudaError_t LaunchFrom(const Conversion& c, cudaStream_t stream) {
  if (c.to == DType::kF16) {
    Launch<X, __half>(c, stream);
  } else {
    Launch<X, __nv_bfloat16>(c, stream);
  }
  return cudaGetLastError();
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

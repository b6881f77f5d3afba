// Products with f32 weights, in float32: routers, small heads, tests. One warp for each output
// column and up to 8 activation rows; lanes take every 32nd column of K in ascending order and are
// added in a fixed tree, so a row's bits depend on K alone.
// Bound: memory for few rows; for many, FP32 arithmetic at a fraction of its peak.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/linear/packed_weight.h"
#include "kernels/cuda/linear/product.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kWarps = 8;

__device__ float ToFloat(float v) { return v; }
__device__ float ToFloat(__half v) { return __half2float(v); }
__device__ float ToFloat(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ void Store(const FloatProduct& p, int64_t at, float value) {
  if (p.out_dtype == DType::kF32) {
    auto* out = static_cast<float*>(p.out) + at;
    *out = p.accumulate ? *out + value : value;
  } else if (p.out_dtype == DType::kBF16) {
    auto* out = static_cast<__nv_bfloat16*>(p.out) + at;
    *out = __float2bfloat16(p.accumulate ? __bfloat162float(*out) + value : value);
  } else {
    auto* out = static_cast<__half*>(p.out) + at;
    *out = __float2half(p.accumulate ? __half2float(*out) + value : value);
  }
}

template <typename X>
__global__ void __launch_bounds__(kWarps * 32) FloatProductKernel(const FloatProduct p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t n = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  int64_t row_begin = int64_t{blockIdx.y} * kFloatTileRows;
  int64_t rows = p.x.shape[0] - row_begin;
  const float* weight = p.weight;
  const float* bias = p.bias;
  if (p.tiles != nullptr) {
    if (static_cast<int>(blockIdx.y) >= *p.num_tiles) return;
    const GroupTile t = p.tiles[blockIdx.y];
    row_begin = t.row_begin;
    rows = t.rows;
    weight = p.group_weights[t.group];
    if (bias != nullptr) bias += t.group * p.bias_stride;
  }
  if (n >= p.n) return;
  const int count = static_cast<int>(rows < kFloatTileRows ? rows : kFloatTileRows);
  const int64_t cols = p.x.shape[1], stride = p.x.strides[0];
  const auto* x = static_cast<const X*>(p.x.data) + row_begin * stride;
  const float* w = weight + n * cols;
  float sum[kFloatTileRows] = {};
  for (int64_t k = lane; k < cols; k += 32) {
    const float v = w[k];
#pragma unroll
    for (int r = 0; r < kFloatTileRows; ++r) {
      if (r < count) sum[r] = fmaf(ToFloat(x[r * stride + k]), v, sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kFloatTileRows; ++r) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], offset);
    }
    if (lane == r && r < count) {
      Store(p, (row_begin + r) * p.out_stride + n, sum[r] + (bias == nullptr ? 0.0f : bias[n]));
    }
  }
}

}  // namespace

cudaError_t LaunchFloatProduct(const FloatProduct& p, cudaStream_t stream) {
  const int64_t tiles = p.tiles != nullptr ? p.max_tiles : CeilDiv(p.x.shape[0], kFloatTileRows);
  if (tiles == 0 || p.n == 0) return cudaSuccess;
  // The grid's y stops at 65535; longer calls go in slices.
  constexpr int64_t kSlice = 32768;
  for (int64_t first = 0; first < tiles; first += kSlice) {
    FloatProduct slice = p;
    if (p.tiles == nullptr && first > 0) {
      const int64_t rows = first * kFloatTileRows;
      const auto x_bytes = static_cast<int64_t>(BlockBytes(p.x.dtype));
      slice.x.data = static_cast<char*>(p.x.data) + rows * p.x.strides[0] * x_bytes;
      slice.x.shape[0] -= rows;
      slice.out = static_cast<char*>(p.out) + rows * p.out_stride * BlockBytes(p.out_dtype);
    } else if (first > 0) {
      return cudaErrorInvalidValue;
    }
    const int64_t count = tiles - first < kSlice ? tiles - first : kSlice;
    const dim3 grid(static_cast<unsigned>(CeilDiv(p.n, kWarps)), static_cast<unsigned>(count));
    switch (p.x.dtype) {
      case DType::kF32: FloatProductKernel<float><<<grid, kWarps * 32, 0, stream>>>(slice); break;
      case DType::kF16: FloatProductKernel<__half><<<grid, kWarps * 32, 0, stream>>>(slice); break;
      case DType::kBF16:
        FloatProductKernel<__nv_bfloat16><<<grid, kWarps * 32, 0, stream>>>(slice);
        break;
      default: return cudaErrorInvalidValue;
    }
  }
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

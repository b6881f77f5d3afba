// Computes Rope and PositionScale (op_params.h), in place.
// Inputs: x f32 [rows, heads, head_dim], strided rows and heads; positions i32 [rows]; inv_freq f32.
// A thread takes one frequency of one row and rotates that pair in a few heads: the sine and cosine
// (of the angle rounded to float32, as the reference does; full range reduction) are shared by them.
// Bound: memory, 8 bytes an element. Arch: any. Source: arXiv 2104.09864.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/ops.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kHeadsPerThread = 4;

struct RopeShape {
  float* x;
  const int32_t* positions;
  const float* inv_freq;
  int64_t row_stride, head_stride;
  int32_t heads, frequencies;
  bool interleaved;
  float scale;
};

__global__ void __launch_bounds__(kRowThreads) RopeKernel(const RopeShape p) {
  LetDependentsStart();
  const int64_t row = blockIdx.x;
  const int task = static_cast<int>(blockIdx.y) * kRowThreads + static_cast<int>(threadIdx.x);
  const int f = task % p.frequencies;
  const int first = task / p.frequencies * kHeadsPerThread;
  if (first >= p.heads) return;
  const float angle = __fmul_rn(static_cast<float>(p.positions[row]), p.inv_freq[f]);
  float sine, cosine;
  sincosf(angle, &sine, &cosine);
  sine *= p.scale;
  cosine *= p.scale;
  WaitForPredecessors();
  const int a = p.interleaved ? 2 * f : f;
  const int b = p.interleaved ? 2 * f + 1 : f + p.frequencies;
  float* x = p.x + row * p.row_stride;
  // All of them are on their way before the first is stored: one wait for memory.
  float va[kHeadsPerThread], vb[kHeadsPerThread];
#pragma unroll
  for (int i = 0; i < kHeadsPerThread; ++i) {
    if (first + i >= p.heads) break;
    const float* head = x + (first + i) * p.head_stride;
    va[i] = head[a];
    vb[i] = head[b];
  }
#pragma unroll
  for (int i = 0; i < kHeadsPerThread; ++i) {
    if (first + i >= p.heads) break;
    float* head = x + (first + i) * p.head_stride;
    head[a] = va[i] * cosine - vb[i] * sine;
    head[b] = va[i] * sine + vb[i] * cosine;
  }
}

struct ScaleShape {
  float* x;
  const int32_t* positions;
  int64_t row_stride, head_stride;
  int32_t heads, dim;
  float attn_scale, floor_scale;
};

__global__ void __launch_bounds__(kRowThreads) PositionScaleKernel(const ScaleShape p) {
  BeginOverlapped();
  const int64_t row = blockIdx.x;
  const int64_t at = static_cast<int64_t>(blockIdx.y) * kRowThreads + threadIdx.x;
  if (at >= static_cast<int64_t>(p.heads) * p.dim) return;
  const float steps = floorf((static_cast<float>(p.positions[row]) + 1.0f) / p.floor_scale);
  float* x = p.x + row * p.row_stride + at / p.dim * p.head_stride + at % p.dim;
  *x *= 1.0f + p.attn_scale * logf(1.0f + steps);
}

}  // namespace

cudaError_t LaunchRope(const RopeParams& p, cudaStream_t stream) {
  const RopeShape shape = {p.x.ptr<float>(),
                           p.positions,
                           p.inv_freq,
                           p.x.strides[0],
                           p.x.strides[1],
                           static_cast<int32_t>(p.x.shape[1]),
                           p.num_frequencies,
                           p.interleaved,
                           p.scale};
  const int64_t tasks =
      (p.x.shape[1] + kHeadsPerThread - 1) / kHeadsPerThread * p.num_frequencies;
  const RowGrid grid(p.x.shape[0], tasks);
  if (grid.empty) return cudaSuccess;
  return LaunchOverlapped(RopeKernel, grid.blocks, kRowThreads, 0, stream, shape);
}

cudaError_t LaunchPositionScale(const PositionScaleParams& p, cudaStream_t stream) {
  const ScaleShape shape = {p.x.ptr<float>(),
                            p.positions,
                            p.x.strides[0],
                            p.x.strides[1],
                            static_cast<int32_t>(p.x.shape[1]),
                            static_cast<int32_t>(p.x.shape[2]),
                            p.attn_scale,
                            p.floor_scale};
  const RowGrid grid(p.x.shape[0], p.x.shape[1] * p.x.shape[2]);
  if (grid.empty) return cudaSuccess;
  return LaunchOverlapped(PositionScaleKernel, grid.blocks, kRowThreads, 0, stream, shape);
}

}  // namespace longstride::kernels::cuda

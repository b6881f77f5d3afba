// Computes MergeAttention (attention_parts.h).
// Inputs: parts f32 [rows, heads, head_dim], strided rows and heads; lse f32 [rows, heads]; out f32
// or bf16. A thread takes one channel and computes the weights for itself; those of a head share
// what they read. Bound: memory, 4 bytes an element and part read, 4 (2 in bf16) written. Arch:
// any.
#include "kernels/cuda/attention/merge_parts.h"

#include <cmath>

#include "kernels/cuda/device/launch.cuh"

namespace longstride::kernels::cuda {
namespace {

template <typename Out>
struct Merge {
  const float* parts[kMaxAttentionParts];
  int64_t rows[kMaxAttentionParts], heads[kMaxAttentionParts];  // strides
  const float* lse[kMaxAttentionParts];
  Out* out;
  int64_t out_row, out_head;
  int32_t num_parts, num_heads, dim;
};

template <typename Out>
__global__ void __launch_bounds__(kRowThreads) MergeKernel(const Merge<Out> p) {
  BeginOverlapped();
  const int64_t row = blockIdx.x;
  const int at = static_cast<int>(blockIdx.y) * kRowThreads + static_cast<int>(threadIdx.x);
  if (at >= p.num_heads * p.dim) return;
  const int head = at / p.dim, c = at % p.dim;
  float lse[kMaxAttentionParts];
  float max = -INFINITY;
  bool any = false;
#pragma unroll
  for (int i = 0; i < kMaxAttentionParts; ++i) {
    lse[i] = i < p.num_parts ? p.lse[i][row * p.num_heads + head] : -INFINITY;
    max = fmaxf(max, lse[i]);
    any = any || lse[i] != -INFINITY;  // NaN is not nothing
  }
  float sum = 0.0f, total = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxAttentionParts; ++i) {
    if (i >= p.num_parts || lse[i] == -INFINITY) continue;
    const float weight = expf(lse[i] - max);
    total += weight;
    sum += weight * p.parts[i][row * p.rows[i] + head * p.heads[i] + c];
  }
  Store(p.out + row * p.out_row + head * p.out_head + c, any ? sum / total : 0.0f);
}

template <typename Out>
cudaError_t Launch(const MergeAttentionParams& a, cudaStream_t stream) {
  Merge<Out> p = {};
  for (int32_t i = 0; i < a.num_parts; ++i) {
    p.parts[i] = a.parts[i].ptr<const float>();
    p.rows[i] = a.parts[i].strides[0];
    p.heads[i] = a.parts[i].strides[1];
    p.lse[i] = a.lse[i];
  }
  p.out = a.out.ptr<Out>();
  p.out_row = a.out.strides[0];
  p.out_head = a.out.strides[1];
  p.num_parts = a.num_parts;
  p.num_heads = static_cast<int32_t>(a.out.shape[1]);
  p.dim = static_cast<int32_t>(a.out.shape[2]);
  const RowGrid grid(a.out.shape[0], a.out.shape[1] * a.out.shape[2]);
  if (grid.empty) return cudaSuccess;
  return LaunchOverlapped(MergeKernel<Out>, grid.blocks, kRowThreads, 0, stream, p);
}

}  // namespace

cudaError_t LaunchMergeAttention(const MergeAttentionParams& p, cudaStream_t stream) {
  return p.out.dtype == DType::kBF16 ? Launch<__nv_bfloat16>(p, stream) : Launch<float>(p, stream);
}

}  // namespace longstride::kernels::cuda

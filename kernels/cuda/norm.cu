// Computes RmsNorm and LayerNorm (op_params.h) over the last dimension.
// Inputs: x f32, out f32 or bf16 [rows, dim] or [rows, heads, dim], strided rows and heads; weight and bias f32
// [dim] or [heads * dim], nullable. Accumulation float32: within 4e-6 of the reference, relative.
// A block for each vector, which holds it in registers where it fits, or a warp where vectors are short
// (heads). LayerNorm's variance is of the differences from the mean.
// Bound: memory, 8 bytes an element. Arch: any. Sources: arXiv 1910.07467, arXiv 1607.06450.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/ops.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int64_t kShortVector = 512;  // up to here a warp takes a vector

struct Shape {
  int64_t vectors, heads, dim;
  int64_t x_row, x_head, out_row, out_head;  // strides in elements
  int64_t weight_head;                       // from one head's weights to the next
};

struct Weights {
  const float* weight;
  const float* bias;
  float offset, eps;
};

template <int kThreads>
__device__ float GroupSum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  if constexpr (kThreads > 32) {
    __shared__ float warps[kThreads / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0.0f;
    for (int w = 0; w < kThreads / 32; ++w) value += warps[w];
  }
  return value;
}

constexpr int kHeldFours = 8;  // of a thread
constexpr int64_t kHeldDim = int64_t{kHeldFours} * 4 * kRowThreads;

__device__ __forceinline__ float4 Load4(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}

// A vector in registers: one wait for memory. The weights do not depend on what ran before.
template <bool kLayerNorm, typename Out>
__global__ void __launch_bounds__(kRowThreads)
    HeldNormKernel(const float* x, Out* out, const Shape s, const Weights w) {
  LetDependentsStart();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x / s.heads, head = blockIdx.x % s.heads;
  x += row * s.x_row + head * s.x_head;
  out += row * s.out_row + head * s.out_head;
  const float* weight = w.weight == nullptr ? nullptr : w.weight + head * s.weight_head;
  const float* bias = w.bias == nullptr ? nullptr : w.bias + head * s.weight_head;
  float4 scale[kHeldFours], v[kHeldFours];
#pragma unroll
  for (int i = 0; i < kHeldFours; ++i) {
    const int64_t c = (i * kRowThreads + thread) * 4;
    scale[i] = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    if (weight == nullptr || c >= s.dim) continue;
    const float4 t = Load4(weight + c);
    scale[i] = make_float4(t.x + w.offset, t.y + w.offset, t.z + w.offset, t.w + w.offset);
  }
  WaitForPredecessors();
#pragma unroll
  for (int i = 0; i < kHeldFours; ++i) {
    const int64_t c = (i * kRowThreads + thread) * 4;
    v[i] = c < s.dim ? Load4(x + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  float mean = 0.0f;
  if constexpr (kLayerNorm) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeldFours; ++i) sum += (v[i].x + v[i].y) + (v[i].z + v[i].w);
    mean = GroupSum<kRowThreads>(sum) / static_cast<float>(s.dim);
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeldFours; ++i) {
    if ((i * kRowThreads + thread) * 4 >= s.dim) continue;
    v[i] = make_float4(v[i].x - mean, v[i].y - mean, v[i].z - mean, v[i].w - mean);
    squares += (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
  }
  const float variance = GroupSum<kRowThreads>(squares) / static_cast<float>(s.dim);
  const float inverse = rsqrtf(variance + w.eps);
#pragma unroll
  for (int i = 0; i < kHeldFours; ++i) {
    const int64_t c = (i * kRowThreads + thread) * 4;
    if (c >= s.dim) continue;
    const float4 b = bias == nullptr ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : Load4(bias + c);
    Store4(out + c, make_float4(v[i].x * inverse * scale[i].x + b.x, v[i].y * inverse * scale[i].y + b.y,
                                v[i].z * inverse * scale[i].z + b.z, v[i].w * inverse * scale[i].w + b.w));
  }
}

bool HoldsFours(const Shape& s, const void* x, const void* out, const Weights& w) {
  const auto addresses = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(out) |
                         reinterpret_cast<uintptr_t>(w.weight) | reinterpret_cast<uintptr_t>(w.bias);
  return s.dim <= kHeldDim && addresses % 16 == 0 &&
         (s.dim | s.x_row | s.x_head | s.out_row | s.out_head | s.weight_head) % 4 == 0;
}

// kThreads of a block of kRowThreads work on one vector.
template <bool kLayerNorm, int kThreads, typename Out>
__global__ void __launch_bounds__(kRowThreads)
    NormKernel(const float* x, Out* out, const Shape s, const Weights w) {
  BeginOverlapped();
  constexpr int kVectors = kRowThreads / kThreads;
  const int64_t vector = static_cast<int64_t>(blockIdx.x) * kVectors + threadIdx.x / kThreads;
  if (vector >= s.vectors) return;
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const int64_t row = vector / s.heads, head = vector % s.heads;
  x += row * s.x_row + head * s.x_head;
  out += row * s.out_row + head * s.out_head;
  const float* weight = w.weight == nullptr ? nullptr : w.weight + head * s.weight_head;
  const float* bias = w.bias == nullptr ? nullptr : w.bias + head * s.weight_head;
  float mean = 0.0f;
  if constexpr (kLayerNorm) {
    float sum = 0.0f;
    for (int64_t c = thread; c < s.dim; c += kThreads) sum += x[c];
    mean = GroupSum<kThreads>(sum) / static_cast<float>(s.dim);
  }
  float squares = 0.0f;
  for (int64_t c = thread; c < s.dim; c += kThreads) squares += (x[c] - mean) * (x[c] - mean);
  const float variance = GroupSum<kThreads>(squares) / static_cast<float>(s.dim);
  const float inverse = rsqrtf(variance + w.eps);
  for (int64_t c = thread; c < s.dim; c += kThreads) {
    const float scale = weight == nullptr ? 1.0f : weight[c] + w.offset;
    Store(out + c, (x[c] - mean) * inverse * scale + (bias == nullptr ? 0.0f : bias[c]));
  }
}

template <bool kLayerNorm, typename Out>
cudaError_t LaunchTo(const TensorView& x, const TensorView& out, int64_t weight_size,
                   const Weights& w, cudaStream_t stream) {
  const bool per_head = x.rank == 3;
  Shape s;
  s.heads = per_head ? x.shape[1] : 1;
  s.vectors = x.shape[0] * s.heads;
  s.dim = x.shape[x.rank - 1];
  s.x_row = x.strides[0];
  s.out_row = out.strides[0];
  s.x_head = per_head ? x.strides[1] : 0;
  s.out_head = per_head ? out.strides[1] : 0;
  s.weight_head = s.heads > 1 && weight_size == s.heads * s.dim ? s.dim : 0;
  if (s.vectors == 0 || s.dim == 0) return cudaSuccess;
  const float* from = x.ptr<const float>();
  Out* to = out.ptr<Out>();
  if (s.dim <= kShortVector && s.heads > 1) {
    constexpr int kVectors = kRowThreads / 32;
    const auto blocks = static_cast<unsigned>((s.vectors + kVectors - 1) / kVectors);
    return LaunchOverlapped(NormKernel<kLayerNorm, 32, Out>, blocks, kRowThreads, 0, stream, from, to, s,
                            w);
  }
  return LaunchOverlapped(HoldsFours(s, from, to, w) ? HeldNormKernel<kLayerNorm, Out>
                                                     : NormKernel<kLayerNorm, kRowThreads, Out>,
                          static_cast<unsigned>(s.vectors), kRowThreads, 0, stream, from, to, s, w);
}

template <bool kLayerNorm>
cudaError_t Launch(const TensorView& x, const TensorView& out, int64_t weight_size,
                   const Weights& w, cudaStream_t stream) {
  return out.dtype == DType::kBF16
             ? LaunchTo<kLayerNorm, __nv_bfloat16>(x, out, weight_size, w, stream)
             : LaunchTo<kLayerNorm, float>(x, out, weight_size, w, stream);
}

int64_t SizeOf(const TensorView& weight) { return weight.data == nullptr ? 0 : weight.shape[0]; }

}  // namespace

cudaError_t LaunchRmsNorm(const RmsNormParams& p, cudaStream_t stream) {
  return Launch<false>(p.x, p.out, SizeOf(p.weight),
                       {p.weight.ptr<const float>(), nullptr, p.weight_offset, p.eps}, stream);
}

cudaError_t LaunchLayerNorm(const LayerNormParams& p, cudaStream_t stream) {
  return Launch<true>(p.x, p.out, SizeOf(p.weight),
                      {p.weight.ptr<const float>(), p.bias.ptr<const float>(), 0.0f, p.eps},
                      stream);
}

}  // namespace longstride::kernels::cuda

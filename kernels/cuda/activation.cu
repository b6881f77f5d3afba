// Computes GatedActivation, Add and Softcap (op_params.h), elementwise over [rows, dim].
// Inputs: f32, strided rows (those of GatedActivation also bf16); four elements a thread where rows are
// aligned to that, else one. Bound: memory, 12 (8 for Softcap, 6 in bf16) bytes an element. Arch: any.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/ops.h"

namespace longstride::kernels::cuda {
namespace {

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Gate {
  Activation activation;
  float limit;
  bool gated;  // false: `up` counts as 1
  __device__ float operator()(float gate, float up) const {
    if (!gated) up = 1.0f;
    switch (activation) {
      case Activation::kSilu:
        return gate * Sigmoid(gate) * up;
      case Activation::kGeluTanh: {
        const float inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
        return 0.5f * gate * (1.0f + tanhf(inner)) * up;
      }
      case Activation::kGelu:
        return 0.5f * gate * (1.0f + erff(gate * 0.7071067812f)) * up;
      case Activation::kSwigluOai: {
        const float g = fminf(gate, limit);
        const float u = fmaxf(-limit, fminf(up, limit));
        return (u + 1.0f) * g * Sigmoid(1.702f * g);
      }
    }
    return 0.0f;
  }
};

struct WeightedSum {
  float a, b;
  __device__ float operator()(float x, float y) const { return a * x + b * y; }
};

struct Cap {
  float scale, softcap;
  __device__ float operator()(float x, float) const {
    const float s = scale * x;
    return softcap > 0.0f ? softcap * tanhf(s / softcap) : s;
  }
};

template <typename In, typename Out>
struct Operands {
  const In* x;
  const In* y;
  Out* out;
  int64_t x_row, y_row, out_row, dim;
};

__device__ __forceinline__ float Load(const float* from) { return *from; }
__device__ __forceinline__ float Load(const __nv_bfloat16* from) { return __bfloat162float(*from); }
__device__ __forceinline__ float4 Load4(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
__device__ __forceinline__ float4 Load4(const __nv_bfloat16* from) {
  const uint2 both = *reinterpret_cast<const uint2*>(from);
  return make_float4(__uint_as_float(both.x << 16), __uint_as_float(both.x & 0xffff0000u),
                     __uint_as_float(both.y << 16), __uint_as_float(both.y & 0xffff0000u));
}

template <int kWidth, typename In, typename Out, typename Op>
__global__ void __launch_bounds__(kRowThreads) BinaryKernel(const Operands<In, Out> o, const Op op) {
  BeginOverlapped();
  const int64_t row = blockIdx.x;
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kRowThreads + threadIdx.x) * kWidth;
  if (c >= o.dim) return;
  const In* x = o.x + row * o.x_row + c;
  const In* y = o.y + row * o.y_row + c;
  Out* out = o.out + row * o.out_row + c;
  if constexpr (kWidth == 4) {
    const float4 a = Load4(x), b = Load4(y);
    Store4(out, make_float4(op(a.x, b.x), op(a.y, b.y), op(a.z, b.z), op(a.w, b.w)));
  } else {
    Store(out, op(Load(x), Load(y)));
  }
}

template <typename In, typename Out, typename Op>
cudaError_t LaunchTo(const TensorView& x, const TensorView& y, const TensorView& out, Op op,
                     cudaStream_t stream) {
  const Operands<In, Out> o = {x.ptr<In>(),  y.ptr<In>(),    out.ptr<Out>(), x.strides[0],
                               y.strides[0], out.strides[0], out.shape[1]};
  const int64_t rows = out.shape[0];
  const auto addresses = reinterpret_cast<uintptr_t>(o.x) | reinterpret_cast<uintptr_t>(o.y) |
                         reinterpret_cast<uintptr_t>(o.out);
  const bool wide = addresses % 16 == 0 && (o.x_row | o.y_row | o.out_row | o.dim) % 4 == 0;
  const RowGrid grid(rows, o.dim, wide ? 4 : 1);
  if (grid.empty) return cudaSuccess;
  return LaunchOverlapped(wide ? BinaryKernel<4, In, Out, Op> : BinaryKernel<1, In, Out, Op>,
                          grid.blocks, kRowThreads, 0, stream, o, op);
}

template <typename Op>
cudaError_t Launch(const TensorView& x, const TensorView& y, const TensorView& out, Op op,
                   cudaStream_t stream) {
  return LaunchTo<float, float>(x, y, out, op, stream);
}

}  // namespace

cudaError_t LaunchGatedActivation(const GatedActivationParams& p, cudaStream_t stream) {
  const TensorView& up = p.up.data == nullptr ? p.gate : p.up;
  const Gate gate{p.activation, p.limit, p.up.data != nullptr};
  if (p.gate.dtype == DType::kBF16) {
    return LaunchTo<__nv_bfloat16, __nv_bfloat16>(p.gate, up, p.out, gate, stream);
  }
  return p.out.dtype == DType::kBF16
             ? LaunchTo<float, __nv_bfloat16>(p.gate, up, p.out, gate, stream)
             : Launch(p.gate, up, p.out, gate, stream);
}

cudaError_t LaunchAdd(const AddParams& p, cudaStream_t stream) {
  return Launch(p.x, p.y, p.out, WeightedSum{p.a, p.b}, stream);
}

cudaError_t LaunchSoftcap(const SoftcapParams& p, cudaStream_t stream) {
  return Launch(p.x, p.x, p.x, Cap{p.scale, p.softcap}, stream);
}

}  // namespace longstride::kernels::cuda

// Computes GatedActivation, Add and Softcap (op_params.h), elementwise over [rows, dim].
// Inputs: f32, strided rows (the result of GatedActivation also bf16); four elements a thread where rows are aligned to 16 bytes, else one.
// Bound: memory, 12 (8 for Softcap) bytes an element. Arch: any.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/ops.h"

namespace longstride::kernels::cuda {
namespace {

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Gate {
  Activation activation;
  float limit;
  __device__ float operator()(float gate, float up) const {
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

template <typename Out>
struct Operands {
  const float* x;
  const float* y;
  Out* out;
  int64_t x_row, y_row, out_row, dim;
};

template <int kWidth, typename Out, typename Op>
__global__ void __launch_bounds__(kRowThreads) BinaryKernel(const Operands<Out> o, const Op op) {
  BeginOverlapped();
  const int64_t row = blockIdx.x;
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kRowThreads + threadIdx.x) * kWidth;
  if (c >= o.dim) return;
  const float* x = o.x + row * o.x_row + c;
  const float* y = o.y + row * o.y_row + c;
  Out* out = o.out + row * o.out_row + c;
  if constexpr (kWidth == 4) {
    const float4 a = *reinterpret_cast<const float4*>(x), b = *reinterpret_cast<const float4*>(y);
    Store4(out, make_float4(op(a.x, b.x), op(a.y, b.y), op(a.z, b.z), op(a.w, b.w)));
  } else {
    Store(out, op(*x, *y));
  }
}

template <typename Out, typename Op>
cudaError_t LaunchTo(const TensorView& x, const TensorView& y, const TensorView& out, Op op,
                   cudaStream_t stream) {
  const Operands<Out> o = {x.ptr<float>(), y.ptr<float>(), out.ptr<Out>(), x.strides[0],
                           y.strides[0],   out.strides[0], out.shape[1]};
  const int64_t rows = out.shape[0];
  const auto addresses = reinterpret_cast<uintptr_t>(o.x) | reinterpret_cast<uintptr_t>(o.y) |
                         reinterpret_cast<uintptr_t>(o.out);
  const bool wide = addresses % 16 == 0 && (o.x_row | o.y_row | o.out_row | o.dim) % 4 == 0;
  const RowGrid grid(rows, o.dim, wide ? 4 : 1);
  if (grid.empty) return cudaSuccess;
  return LaunchOverlapped(wide ? BinaryKernel<4, Out, Op> : BinaryKernel<1, Out, Op>, grid.blocks,
                          kRowThreads, 0, stream, o, op);
}

template <typename Op>
cudaError_t Launch(const TensorView& x, const TensorView& y, const TensorView& out, Op op,
                   cudaStream_t stream) {
  return LaunchTo<float>(x, y, out, op, stream);
}

}  // namespace

cudaError_t LaunchGatedActivation(const GatedActivationParams& p, cudaStream_t stream) {
  const Gate gate{p.activation, p.limit};
  return p.out.dtype == DType::kBF16 ? LaunchTo<__nv_bfloat16>(p.gate, p.up, p.out, gate, stream)
                                     : Launch(p.gate, p.up, p.out, gate, stream);
}

cudaError_t LaunchAdd(const AddParams& p, cudaStream_t stream) {
  return Launch(p.x, p.y, p.out, WeightedSum{p.a, p.b}, stream);
}

cudaError_t LaunchSoftcap(const SoftcapParams& p, cudaStream_t stream) {
  return Launch(p.x, p.x, p.x, Cap{p.scale, p.softcap}, stream);
}

}  // namespace longstride::kernels::cuda

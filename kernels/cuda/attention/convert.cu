// Conversions between float32 and 16-bit activations, [rows, heads, dim] (convert.h).
// Four elements a thread. Bound: memory, 6 bytes an element. Arch: any.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/attention/convert.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/math.cuh"

namespace longstride::kernels::cuda {
namespace {

struct Shape {
  int64_t fours;  // groups of four elements in a row
  int32_t dim;
  int64_t f_row, f_head, h_row, h_head;
  // Offsets of a row's group of four.
  __device__ int64_t Float(int64_t row, int64_t four) const {
    return row * f_row + four * 4 / dim * f_head + four * 4 % dim;
  }
  __device__ int64_t Half(int64_t row, int64_t four) const {
    return row * h_row + four * 4 / dim * h_head + four * 4 % dim;
  }
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads) ToHalfKernel(const float* from, T* to, Shape s) {
  BeginOverlapped();
  const int64_t row = blockIdx.x;
  const int64_t four = static_cast<int64_t>(blockIdx.y) * kRowThreads + threadIdx.x;
  if (four >= s.fours) return;
  const float4 x = *reinterpret_cast<const float4*>(from + s.Float(row, four));
  *reinterpret_cast<uint2*>(to + s.Half(row, four)) =
      make_uint2(Pack<T>(x.x, x.y), Pack<T>(x.z, x.w));
}

__device__ float4 Load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ float2 Unpack(uint32_t w, __half) {
  return __half22float2(reinterpret_cast<const __half2&>(w));
}
__device__ float2 Unpack(uint32_t w, __nv_bfloat16) {
  return make_float2(__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000u));
}

template <typename T>
__device__ float4 Load4(const T* from) {
  const uint2 w = *reinterpret_cast<const uint2*>(from);
  const float2 a = Unpack(w.x, T()), b = Unpack(w.y, T());
  return make_float4(a.x, a.y, b.x, b.y);
}

template <typename From, typename To>
__global__ void __launch_bounds__(kRowThreads)
    CoveredRowsKernel(const From* from, To* to, const QueryTile* tiles, Shape s) {
  BeginOverlapped();
  const QueryTile tile = tiles[blockIdx.x];
  if (static_cast<int32_t>(blockIdx.z) >= tile.num_rows) return;
  const int64_t row = static_cast<int64_t>(tile.row_begin) + blockIdx.z;
  const int64_t four = static_cast<int64_t>(blockIdx.y) * kRowThreads + threadIdx.x;
  if (four >= s.fours) return;
  Store4(to + s.Float(row, four), Load4(from + s.Half(row, four)));
}

Shape MakeShape(const TensorView& f, const TensorView& h) {
  return {f.shape[1] * f.shape[2] / 4, static_cast<int32_t>(f.shape[2]), f.strides[0],
          f.strides[1],                h.strides[0],                     h.strides[1]};
}

bool Aligned(const TensorView& f, const TensorView& h) {
  return f.shape[2] % 4 == 0 && (f.strides[0] | f.strides[1] | h.strides[0] | h.strides[1]) % 4 == 0 &&
         reinterpret_cast<uintptr_t>(f.data) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(h.data) % 8 == 0;
}

template <typename From, typename To>
cudaError_t Covered(const TensorView& from, const KvSelection& selection, const TensorView& to,
                    cudaStream_t stream) {
  if (!Aligned(to, from)) return cudaErrorNotSupported;
  const Shape s = MakeShape(to, from);
  RowGrid grid(selection.num_tiles, s.fours);
  if (grid.empty) return cudaSuccess;
  grid.blocks.z = static_cast<unsigned>(selection.query_tile);
  return LaunchOverlapped(CoveredRowsKernel<From, To>, grid.blocks, kRowThreads, 0, stream,
                          from.ptr<const From>(), to.ptr<To>(), selection.tiles, s);
}

}  // namespace

cudaError_t LaunchToHalf(const TensorView& from, const TensorView& to, cudaStream_t stream) {
  if (!Aligned(from, to)) return cudaErrorNotSupported;
  const Shape s = MakeShape(from, to);
  const RowGrid grid(from.shape[0], s.fours);
  if (grid.empty) return cudaSuccess;
  if (to.dtype == DType::kF16) {
    return LaunchOverlapped(ToHalfKernel<__half>, grid.blocks, kRowThreads, 0, stream,
                            from.ptr<float>(), to.ptr<__half>(), s);
  }
  return LaunchOverlapped(ToHalfKernel<__nv_bfloat16>, grid.blocks, kRowThreads, 0, stream,
                          from.ptr<float>(), to.ptr<__nv_bfloat16>(), s);
}

cudaError_t LaunchCoveredRows(const TensorView& from, const KvSelection& selection,
                              const TensorView& to, cudaStream_t stream) {
  const bool to_bf16 = to.dtype == DType::kBF16;
  switch (from.dtype) {
    case DType::kF16:
      return to_bf16 ? Covered<__half, __nv_bfloat16>(from, selection, to, stream)
                     : Covered<__half, float>(from, selection, to, stream);
    case DType::kBF16:
      return to_bf16 ? cudaErrorNotSupported  // the kernels write there by themselves
                     : Covered<__nv_bfloat16, float>(from, selection, to, stream);
    default:
      return to_bf16 ? Covered<float, __nv_bfloat16>(from, selection, to, stream)
                     : cudaErrorNotSupported;
  }
}

}  // namespace longstride::kernels::cuda

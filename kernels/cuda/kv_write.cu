// Computes KvWrite (op_params.h): rows of K and V into their pages, converted to the cache's type.
// Inputs: k, v f32 [rows, KV heads, head_dim], strided; page_ids and slots i32 [rows].
// A warp for each row of each head, four channels a lane where rows are aligned to them; kQ8 takes the row's
// largest magnitude first, as QuantizeKvRow.
// Bound: memory. Arch: any.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/ops.h"

namespace longstride::kernels::cuda {
namespace {

struct WriteShape {
  const float* in[2];  // k, v
  int64_t row_stride[2], head_stride[2];
  PagedKv cache;
  const int32_t* page_ids;
  const int32_t* slots;
  int64_t vectors;  // rows * heads
};

// Channels [c, c + 4) of a float type's row.
__device__ __forceinline__ void Store4To(__half* to, float4 x) {
  const __half2 low = __floats2half2_rn(x.x, x.y), high = __floats2half2_rn(x.z, x.w);
  uint2 both;
  memcpy(&both.x, &low, 4);
  memcpy(&both.y, &high, 4);
  *reinterpret_cast<uint2*>(to) = both;
}
__device__ __forceinline__ void Store4To(__nv_bfloat16* to, float4 x) { Store4(to, x); }
__device__ __forceinline__ void Store4To(float* to, float4 x) { Store4(to, x); }
__device__ __forceinline__ void StoreTo(__half* to, float x) { *to = __float2half_rn(x); }
__device__ __forceinline__ void StoreTo(__nv_bfloat16* to, float x) { Store(to, x); }
__device__ __forceinline__ void StoreTo(float* to, float x) { *to = x; }

template <typename T>
__device__ __forceinline__ void StoreRow(char* page, int32_t slot, const float* x, int dim, int lane) {
  T* to = reinterpret_cast<T*>(page) + static_cast<int64_t>(slot) * dim;
  if (dim % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0) {
    for (int c = lane * 4; c < dim; c += 128) {
      Store4To(to + c, *reinterpret_cast<const float4*>(x + c));
    }
    return;
  }
  for (int c = lane; c < dim; c += 32) StoreTo(to + c, x[c]);
}

// Not a number if any element is not.
__device__ float WarpMaxAbs(const float* x, int dim, int lane) {
  uint32_t most = 0;
  for (int c = lane; c < dim; c += 32) most = max(most, __float_as_uint(x[c]) & 0x7fffffffu);
  return __uint_as_float(__reduce_max_sync(0xffffffffu, most));
}

__device__ void Store(const WriteShape& p, int side, char* page, int32_t slot, const float* x,
                      int lane) {
  const int dim = p.cache.head_dim;
  switch (p.cache.dtype) {
    case KvDType::kF32: return StoreRow<float>(page, slot, x, dim, lane);
    case KvDType::kF16: return StoreRow<__half>(page, slot, x, dim, lane);
    case KvDType::kBF16: return StoreRow<__nv_bfloat16>(page, slot, x, dim, lane);
    case KvDType::kFp8: {
      const float scale = side == 0 ? p.cache.k_scale : p.cache.v_scale;
      uint8_t* to = reinterpret_cast<uint8_t*>(page) + static_cast<int64_t>(slot) * dim;
      for (int c = lane; c < dim; c += 32) to[c] = ToE4m3(__fdiv_rn(x[c], scale));
      return;
    }
    case KvDType::kQ8: {
      const float scale = __fdiv_rn(WarpMaxAbs(x, dim, lane), 127.0f);
      const float inverse = scale > 0.0f ? __fdiv_rn(1.0f, scale) : 0.0f;
      int8_t* to = reinterpret_cast<int8_t*>(page) + static_cast<int64_t>(slot) * dim;
      for (int c = lane; c < dim; c += 32) {
        to[c] = static_cast<int8_t>(fmaxf(-127.0f, fminf(127.0f, roundf(x[c] * inverse))));
      }
      if (lane == 0) {
        reinterpret_cast<float*>(page + static_cast<int64_t>(kPageTokens) * dim)[slot] = scale;
      }
      return;
    }
  }
}

__global__ void __launch_bounds__(kRowThreads) KvWriteKernel(const WriteShape p) {
  LetDependentsStart();
  const int64_t vector =
      static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
  if (vector >= p.vectors) return;  // others of the grid wait
  const int64_t row = vector / p.cache.num_heads, head = vector % p.cache.num_heads;
  const int side = static_cast<int>(blockIdx.y);
  const int32_t page_id = p.page_ids[row], slot = p.slots[row];
  WaitForPredecessors();
  if (page_id == kNoPage) return;
  const int64_t offset = page_id * p.cache.page_stride + head * p.cache.head_stride;
  char* page = static_cast<char*>(side == 0 ? p.cache.k : p.cache.v) + offset;
  Store(p, side, page, slot, p.in[side] + row * p.row_stride[side] + head * p.head_stride[side],
        static_cast<int>(threadIdx.x) % 32);
}

}  // namespace

cudaError_t LaunchKvWrite(const KvWriteParams& p, cudaStream_t stream) {
  WriteShape shape;
  shape.in[0] = p.k.ptr<const float>();
  shape.in[1] = p.v.ptr<const float>();
  for (int side = 0; side < 2; ++side) {
    const TensorView& t = side == 0 ? p.k : p.v;
    shape.row_stride[side] = t.strides[0];
    shape.head_stride[side] = t.strides[1];
  }
  shape.cache = p.cache;
  shape.page_ids = p.page_ids;
  shape.slots = p.slots;
  shape.vectors = p.k.shape[0] * p.cache.num_heads;
  if (shape.vectors == 0) return cudaSuccess;
  constexpr int kVectors = kRowThreads / 32;
  const dim3 blocks(static_cast<unsigned>((shape.vectors + kVectors - 1) / kVectors), 2);
  return LaunchOverlapped(KvWriteKernel, blocks, kRowThreads, 0, stream, shape);
}

}  // namespace longstride::kernels::cuda

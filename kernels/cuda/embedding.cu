// Computes Embedding and GatherRows (op_params.h).
// Inputs: a table of any weight dtype [vocab, dim] (GGUF's blocks are decoded element by element,
// with the operations of DequantizeRow); ids or rows i32; out f32, strided rows.
// Bound: memory, a row read and written for each id. Arch: any.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/ops.h"

namespace longstride::kernels::cuda {
namespace {

__device__ float HalfAt(const uint8_t* p) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(p[0] | p[1] << 8)));
}
__device__ uint32_t WordAt(const uint8_t* p) {
  return p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24;
}
// Sum without contraction: bits as DequantizeRow gives them.
__device__ float MulAdd(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }

// Element i (0 .. 31) of a block of 32 whose nibbles start at q.
__device__ int Nibble(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }

__device__ float BlockOf32(DType dtype, const uint8_t* b, int i) {
  switch (dtype) {
    case DType::kQ8_0:
      return static_cast<int8_t>(b[2 + i]) * HalfAt(b);
    case DType::kQ4_0:
      return (Nibble(b + 2, i) - 8) * HalfAt(b);
    case DType::kQ4_1:
      return MulAdd(Nibble(b + 4, i), HalfAt(b), HalfAt(b + 2));
    case DType::kQ5_0: {
      const int code = Nibble(b + 6, i) | ((WordAt(b + 2) >> i) & 1) << 4;
      return (code - 16) * HalfAt(b);
    }
    case DType::kQ5_1: {
      const int code = Nibble(b + 8, i) | ((WordAt(b + 4) >> i) & 1) << 4;
      return MulAdd(code, HalfAt(b), HalfAt(b + 2));
    }
    case DType::kMXFP4: {
      // e2m1 values doubled, and the scale halved in turn.
      const int code = Nibble(b + 1, i);
      const int magnitude = code & 7;
      const int doubled = magnitude < 5 ? magnitude : magnitude == 5 ? 6 : magnitude == 6 ? 8 : 12;
      const uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : static_cast<uint32_t>(b[0] - 1) << 23;
      return (code & 8 ? -doubled : doubled) * __uint_as_float(bits);
    }
    default:
      return 0.0f;
  }
}

// Element i (0 .. 255) of a Q4_K or Q5_K block.
__device__ float BlockK45(const uint8_t* b, const uint8_t* high, const uint8_t* q, int i) {
  const int s = i / 32, l = i % 32;
  const uint8_t* scales = b + 4;
  int scale, minimum;
  if (s < 4) {
    scale = scales[s] & 63;
    minimum = scales[s + 4] & 63;
  } else {
    scale = (scales[s + 4] & 15) | (scales[s - 4] >> 6) << 4;
    minimum = (scales[s + 4] >> 4) | (scales[s] >> 6) << 4;
  }
  const uint8_t byte = q[s / 2 * 32 + l];
  int code = s % 2 == 0 ? byte & 15 : byte >> 4;
  if (high != nullptr) code += ((high[l] >> s) & 1) << 4;
  return MulAdd(__fmul_rn(HalfAt(b), scale), code, -__fmul_rn(HalfAt(b + 2), minimum));
}

__device__ float BlockQ6K(const uint8_t* b, int i) {
  const int half = i / 128, part = i / 32 % 4, l = i % 32;
  const uint8_t byte = b[half * 64 + (part % 2) * 32 + l];
  const int nibble = part < 2 ? byte & 15 : byte >> 4;
  const int bits = (b[128 + half * 32 + l] >> (2 * part)) & 3;
  const auto sub = static_cast<int8_t>(b[192 + half * 8 + part * 2 + l / 16]);
  return __fmul_rn(HalfAt(b + 208), sub) * ((nibble | bits << 4) - 32);
}

__device__ float Element(DType dtype, int32_t block_bytes, const uint8_t* row, int64_t c) {
  switch (dtype) {
    case DType::kF32:
      return reinterpret_cast<const float*>(row)[c];
    case DType::kF16:
      return __half2float(reinterpret_cast<const __half*>(row)[c]);
    case DType::kBF16:
      return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row)[c]);
    case DType::kQ4_K: {
      const uint8_t* b = row + c / 256 * 144;
      return BlockK45(b, nullptr, b + 16, static_cast<int>(c % 256));
    }
    case DType::kQ5_K: {
      const uint8_t* b = row + c / 256 * 176;
      return BlockK45(b, b + 16, b + 48, static_cast<int>(c % 256));
    }
    case DType::kFP8_128: {
      const uint8_t* b = row + c / 128 * 132;
      const uint32_t code = b[4 + c % 128];
      const float value = __uint_as_float((code & 0x80) << 24 | (code & 0x7f) << 20) * 0x1p120f;
      return value * __uint_as_float(WordAt(b));
    }
    case DType::kQ6_K:
      return BlockQ6K(row + c / 256 * 210, static_cast<int>(c % 256));
    default:
      return BlockOf32(dtype, row + c / 32 * block_bytes, static_cast<int>(c % 32));
  }
}

struct TableRows {
  const uint8_t* table;
  int64_t row_bytes;
  DType dtype;
  int32_t block_bytes;
  const int32_t* rows;
  float scale;
  float* out;
  int64_t out_row, dim;
};

__global__ void __launch_bounds__(kRowThreads) TakeRowsKernel(const TableRows p) {
  const int64_t row = blockIdx.x;
  const int64_t c = static_cast<int64_t>(blockIdx.y) * kRowThreads + threadIdx.x;
  if (c >= p.dim) return;
  const uint8_t* from = p.table + p.rows[row] * p.row_bytes;
  p.out[row * p.out_row + c] = p.scale * Element(p.dtype, p.block_bytes, from, c);
}

cudaError_t Launch(const TableRows& p, int64_t rows, cudaStream_t stream) {
  const RowGrid grid(rows, p.dim);
  if (grid.empty) return cudaSuccess;
  TakeRowsKernel<<<grid.blocks, kRowThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchEmbedding(const EmbeddingParams& p, cudaStream_t stream) {
  const int64_t row_bytes = IsQuantized(p.table.dtype)
                                ? RowBytes(p.table.dtype, p.table.shape[1])
                                : p.table.strides[0] * BlockBytes(p.table.dtype);
  return Launch({p.table.ptr<const uint8_t>(), row_bytes, p.table.dtype,
                 static_cast<int32_t>(BlockBytes(p.table.dtype)), p.ids, p.scale,
                 p.out.ptr<float>(), p.out.strides[0], p.out.shape[1]},
                p.out.shape[0], stream);
}

cudaError_t LaunchGatherRows(const GatherRowsParams& p, cudaStream_t stream) {
  return Launch({p.x.ptr<const uint8_t>(), p.x.strides[0] * 4, DType::kF32, 4, p.rows, 1.0f,
                 p.out.ptr<float>(), p.out.strides[0], p.out.shape[1]},
                p.out.shape[0], stream);
}

}  // namespace longstride::kernels::cuda

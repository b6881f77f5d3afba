// Brings weights into the forms of packed_weight.h, on the device, when a model is loaded.
// One thread makes 16 bytes of codes (or one row's scales of a unit); the source is GGUF's layout.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/linear/fp8.cuh"
#include "kernels/cuda/linear/packed_weight.h"
#include "kernels/cuda/linear/product.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A packing and the numbers of its format.
struct Work {
  Packing p;
  int block_elements, block_bytes, unit_blocks, unit_bytes;
  int64_t units;  // of a row tile
};

// Atoms of 8 x 64 16-bit values, 16-byte chunks swizzled by row. One thread a chunk.
__global__ void PackDense(const Packing p, int64_t k_blocks, int64_t chunks) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= chunks) return;
  const int64_t chunk = i % 8, row = i / 8 % 8, block = i / 64 % k_blocks, atom = i / 64 / k_blocks;
  const int64_t source_row = atom * 8 + row, column = block * 64 + chunk * 8;
  uint16_t v[8];
  const auto* source = reinterpret_cast<const uint16_t*>(
      static_cast<const uint8_t*>(p.source) + source_row * p.source_row_bytes);
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    v[c] = source_row < p.rows && column + c < p.cols ? source[column + c] : uint16_t{0};
  }
  const int64_t to = (p.row_begin / 8 + atom) * k_blocks + block;
  auto* out = reinterpret_cast<uint4*>(p.packed + to * kAtomBytes + row * 128 + (chunk ^ row) * 16);
  uint4 packed;
  memcpy(&packed, v, 16);
  *out = packed;
}

// Atoms of 8 x 128 codes. One thread a chunk of 16, and the first of a row's eight its scale.
struct Fp8Work {
  Packing p;
  int64_t k_blocks, chunks, block_bytes;
  float* scales;  // of the part's first row
  int64_t scale_rows;
};
__global__ void PackFp8(const Fp8Work w) {
  const Packing& p = w.p;
  const int64_t k_blocks = w.k_blocks;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= w.chunks) return;
  const int64_t chunk = i % 8, row = i / 8 % 8, block = i / 64 % k_blocks, atom = i / 64 / k_blocks;
  const int64_t source_row = atom * 8 + row;
  uint8_t codes[16] = {};
  if (source_row < p.rows) {
    const uint8_t* source = static_cast<const uint8_t*>(p.source) +
                            source_row * p.source_row_bytes + block * w.block_bytes;
#pragma unroll
    for (int c = 0; c < 16; ++c) codes[c] = source[4 + chunk * 16 + Fp8Column(c)];
    if (chunk == 0) memcpy(&w.scales[block * w.scale_rows + source_row], source, 4);
  }
  const int64_t to = (p.row_begin / 8 + atom) * k_blocks + block;
  auto* out = reinterpret_cast<uint4*>(p.packed + to * kAtomBytes + row * 128 + (chunk ^ row) * 16);
  uint4 packed;
  memcpy(&packed, codes, 16);
  *out = packed;
}

__device__ uint8_t KScale(const uint8_t* s, int j) {
  return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
}
__device__ uint8_t KMinimum(const uint8_t* s, int j) {
  return j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
}

// Reads codes of one source row.
struct Source {
  const uint8_t* row;  // nullptr: padding
  DType dtype;
  int64_t cols;
  int block_elements, block_bytes;

  __device__ const uint8_t* BlockOf(int64_t column) const {
    return row + column / block_elements * block_bytes;
  }
  __device__ bool Has(int64_t column) const { return row != nullptr && column < cols; }
  // The low four bits (all eight for q8_0, with 128 added).
  __device__ uint32_t Low(int64_t column) const {
    if (!Has(column)) return dtype == DType::kQ8_0 ? 128 : 0;
    const uint8_t* b = BlockOf(column);
    const int k = static_cast<int>(column % block_elements);
    switch (dtype) {
      case DType::kQ8_0: return b[2 + k] ^ 128u;
      case DType::kQ4_0: return Nibble(b + 2, k);
      case DType::kQ4_1: return Nibble(b + 4, k);
      case DType::kQ5_0: return Nibble(b + 6, k);
      case DType::kQ5_1: return Nibble(b + 8, k);
      case DType::kMXFP4: return Nibble(b + 1, k);
      case DType::kQ4_K: return NibbleK(b + 16, k);
      case DType::kQ5_K: return NibbleK(b + 48, k);
      default: {  // q6_K
        const int half = k / 128, part = k % 128 / 32, l = k % 32;
        const uint32_t byte = b[half * 64 + part % 2 * 32 + l];
        return part < 2 ? byte & 15 : byte >> 4;
      }
    }
  }
  // The bits above them.
  __device__ uint32_t High(int64_t column) const {
    if (!Has(column)) return 0;
    const uint8_t* b = BlockOf(column);
    const int k = static_cast<int>(column % block_elements);
    switch (dtype) {
      case DType::kQ5_0: return b[2 + k / 8] >> (k % 8) & 1;
      case DType::kQ5_1: return b[4 + k / 8] >> (k % 8) & 1;
      case DType::kQ5_K: return b[16 + k % 32] >> (k / 32) & 1;
      case DType::kQ6_K: return b[128 + k / 128 * 32 + k % 32] >> (2 * (k % 128 / 32)) & 3;
      default: return 0;
    }
  }

 private:
  static __device__ uint32_t Nibble(const uint8_t* q, int k) {
    return k < 16 ? q[k] & 15 : q[k - 16] >> 4;
  }
  static __device__ uint32_t NibbleK(const uint8_t* q, int k) {
    const uint32_t byte = q[k / 64 * 32 + k % 32];
    return k / 32 % 2 == 0 ? byte & 15 : byte >> 4;
  }
};

__device__ Source SourceRow(const Work& w, int64_t row) {
  const auto* from = static_cast<const uint8_t*>(w.p.source) + row * w.p.source_row_bytes;
  return {row < w.p.rows ? from : nullptr, w.p.dtype, w.p.cols, w.block_elements, w.block_bytes};
}

// One thread: the codes of one thread of the products, for 64 columns of a unit.
__global__ void PackCodes(const Work w, int64_t count) {
  const Packing& p = w.p;
  const int64_t units = w.units;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const int blocks = w.unit_blocks;
  const int lane = static_cast<int>(i % 32), warp = static_cast<int>(i / 32 % 4);
  const int block = static_cast<int>(i / 128 % blocks);
  const int64_t unit = i / 128 / blocks % units, tile = i / 128 / blocks / units;
  const int64_t column0 = (unit * blocks + block) * 64;
  const int64_t row0 = tile * 64 + warp * 16 + lane / 4;
  const Source rows[2] = {SourceRow(w, row0), SourceRow(w, row0 + 8)};
  uint32_t low[8] = {}, high[2] = {};
  const bool bytes = p.dtype == DType::kQ8_0, pairs = p.dtype == DType::kQ6_K;
  for (int step = 0; step < 4; ++step) {
    for (int j = 0; j < 4; ++j) {
      for (int e = 0; e < 2; ++e) {
        const int64_t column = column0 + step * 16 + (j >> 1) * 8 + lane % 4 * 2 + e;
        const Source& source = rows[j & 1];
        const uint32_t code = source.Low(column);
        if (bytes) {
          low[step * 2 + (j >> 1)] |= code << (16 * (j & 1) + 8 * e);
        } else {
          low[step] |= code << (4 * j + 16 * e);
        }
        const int at = pairs ? ((step & 1) * 4 + j) * 2 : step * 4 + j;
        high[pairs ? step >> 1 : 0] |= source.High(column) << (at + 16 * e);
      }
    }
  }
  uint8_t* out = p.packed + ((p.row_begin / 64 + tile) * units + unit) * w.unit_bytes;
  const int at = (block * 4 + warp) * 32 + lane;
  if (bytes) {
    auto* q = reinterpret_cast<uint4*>(out) + (block * 4 + warp) * 64 + lane;
    q[0] = make_uint4(low[0], low[1], low[2], low[3]);
    q[32] = make_uint4(low[4], low[5], low[6], low[7]);
  } else {
    reinterpret_cast<uint4*>(out)[at] = make_uint4(low[0], low[1], low[2], low[3]);
  }
  uint8_t* high_out = out + blocks * 2048;
  if (p.dtype == DType::kQ5_0 || p.dtype == DType::kQ5_1 || p.dtype == DType::kQ5_K) {
    reinterpret_cast<uint32_t*>(high_out)[at] = high[0];
  } else if (pairs) {
    reinterpret_cast<uint2*>(high_out)[at] = make_uint2(high[0], high[1]);
  }
}

__device__ uint16_t Load16(const uint8_t* b) { return static_cast<uint16_t>(b[0] | b[1] << 8); }
__device__ void Store16(uint8_t* to, uint32_t v) {
  to[0] = static_cast<uint8_t>(v);
  to[1] = static_cast<uint8_t>(v >> 8);
}

// One thread: the scales of one row of a unit.
__global__ void PackScales(const Work w, int64_t count) {
  const Packing& p = w.p;
  const int64_t units = w.units;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const int row = static_cast<int>(i % 64);
  const int64_t unit = i / 64 % units, tile = i / 64 / units;
  const Source source = SourceRow(w, tile * 64 + row);
  uint8_t* out = p.packed + ((p.row_begin / 64 + tile) * units + unit) * w.unit_bytes;
  const int pair_row = (row / 16 * 8 + row % 8) * 2 + row % 16 / 8;
  const bool has_minimum = p.dtype == DType::kQ4_1 || p.dtype == DType::kQ5_1;
  if (w.block_elements == 32) {
    uint8_t* scales =
        out + w.unit_bytes - (p.dtype == DType::kMXFP4 ? 128 : has_minimum ? 512 : 256);
    for (int b = 0; b < 2; ++b) {
      const int64_t column = unit * 64 + b * 32;
      const uint8_t* block = source.Has(column) ? source.BlockOf(column) : nullptr;
      const int at = pair_row * 2 + b;
      if (p.dtype == DType::kMXFP4) {
        scales[at] = block == nullptr ? uint8_t{0} : block[0];
      } else if (has_minimum) {
        Store16(scales + at * 4, block == nullptr ? 0 : Load16(block));
        Store16(scales + at * 4 + 2, block == nullptr ? 0 : Load16(block + 2));
      } else {
        Store16(scales + at * 2, block == nullptr ? 0 : Load16(block));
      }
    }
    return;
  }
  const uint8_t* block = source.Has(unit * 256) ? source.BlockOf(unit * 256) : nullptr;
  const bool q6 = p.dtype == DType::kQ6_K;
  uint8_t* super = out + w.unit_bytes - (q6 ? 128 : 256);
  uint8_t* scales = super - 1024;
  if (q6) {
    Store16(super + pair_row * 2, block == nullptr ? 0 : Load16(block + 208));
    for (int s = 0; s < 16; ++s) {
      scales[(s / 4 * 64 + pair_row) * 4 + s % 4] = block == nullptr ? 128 : block[192 + s] ^ 128;
    }
    return;
  }
  Store16(super + pair_row * 4, block == nullptr ? 0 : Load16(block));
  Store16(super + pair_row * 4 + 2, block == nullptr ? 0 : Load16(block + 2) ^ 0x8000);
  for (int s = 0; s < 8; ++s) {
    uint8_t* at = scales + (s / 2 * 64 + pair_row) * 4 + s % 2 * 2;
    at[0] = block == nullptr ? uint8_t{0} : KScale(block + 4, s);
    at[1] = block == nullptr ? uint8_t{0} : KMinimum(block + 4, s);
  }
}

unsigned Blocks(int64_t count) { return static_cast<unsigned>(CeilDiv(count, kThreads)); }

}  // namespace

cudaError_t LaunchPacking(const Packing& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  if (p.dtype == DType::kF16 || p.dtype == DType::kBF16) {
    const int64_t k_blocks = CeilDiv(p.cols, kBlockColumns);
    const int64_t chunks = CeilDiv(p.rows, kAtomRows) * k_blocks * 64;
    PackDense<<<Blocks(chunks), kThreads, 0, stream>>>(p, k_blocks, chunks);
    return cudaGetLastError();
  }
  if (p.dtype == DType::kFP8_128) {
    const int64_t k_blocks = CeilDiv(p.cols, 128);
    const int64_t chunks = CeilDiv(p.rows, kAtomRows) * k_blocks * 64;
    auto* scales = reinterpret_cast<float*>(p.packed + AtomsBytes(p.dtype, p.weight_rows, p.cols));
    PackFp8<<<Blocks(chunks), kThreads, 0, stream>>>({p, k_blocks, chunks, BlockBytes(p.dtype),
                                                      scales + p.row_begin,
                                                      Fp8ScaleRows(p.weight_rows)});
    return cudaGetLastError();
  }
  const Work w = {p,
                  static_cast<int>(BlockElements(p.dtype)),
                  static_cast<int>(BlockBytes(p.dtype)),
                  UnitBlocks(p.dtype),
                  UnitBytes(p.dtype),
                  PackedUnits(p.dtype, p.cols)};
  const int64_t unit_rows = CeilDiv(p.rows, kUnitRows) * w.units * kUnitRows;
  const int64_t codes = unit_rows * 2 * w.unit_blocks;
  PackCodes<<<Blocks(codes), kThreads, 0, stream>>>(w, codes);
  PackScales<<<Blocks(unit_rows), kThreads, 0, stream>>>(w, unit_rows);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

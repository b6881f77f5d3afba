// What both product kernels take, and how they store results.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/linear/packed_weight.h"
#include "kernels/cuda/linear/product.h"

namespace longstride::kernels::cuda {

struct ProductArgs {
  CUtensorMap x_map;  // [rows, cols], box of 128 bytes by a tile's rows
  CUtensorMap out_map;
  // [atoms, k_blocks, 1024 bytes] of a weight that is no group's, in boxes of a tile of the most atoms and
  // of one atom less.
  CUtensorMap weight_maps[2];
  const uint8_t* weight;
  const uint8_t* const* group_weights;
  const GroupTile* tiles;  // nullptr: rows in order
  const int32_t* num_tiles;
  int32_t max_tiles;
  int32_t rows;
  int32_t n;
  int32_t k_blocks;        // steps of 64 columns (fp8: 128)
  int32_t scale_rows;      // fp8: floats between the weight's scales of two steps
  int64_t scales_at;       // fp8: where they begin behind the weight
  int32_t part_blocks;     // of one part of K (block formats)
  int32_t sharers;         // blocks of a cluster that share the parts (block formats)
  int32_t share_tiles;     // tiles of every block of the narrow dense kernel
  int32_t copies_out;      // the wide dense kernel may store through out_map
  int32_t stages;          // slots of the ring
  int32_t slot_bytes;
  int32_t atoms_per_tile;  // largest tile of the narrow dense kernel, in atoms of 8 rows
  void* out;
  DType out_dtype;
  int64_t out_stride;
  const float* bias;
  int64_t bias_stride;
  const float* row_scale;
  int32_t accumulate;
};

// One tile of activation rows and its weight.
struct RowTile {
  const uint8_t* weight;
  const float* bias;
  int32_t row_begin;
  int32_t rows;  // 0: nothing to do
};

template <int kTokens>
__device__ __forceinline__ RowTile FindRowTile(const ProductArgs& p, int tile) {
  RowTile t;
  if (p.tiles == nullptr) {
    t.weight = p.weight;
    t.bias = p.bias;
    t.row_begin = tile * kTokens;
    t.rows = max(0, min(kTokens, p.rows - t.row_begin));
    return t;
  }
  // Grouped: the list was made by an earlier kernel of the stream.
  if (tile >= *p.num_tiles) {
    t.rows = 0;
    return t;
  }
  const GroupTile g = p.tiles[tile];
  t.weight = p.group_weights[g.group];
  t.bias = p.bias == nullptr ? nullptr : p.bias + g.group * p.bias_stride;
  t.row_begin = g.row_begin;
  t.rows = g.rows;
  return t;
}

// No multiply-add: all ways of storing round alike.
__device__ __forceinline__ void StoreResult(const ProductArgs& p, const RowTile& t, int row, int n,
                                            float value) {
  const int64_t m = t.row_begin + row;
  if (p.row_scale != nullptr) value = __fmul_rn(value, p.row_scale[m]);
  if (t.bias != nullptr) value = __fadd_rn(value, t.bias[n]);
  const int64_t at = m * p.out_stride + n;
  if (p.out_dtype == DType::kF32) {
    auto* out = static_cast<float*>(p.out) + at;
    *out = p.accumulate ? *out + value : value;
  } else if (p.out_dtype == DType::kBF16) {
    auto* out = static_cast<__nv_bfloat16*>(p.out) + at;
    if (p.accumulate) value = __fadd_rn(value, __bfloat162float(*out));
    *out = __float2bfloat16(value);
  } else {
    auto* out = static_cast<__half*>(p.out) + at;
    if (p.accumulate) value = __fadd_rn(value, __half2float(*out));
    *out = __float2half(value);
  }
}

// Four results beside each other, of any rows: as StoreResult stores them, in one piece where they
// are whole and aligned.
class ResultColumns {
 public:
  __device__ __forceinline__ ResultColumns(const ProductArgs& p, const RowTile& t, int n) : n_(n) {
    const int size = p.out_dtype == DType::kF32 ? 4 : 2;
    together_ = n + 4 <= p.n && p.out_stride % 4 == 0 &&
                (reinterpret_cast<uintptr_t>(p.out) + int64_t{n} * size) % (4 * size) == 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) bias_[i] = t.bias != nullptr && n + i < p.n ? t.bias[n + i] : 0.0f;
  }
  __device__ __forceinline__ void Store(const ProductArgs& p, const RowTile& t, int row,
                                        uint4 values) const {
    float v[4] = {__uint_as_float(values.x), __uint_as_float(values.y), __uint_as_float(values.z),
                  __uint_as_float(values.w)};
    if (!together_) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (n_ + i < p.n) StoreResult(p, t, row, n_ + i, v[i]);
      }
      return;
    }
    const int64_t m = t.row_begin + row;
    if (p.row_scale != nullptr) {
      const float scale = p.row_scale[m];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = __fmul_rn(v[i], scale);
    }
    if (t.bias != nullptr) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = __fadd_rn(v[i], bias_[i]);
    }
    const int64_t at = m * p.out_stride + n_;
    if (p.out_dtype == DType::kF32) {
      auto* out = reinterpret_cast<float4*>(static_cast<float*>(p.out) + at);
      if (p.accumulate) {
        const float4 old = *out;
        v[0] = __fadd_rn(old.x, v[0]), v[1] = __fadd_rn(old.y, v[1]);
        v[2] = __fadd_rn(old.z, v[2]), v[3] = __fadd_rn(old.w, v[3]);
      }
      *out = make_float4(v[0], v[1], v[2], v[3]);
    } else if (p.out_dtype == DType::kBF16) {
      StoreFour<__nv_bfloat16>(p, at, v);
    } else {
      StoreFour<__half>(p, at, v);
    }
  }

 private:
  template <typename T>
  static __device__ __forceinline__ void StoreFour(const ProductArgs& p, int64_t at,
                                                   float (&v)[4]) {
    struct __align__(8) Four {
      T x[4];
    };
    auto* out = reinterpret_cast<Four*>(static_cast<T*>(p.out) + at);
    Four to;
    if (p.accumulate) {
      to = *out;
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = __fadd_rn(v[i], static_cast<float>(to.x[i]));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) to.x[i] = static_cast<T>(v[i]);
    *out = to;
  }

  int n_;
  bool together_;
  float bias_[4];
};

// Everything but the tensor map and what the kernels' shapes decide.
ProductArgs MakeProductArgs(const Product& p);

// Encodes the tensor map of an operand with boxes of `box_rows` rows.
cudaError_t EncodeOperandMap(const Operand& x, int box_rows, CUtensorMap* map);

// The tensor map of a dense weight that is no group's, in boxes of some steps of some atoms.
cudaError_t EncodeWeightMap(const Product& p, int box_steps, int box_atoms, CUtensorMap* map);

// Encodes the tensor map of the results, panels of 128 bytes by `box_rows` rows. False: rows are not
// aligned for it.
bool EncodeResultMap(const Product& p, int box_rows, CUtensorMap* map);

// Launches that let the kernel start while the one before it still runs, in clusters.
struct LaunchShape {
  unsigned blocks = 1;
  unsigned blocks_y = 1;
  unsigned threads = 128;
  unsigned cluster = 1;
  size_t shared_bytes = 0;
};
cudaError_t LaunchWithDependency(const void* kernel, const LaunchShape& shape, ProductArgs* args,
                                 cudaStream_t stream);

}  // namespace longstride::kernels::cuda

// One matrix product on the device as the kernels see it, and how it is launched. Plain structs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/device/kernel_path.h"
#include "kernels/tensor_view.h"

namespace longstride::kernels::cuda {

// Activation rows as the tensor cores read them: f16, bf16, or e4m3 in the order of packed fp8_128
// weights.
struct Operand {
  const void* data = nullptr;
  DType dtype = DType::kBF16;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t pitch = 0;                 // elements between rows, whole pieces of 16 bytes
  const float* row_scale = nullptr;  // [rows]: results are multiplied by it; nullptr: 1
};

// Rows [row_begin, row_begin + rows) of the operand meet the weights of one group (expert).
struct GroupTile {
  int32_t group = 0;
  int32_t row_begin = 0;
  int32_t rows = 0;
};

// Products of groups of rows with a weight each. All arrays are device memory.
struct Grouping {
  const uint8_t* const* weights = nullptr;  // [groups], packed
  const GroupTile* tiles = nullptr;         // [max_tiles], of at most `tile_rows` rows
  const int32_t* num_tiles = nullptr;
  int32_t max_tiles = 0;
  int32_t tile_rows = 0;
  int64_t bias_stride = 0;  // elements between two groups' biases
};

// out[m, n] = row_scale[m] * sum_k x[m, k] * w[n, k] + bias[n] (+ out[m, n]).
struct Product {
  DType weight_dtype = DType::kBF16;
  const uint8_t* weight = nullptr;  // packed (packed_weight.h), unless grouped
  int64_t n = 0;
  Operand x;
  void* out = nullptr;  // column 0 of this weight's outputs
  DType out_dtype = DType::kF32;
  int64_t out_stride = 0;  // elements
  const float* bias = nullptr;
  bool accumulate = false;
  const Grouping* groups = nullptr;
  int multiprocessors = 132;
  KernelPath path = KernelPath::kFast;
};

// Rows of one tile of activations for a product with this many rows: any choice gives the same
// bits (of one path). Grouped products must use it for their tiles (`rows`: the expected rows of a
// group).
int TileRows(KernelPath path, DType weight_dtype, int64_t n, int64_t rows);

cudaError_t LaunchDenseProduct(const Product& p, cudaStream_t stream);
cudaError_t LaunchQuantProduct(const Product& p, cudaStream_t stream);

// Row-major f32 weights [n, cols] with rows `x` of x_dtype (f32, f16, bf16): float32 throughout.
struct FloatProduct {
  const float* weight = nullptr;
  const float* const* group_weights = nullptr;  // with tiles: one for each group
  const GroupTile* tiles = nullptr;
  const int32_t* num_tiles = nullptr;
  int32_t max_tiles = 0;
  int64_t bias_stride = 0;
  int64_t n = 0;
  TensorView x;
  void* out = nullptr;
  DType out_dtype = DType::kF32;
  int64_t out_stride = 0;
  const float* bias = nullptr;
  bool accumulate = false;
};
inline constexpr int kFloatTileRows = 8;
cudaError_t LaunchFloatProduct(const FloatProduct& p, cudaStream_t stream);

// Rounds rows of f32, f16 or bf16 to the operand type. f16 rows are first scaled by a power of two
// so that their largest element lies in [2^13, 2^14), which row_scale undoes: no overflow, and 11
// bits wherever an element is within 2^27 of the largest. e4m3 rows are rounded to bf16 and scaled so
// that the largest element is 448: 4 bits wherever one is within 28,672 of the largest; they are whole
// blocks of 128 columns, in the order of packed fp8_128 weights. Rows with an infinity or NaN keep one.
struct Conversion {
  TensorView x;
  const int32_t* source_rows = nullptr;  // [rows] row of x, negative: skip; nullptr: same row
  const float* factors = nullptr;        // [rows] multiplied in float32 first; nullptr: 1
  int64_t rows = 0;
  DType to = DType::kF16;
  void* out = nullptr;
  int64_t pitch = 0;
  float* row_scale = nullptr;  // [rows], written for f16 and e4m3
};
cudaError_t LaunchConversion(const Conversion& c, cudaStream_t stream);

// Packs `rows` rows of a part, which start at row `row_begin` (a multiple of 64) of the weight.
struct Packing {
  DType dtype = DType::kF16;
  const void* source = nullptr;  // device memory
  int64_t source_row_bytes = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_begin = 0;
  int64_t weight_rows = 0;    // of the whole weight
  uint8_t* packed = nullptr;  // of the whole weight
};
cudaError_t LaunchPacking(const Packing& p, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

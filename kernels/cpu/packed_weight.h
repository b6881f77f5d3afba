// Quantised weights interleaved for int8 dot products, in exactly the bytes of the GGUF tensor:
// decoding reads every weight once a token, so its speed is the size of this form.
//
// PackedLayout. A panel is 16 rows; its blocks of 32 columns follow each other. A code's place
// inside a block is (group g = column / 4, row r, byte b = column % 4). "nibbles": 256 bytes, byte
// [g][r][b] for g < 4 holds the low four bits of group g's code in its low half and those of group
// g + 4 in its high half. "fifth": 64 bytes, bit g of byte [r][b] is the code's fifth bit.
// "upper": 128 bytes, bits 2(g % 4).. of byte [g / 4][r][b] are the code's bits 4 and 5. Halves
// stand per row: half[16].
//   Q8_0         scale half[16] · codes [g][r][b] as code + 128 (512 bytes)
//   Q4_0         scale half[16] · nibbles
//   Q4_1         scale half[16] · minimum half[16] · nibbles
//   Q5_0         scale half[16] · fifth · nibbles
//   Q5_1         scale half[16] · minimum half[16] · fifth · nibbles
//   MXFP4        exponent u8[16] · nibbles (indices into the e2m1 table)
//   Q4_K, Q5_K   for 8 blocks: scale half[16] · minimum scale half[16] · the 12 scale bytes
//   [12][16];
//                then for each block [fifth ·] nibbles
//   FP8_128      see FloatPanelArgs: no dot products of integers
//   Q6_K         for 8 blocks: scale half[16] · sub-block scales i8 [16][16]; then for each block
//                upper · nibbles
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/tensor_view.h"

namespace longstride::kernels::cpu {

// How a type's weight is rebuilt: weight = scale * (code - offset) + minimum.
struct CodeTraits {
  int bits = 0;  // codes are below 2^bits
  int offset = 0;
  bool has_min = false;
  int scales_per_block = 1;  // 2: one for each 16 columns
};

constexpr CodeTraits TraitsOf(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return {8, 128, false, 1};
    case DType::kQ4_0:
      return {4, 8, false, 1};
    case DType::kQ4_1:
      return {4, 0, true, 1};
    case DType::kQ5_0:
      return {5, 16, false, 1};
    case DType::kQ5_1:
      return {5, 0, true, 1};
    case DType::kQ4_K:
      return {4, 0, true, 1};
    case DType::kQ5_K:
      return {5, 0, true, 1};
    case DType::kQ6_K:
      return {6, 32, false, 2};
    case DType::kMXFP4:
      return {5, 12, false, 1};
    default:
      return {};
  }
}

// Whether rows are multiplied with activations rounded to int8; other types with float32 ones.
constexpr bool MultipliesCodes(DType dtype) {
  return IsQuantized(dtype) && dtype != DType::kFP8_128;
}

// Bytes of one panel of a weight with `cols` columns (float types: [cols][16] elements).
constexpr int64_t PanelBytes(DType dtype, int64_t cols) {
  return kPanelRows * RowBytes(dtype, cols);
}

// Writes the panel of rows [row_begin, row_begin + 16) of `part`; rows beyond its end become zero.
void PackPanel(const TensorView& part, int64_t row_begin, uint8_t* out);

// The blocks of a panel as the multiply loops read them.
struct ExpandedBlocks {
  uint8_t* codes;  // [blocks][g][r][b], 512 bytes a block
  float* scales;   // [blocks][scales_per_block][16]
  float* mins;     // [blocks][16], if the type has minima
};

// The plain version of what the instruction sets' own code does: expands `blocks` blocks from
// `first` on (a multiple of 8 for K types).
void ExpandPanel(DType dtype, const uint8_t* panel, int64_t first, int64_t blocks,
                 const ExpandedBlocks& out);

}  // namespace longstride::kernels::cpu

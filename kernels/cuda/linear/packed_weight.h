// How weights lie in device memory. Plain functions that host and device code share.
//
// f32: row-major, as it came.
// f16, bf16 ("dense"): atoms of 8 rows x 64 columns, 1024 bytes, as the tensor cores read them from
// shared memory (128-byte swizzle): [rows / 8][cols / 64][8][64].
// fp8_128: the same atoms, of 8 rows x 128 columns of e4m3, 1024 bytes, behind which zeros and the
// scales follow, [cols / 128][rows, padded], float32. Inside 16 columns the order is
// 0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15: a thread of a warp-level product finds its four beside
// each other, and a product of whole rows does not care, if the activations have that order too.
// Block formats: units of 64 rows x 64 columns (256 for the K formats), each one contiguous piece:
// codes in the order in which the threads of a warpgroup hold them, then scales. Rows and columns
// are padded with zeros.
#pragma once

#include <cstdint>

#include "kernels/tensor_view.h"

namespace longstride::kernels::cuda {

inline constexpr int kBlockColumns = 64;  // columns of one step of the products
inline constexpr int kAtomRows = 8;
inline constexpr int kAtomBytes = 1024;
inline constexpr int kUnitRows = 64;
// Zeros behind a dense weight: its last pieces may be read beyond their end.
inline constexpr int kDensePadding = 4 * kAtomBytes;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Types whose packed form is atoms.
constexpr bool IsDense(DType t) {
  return t == DType::kF16 || t == DType::kBF16 || t == DType::kFP8_128;
}
// Columns of one atom.
constexpr int AtomColumns(DType t) { return t == DType::kFP8_128 ? 128 : kBlockColumns; }

constexpr int64_t AtomsBytes(DType t, int64_t rows, int64_t cols) {
  return CeilDiv(rows, kAtomRows) * CeilDiv(cols, AtomColumns(t)) * kAtomBytes + kDensePadding;
}
// fp8_128: floats between the scales of two blocks of columns; tiles of the last rows may read past
// them, and steps past the last columns.
constexpr int64_t Fp8ScaleRows(int64_t rows) { return CeilDiv(rows, 256) * 256; }
constexpr int64_t Fp8ScaleBytes(int64_t rows, int64_t cols) {
  return ((CeilDiv(cols, 128) + 3) * Fp8ScaleRows(rows) + kUnitRows) * 4;
}

// Steps of 64 columns in one unit.
constexpr int UnitBlocks(DType t) { return BlockElements(t) == 256 ? 4 : 1; }

constexpr int UnitBytes(DType t) {
  switch (t) {
    case DType::kQ8_0: return 4096 + 256;                // codes, 2 scales a row
    case DType::kQ4_0: return 2048 + 256;
    case DType::kQ4_1: return 2048 + 512;                // scale and minimum
    case DType::kQ5_0: return 2048 + 512 + 256;          // nibbles, fifth bits
    case DType::kQ5_1: return 2048 + 512 + 512;
    case DType::kMXFP4: return 2048 + 128;               // one exponent byte each
    case DType::kQ4_K: return 8192 + 1024 + 256;         // 8-bit scales and minima, two halves a row
    case DType::kQ5_K: return 8192 + 2048 + 1024 + 256;
    case DType::kQ6_K: return 8192 + 4096 + 1024 + 128;  // nibbles, bit pairs, scales, one half a row
    default: return 0;
  }
}

constexpr int64_t PackedUnits(DType t, int64_t cols) {
  return CeilDiv(cols, int64_t{kBlockColumns} * UnitBlocks(t));
}

constexpr int64_t PackedBytes(DType t, int64_t rows, int64_t cols) {
  if (t == DType::kF32) return rows * cols * 4;
  if (t == DType::kFP8_128) return AtomsBytes(t, rows, cols) + Fp8ScaleBytes(rows, cols);
  if (IsDense(t)) return AtomsBytes(t, rows, cols);
  return CeilDiv(rows, kUnitRows) * PackedUnits(t, cols) * UnitBytes(t);
}

// The 16-bit type of the activations that a weight is multiplied with. Block formats decode to f16,
// with rows of activations scaled by a power of two; MXFP4 is exact in bf16 and too wide for f16.
// Hopper's products have activations of e4m3 for fp8_128.
constexpr DType OperandType(DType t) {
  return t == DType::kBF16 || t == DType::kMXFP4 ? DType::kBF16 : DType::kF16;
}

// Into how many parts of K a block-format product is cut; each part is summed in order, then the
// parts. A function of the shape alone, so that one order holds for every number of rows and on
// every device.
constexpr int SplitParts(DType t, int64_t rows, int64_t cols) {
  if (!IsQuantized(t) || IsDense(t)) return 1;
  constexpr double kProcessors = 132;  // of the chip that the rule was made for
  const int64_t tiles = CeilDiv(rows, kUnitRows);
  const int64_t stages = CeilDiv(cols, 256);
  int best = 1;
  double best_balance = 0;
  for (int parts = 1; parts <= 8 && parts * 2 <= stages + 1; parts *= 2) {
    const double waves = static_cast<double>(tiles * parts) / kProcessors;
    const double ceiling = static_cast<double>(static_cast<int64_t>(waves + 0.999999));
    const double balance = waves / ceiling;
    const bool enough = waves >= 2.8 && balance >= 0.9;
    if (balance > best_balance || enough) {
      best = parts;
      best_balance = balance;
    }
    if (enough) break;
  }
  return best;
}

// Steps of 64 columns in each part; the last may have fewer.
constexpr int PartBlocks(DType t, int64_t rows, int64_t cols) {
  return static_cast<int>(CeilDiv(CeilDiv(cols, 256), SplitParts(t, rows, cols))) * 4;
}

}  // namespace longstride::kernels::cuda

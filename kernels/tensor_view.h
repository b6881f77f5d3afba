// A typed, strided, device-tagged view of memory that somebody else owns. Plain struct: a .cu file
// may include it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longstride::kernels {

enum class Device : uint8_t { kCpu, kCuda };

// Element types. In the quantised ones `BlockElements` consecutive elements of a row share one block of
// `BlockBytes` bytes, little-endian: GGUF's block formats (ggml's layouts), and kFP8_128, which every
// fp8 checkpoint's weights can be written in, whatever its scales are for.
enum class DType : uint8_t {
  kF32, kF16, kBF16, kF8E4M3, kI8, kU8, kI32, kI64,
  kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ4_K, kQ5_K, kQ6_K, kMXFP4, kFP8_128,
};

constexpr const char* DTypeName(DType t) {
  switch (t) {
    case DType::kF32: return "f32";
    case DType::kF16: return "f16";
    case DType::kBF16: return "bf16";
    case DType::kF8E4M3: return "f8e4m3";
    case DType::kI8: return "i8";
    case DType::kU8: return "u8";
    case DType::kI32: return "i32";
    case DType::kI64: return "i64";
    case DType::kQ8_0: return "q8_0";
    case DType::kQ4_0: return "q4_0";
    case DType::kQ4_1: return "q4_1";
    case DType::kQ5_0: return "q5_0";
    case DType::kQ5_1: return "q5_1";
    case DType::kQ4_K: return "q4_K";
    case DType::kQ5_K: return "q5_K";
    case DType::kQ6_K: return "q6_K";
    case DType::kMXFP4: return "mxfp4";
    case DType::kFP8_128: return "fp8_128";
  }
  return "?";
}

// Elements that share one block; 1 for plain types.
constexpr int64_t BlockElements(DType t) {
  switch (t) {
    case DType::kQ8_0: case DType::kQ4_0: case DType::kQ4_1: case DType::kQ5_0: case DType::kQ5_1:
    case DType::kMXFP4: return 32;
    case DType::kFP8_128: return 128;
    case DType::kQ4_K: case DType::kQ5_K: case DType::kQ6_K: return 256;
    default: return 1;
  }
}

// Bytes of one block (of one element for plain types).
constexpr int64_t BlockBytes(DType t) {
  switch (t) {
    case DType::kF32: case DType::kI32: return 4;
    case DType::kF16: case DType::kBF16: return 2;
    case DType::kF8E4M3: case DType::kI8: case DType::kU8: return 1;
    case DType::kI64: return 8;
    case DType::kQ8_0: return 34;   // f16 scale, 32 x i8
    case DType::kQ4_0: return 18;   // f16 scale, 16 bytes of nibbles
    case DType::kQ4_1: return 20;   // f16 scale, f16 minimum, 16 bytes of nibbles
    case DType::kQ5_0: return 22;   // f16 scale, u32 of fifth bits, 16 bytes of nibbles
    case DType::kQ5_1: return 24;   // f16 scale, f16 minimum, u32 of fifth bits, nibbles
    case DType::kQ4_K: return 144;  // f16 scale, f16 minimum scale, 12 bytes of 6-bit scales, nibbles
    case DType::kQ5_K: return 176;
    case DType::kQ6_K: return 210;  // 128 low nibbles, 64 high pairs, 16 x i8 scales, f16 scale
    case DType::kMXFP4: return 17;  // e8m0 scale, 16 bytes of e2m1 pairs
    case DType::kFP8_128: return 132;  // f32 scale, 128 x e4m3
  }
  return 0;
}

constexpr bool IsQuantized(DType t) { return BlockElements(t) > 1; }

// Bytes of one contiguous row of `elements`; a quantised row must be whole blocks.
constexpr int64_t RowBytes(DType t, int64_t elements) {
  return elements / BlockElements(t) * BlockBytes(t);
}

inline constexpr int kMaxRank = 4;

// Row-major unless strides say otherwise. shape[0] is the outermost dimension; the innermost
// dimension is contiguous, and quantised tensors are contiguous throughout.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device = Device::kCpu;
  int32_t rank = 0;
  int64_t shape[kMaxRank] = {0, 0, 0, 0};
  int64_t strides[kMaxRank] = {0, 0, 0, 0};  // in elements

  static TensorView Contiguous(const void* data, DType dtype, const int64_t* dims, int rank,
                               Device device = Device::kCpu) {
    TensorView v;
    v.data = const_cast<void*>(data);
    v.dtype = dtype;
    v.device = device;
    v.rank = rank;
    int64_t stride = 1;
    for (int d = rank - 1; d >= 0; --d) {
      v.shape[d] = dims[d];
      v.strides[d] = stride;
      stride *= dims[d];
    }
    return v;
  }
  static TensorView Vector(const void* data, DType dtype, int64_t n) {
    const int64_t dims[1] = {n};
    return Contiguous(data, dtype, dims, 1);
  }
  static TensorView Matrix(const void* data, DType dtype, int64_t rows, int64_t cols) {
    const int64_t dims[2] = {rows, cols};
    return Contiguous(data, dtype, dims, 2);
  }

  int64_t num_elements() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= shape[d];
    return n;
  }
  // Bytes of a contiguous tensor of this shape.
  int64_t num_bytes() const {
    return num_elements() / BlockElements(dtype) * BlockBytes(dtype);
  }
  template <typename T>
  T* ptr() const { return static_cast<T*>(data); }
  // Start of row `i` of a rank-2 view.
  template <typename T>
  T* row(int64_t i) const { return static_cast<T*>(data) + i * strides[0]; }
};

}  // namespace longstride::kernels

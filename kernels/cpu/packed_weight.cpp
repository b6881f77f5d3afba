#include "kernels/cpu/packed_weight.h"

#include <algorithm>
#include <cstring>

#include "config/base/check.h"
#include "kernels/quant.h"

namespace longstride::kernels::cpu {
namespace {

constexpr int kRows = kPanelRows;

// The codes of `blocks` 32-column blocks that start at a GGUF block of one row, each in [0,
// 2^bits).
void ReadCodes(DType dtype, const uint8_t* b, uint8_t* codes) {
  const auto nibbles = [&](const uint8_t* q) {
    for (int j = 0; j < 16; ++j) {
      codes[j] = q[j] & 15;
      codes[j + 16] = q[j] >> 4;
    }
  };
  const auto fifth_bits = [&](const uint8_t* p) {
    uint32_t high;
    std::memcpy(&high, p, sizeof(high));
    for (int j = 0; j < 32; ++j) codes[j] |= ((high >> j) & 1) << 4;
  };
  switch (dtype) {
    case DType::kQ8_0:
      for (int j = 0; j < 32; ++j) codes[j] = b[2 + j] ^ 0x80;
      return;
    case DType::kQ4_0:
      return nibbles(b + 2);
    case DType::kQ4_1:
      return nibbles(b + 4);
    case DType::kQ5_0:
      nibbles(b + 6);
      return fifth_bits(b + 2);
    case DType::kQ5_1:
      nibbles(b + 8);
      return fifth_bits(b + 4);
    case DType::kMXFP4:
      return nibbles(b + 1);
    case DType::kQ4_K:
    case DType::kQ5_K: {
      const bool five = dtype == DType::kQ5_K;
      for (int s = 0; s < 8; ++s) {
        const uint8_t* q = b + (five ? 48 : 16) + s / 2 * 32;
        for (int l = 0; l < 32; ++l) {
          uint8_t code = s % 2 == 0 ? q[l] & 15 : q[l] >> 4;
          if (five) code |= ((b[16 + l] >> s) & 1) << 4;
          codes[s * 32 + l] = code;
        }
      }
      return;
    }
    case DType::kQ6_K:
      for (int s = 0; s < 8; ++s) {
        const int part = s % 4;
        const uint8_t* low = b + s / 4 * 64 + (part % 2) * 32;
        const uint8_t* high = b + 128 + s / 4 * 32;
        for (int l = 0; l < 32; ++l) {
          const uint8_t nibble = part < 2 ? low[l] & 15 : low[l] >> 4;
          codes[s * 32 + l] = nibble | ((high[l] >> (2 * part)) & 3) << 4;
        }
      }
      return;
    default:
      LS_CHECK(false && "not a block type");
  }
}

// Places one row's 32 codes in the bit planes that start at `out`.
void PlaceCodes(int bits, const uint8_t* codes, int r, uint8_t* out) {
  if (bits == 8) {
    for (int g = 0; g < 8; ++g) std::memcpy(out + (g * kRows + r) * 4, codes + g * 4, 4);
    return;
  }
  if (bits == 5) {
    for (int b = 0; b < 4; ++b) {
      uint8_t plane = 0;
      for (int g = 0; g < 8; ++g) plane |= (codes[g * 4 + b] >> 4) << g;
      out[r * 4 + b] = plane;
    }
    out += 64;
  } else if (bits == 6) {
    for (int g = 0; g < 8; ++g) {
      for (int b = 0; b < 4; ++b) {
        out[(g / 4 * kRows + r) * 4 + b] |= (codes[g * 4 + b] >> 4) << (2 * (g % 4));
      }
    }
    out += 128;
  }
  for (int g = 0; g < 4; ++g) {
    for (int b = 0; b < 4; ++b) {
      out[(g * kRows + r) * 4 + b] =
          static_cast<uint8_t>((codes[g * 4 + b] & 15) | (codes[(g + 4) * 4 + b] & 15) << 4);
    }
  }
}

// Bits that PlaceCodes stores: MXFP4 keeps its 4-bit indices.
int StoredBits(DType dtype) { return dtype == DType::kMXFP4 ? 4 : TraitsOf(dtype).bits; }

int64_t PlaneBytes(int bits) { return 64 * bits; }  // 16 rows x 32 codes x bits / 8

// The scale fields of one row's GGUF block, at the head of the packed block(s). Returns their size.
int64_t PlaceHeader(DType dtype, const uint8_t* b, int r, uint8_t* out) {
  switch (dtype) {
    case DType::kMXFP4:
      out[r] = b[0];
      return kRows;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ5_0:
      std::memcpy(out + 2 * r, b, 2);
      return 2 * kRows;
    case DType::kQ4_1:
    case DType::kQ5_1:
      std::memcpy(out + 2 * r, b, 2);
      std::memcpy(out + 2 * (kRows + r), b + 2, 2);
      return 4 * kRows;
    case DType::kQ4_K:
    case DType::kQ5_K:
      std::memcpy(out + 2 * r, b, 2);
      std::memcpy(out + 2 * (kRows + r), b + 2, 2);
      for (int i = 0; i < 12; ++i) out[4 * kRows + i * kRows + r] = b[4 + i];
      return 16 * kRows;
    case DType::kQ6_K:
      std::memcpy(out + 2 * r, b + 208, 2);
      for (int i = 0; i < 16; ++i) out[2 * kRows + i * kRows + r] = b[192 + i];
      return 18 * kRows;
    default:
      LS_CHECK(false && "not a block type");
      return 0;
  }
}

void PackFloats(const TensorView& part, int64_t row_begin, uint8_t* out) {
  const int64_t size = BlockBytes(part.dtype);
  const int64_t cols = part.shape[1];
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = row_begin + r;
    if (row >= part.shape[0]) continue;
    const char* in = part.ptr<char>() + row * part.strides[0] * size;
    for (int64_t k = 0; k < cols; ++k) {
      std::memcpy(out + (k * kRows + r) * size, in + k * size, size);
    }
  }
}

void PackFp8(const TensorView& part, int64_t row_begin, uint8_t* out) {
  const int64_t size = BlockBytes(part.dtype), blocks = part.shape[1] / BlockElements(part.dtype);
  const int64_t rows = std::min<int64_t>(part.shape[0] - row_begin, kRows);
  for (int64_t b = 0; b < blocks; ++b, out += kRows * size) {
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* in = part.ptr<uint8_t>() + ((row_begin + r) * blocks + b) * size;
      std::memcpy(out + r * 4, in, 4);
      for (int k = 0; k < 128; ++k) out[kRows * 4 + k * kRows + r] = in[4 + k];
    }
  }
}

float LoadHalf(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return HalfToFloat(bits);
}

void ExpandCodes(DType dtype, const uint8_t* planes, uint8_t* codes) {
  const int bits = StoredBits(dtype);
  const uint8_t* nibbles = planes + (bits == 5 ? 64 : bits == 6 ? 128 : 0);
  for (int g = 0; g < 8; ++g) {
    for (int i = 0; i < 64; ++i) {
      uint8_t* code = codes + g * 64 + i;
      if (bits == 8) {
        *code = planes[g * 64 + i];
        continue;
      }
      const uint8_t byte = nibbles[g % 4 * 64 + i];
      *code = g < 4 ? byte & 15 : byte >> 4;
      if (bits == 5) *code |= ((planes[i] >> g) & 1) << 4;
      if (bits == 6) *code |= ((planes[g / 4 * 64 + i] >> (2 * (g % 4))) & 3) << 4;
      if (dtype == DType::kMXFP4) *code = static_cast<uint8_t>(kMxfp4Doubled[*code] + 12);
    }
  }
}

// The scales and minima of block `s` of a K type's eight.
void ExpandKScales(DType dtype, const uint8_t* header, int s, float* scales, float* mins) {
  for (int r = 0; r < kRows; ++r) {
    const float d = LoadHalf(header + 2 * r);
    if (dtype == DType::kQ6_K) {
      for (int half = 0; half < 2; ++half) {
        const uint8_t scale = header[2 * kRows + (2 * s + half) * kRows + r];
        scales[half * kRows + r] = d * static_cast<int8_t>(scale);
      }
      continue;
    }
    uint8_t packed[12], scale, minimum;
    for (int i = 0; i < 12; ++i) packed[i] = header[(4 + i) * kRows + r];
    UnpackScaleMinK4(packed, s, &scale, &minimum);
    scales[r] = d * scale;
    mins[r] = -(LoadHalf(header + 2 * (kRows + r)) * minimum);
  }
}

void ExpandScales(DType dtype, const uint8_t* header, float* scales, float* mins) {
  for (int r = 0; r < kRows; ++r) {
    scales[r] = dtype == DType::kMXFP4 ? E8m0Half(header[r]) : LoadHalf(header + 2 * r);
    if (TraitsOf(dtype).has_min) mins[r] = LoadHalf(header + 2 * (kRows + r));
  }
}

}  // namespace

void PackPanel(const TensorView& part, int64_t row_begin, uint8_t* out) {
  const int64_t cols = part.shape[1];
  std::memset(out, 0, PanelBytes(part.dtype, cols));
  if (!IsQuantized(part.dtype)) return PackFloats(part, row_begin, out);
  if (part.dtype == DType::kFP8_128) return PackFp8(part, row_begin, out);
  const int64_t elements = BlockElements(part.dtype);
  const int64_t block_bytes = BlockBytes(part.dtype);
  const int bits = StoredBits(part.dtype);
  const int64_t last = std::min<int64_t>(part.shape[0] - row_begin, kRows);
  uint8_t codes[256];
  for (int64_t b = 0; b < cols / elements; ++b, out += kRows * block_bytes) {
    for (int r = 0; r < last; ++r) {
      const int64_t offset = ((row_begin + r) * (cols / elements) + b) * block_bytes;
      const uint8_t* block = part.ptr<uint8_t>() + offset;
      const int64_t header = PlaceHeader(part.dtype, block, r, out);
      ReadCodes(part.dtype, block, codes);
      for (int64_t s = 0; s < elements / kBlockCols; ++s) {
        PlaceCodes(bits, codes + s * kBlockCols, r, out + header + s * PlaneBytes(bits));
      }
    }
  }
}

void ExpandPanel(DType dtype, const uint8_t* panel, int64_t first, int64_t blocks,
                 const ExpandedBlocks& out) {
  const int64_t per_group = BlockElements(dtype) / kBlockCols;
  const int64_t group_bytes = kRows * BlockBytes(dtype);
  const int64_t header_bytes = group_bytes - per_group * PlaneBytes(StoredBits(dtype));
  const int scales = TraitsOf(dtype).scales_per_block;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t block = first + i;
    const uint8_t* header = panel + block / per_group * group_bytes;
    const int64_t s = block % per_group;
    ExpandCodes(dtype, header + header_bytes + s * PlaneBytes(StoredBits(dtype)),
                out.codes + i * 512);
    float* block_scales = out.scales + i * scales * kRows;
    if (per_group == 1) {
      ExpandScales(dtype, header, block_scales, out.mins + i * kRows);
    } else {
      ExpandKScales(dtype, header, static_cast<int>(s), block_scales, out.mins + i * kRows);
    }
  }
}

}  // namespace longstride::kernels::cpu

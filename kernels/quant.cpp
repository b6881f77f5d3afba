#include "kernels/quant.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "config/base/check.h"

namespace longstride::kernels {
namespace {

constexpr int kQK = 32;    // elements of a small block
constexpr int kQKK = 256;  // elements of a K block

uint16_t Load16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

uint32_t Load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

float LoadHalf(const uint8_t* p) { return HalfToFloat(Load16(p)); }

void DequantizeQ8_0(const uint8_t* b, float* y) {
  const float d = LoadHalf(b);
  for (int j = 0; j < kQK; ++j) y[j] = static_cast<int8_t>(b[2 + j]) * d;
}

void DequantizeQ4_0(const uint8_t* b, float* y) {
  const float d = LoadHalf(b);
  for (int j = 0; j < kQK / 2; ++j) {
    y[j] = ((b[2 + j] & 15) - 8) * d;
    y[j + 16] = ((b[2 + j] >> 4) - 8) * d;
  }
}

void DequantizeQ4_1(const uint8_t* b, float* y) {
  const float d = LoadHalf(b);
  const float m = LoadHalf(b + 2);
  for (int j = 0; j < kQK / 2; ++j) {
    y[j] = (b[4 + j] & 15) * d + m;
    y[j + 16] = (b[4 + j] >> 4) * d + m;
  }
}

void DequantizeQ5_0(const uint8_t* b, float* y) {
  const float d = LoadHalf(b);
  const uint32_t high = Load32(b + 2);
  for (int j = 0; j < kQK / 2; ++j) {
    const int lo = (b[6 + j] & 15) | ((high >> j) & 1) << 4;
    const int hi = (b[6 + j] >> 4) | ((high >> (j + 16)) & 1) << 4;
    y[j] = (lo - 16) * d;
    y[j + 16] = (hi - 16) * d;
  }
}

void DequantizeQ5_1(const uint8_t* b, float* y) {
  const float d = LoadHalf(b);
  const float m = LoadHalf(b + 2);
  const uint32_t high = Load32(b + 4);
  for (int j = 0; j < kQK / 2; ++j) {
    const int lo = (b[8 + j] & 15) | ((high >> j) & 1) << 4;
    const int hi = (b[8 + j] >> 4) | ((high >> (j + 16)) & 1) << 4;
    y[j] = lo * d + m;
    y[j + 16] = hi * d + m;
  }
}

// Q4_K and Q5_K differ in the fifth bits only: bit s of `high[l]` belongs to sub-block s.
void DequantizeK45(const uint8_t* b, const uint8_t* high, const uint8_t* q, float* y) {
  const float d = LoadHalf(b);
  const float dmin = LoadHalf(b + 2);
  for (int s = 0; s < 8; ++s) {
    uint8_t scale, minimum;
    UnpackScaleMinK4(b + 4, s, &scale, &minimum);
    const float ds = d * scale;
    const float ms = dmin * minimum;
    const uint8_t* qs = q + s / 2 * 32;
    for (int l = 0; l < 32; ++l) {
      int code = s % 2 == 0 ? qs[l] & 15 : qs[l] >> 4;
      if (high != nullptr) code += ((high[l] >> s) & 1) << 4;
      y[s * 32 + l] = ds * code - ms;
    }
  }
}

void DequantizeQ6_K(const uint8_t* b, float* y) {
  const uint8_t* low = b;
  const uint8_t* high = b + 128;
  const auto* scales = reinterpret_cast<const int8_t*>(b + 192);
  const float d = LoadHalf(b + 208);
  for (int half = 0; half < 2; ++half) {
    for (int part = 0; part < 4; ++part) {
      for (int l = 0; l < 32; ++l) {
        const uint8_t byte = low[half * 64 + (part % 2) * 32 + l];
        const int nibble = part < 2 ? byte & 15 : byte >> 4;
        const int bits = (high[half * 32 + l] >> (2 * part)) & 3;
        const float scale = d * scales[half * 8 + part * 2 + l / 16];
        y[half * 128 + part * 32 + l] = scale * ((nibble | bits << 4) - 32);
      }
    }
  }
}

void DequantizeMxfp4(const uint8_t* b, float* y) {
  const float d = E8m0Half(b[0]);
  for (int j = 0; j < kQK / 2; ++j) {
    y[j] = kMxfp4Doubled[b[1 + j] & 15] * d;
    y[j + 16] = kMxfp4Doubled[b[1 + j] >> 4] * d;
  }
}

void DequantizeFp8(const uint8_t* b, float* y) {
  float scale;
  std::memcpy(&scale, b, sizeof(scale));
  for (int j = 0; j < 128; ++j) y[j] = E4m3ToFloat(b[4 + j]) * scale;
}

void DequantizeBlock(DType dtype, const uint8_t* b, float* y) {
  switch (dtype) {
    case DType::kQ8_0:
      return DequantizeQ8_0(b, y);
    case DType::kQ4_0:
      return DequantizeQ4_0(b, y);
    case DType::kQ4_1:
      return DequantizeQ4_1(b, y);
    case DType::kQ5_0:
      return DequantizeQ5_0(b, y);
    case DType::kQ5_1:
      return DequantizeQ5_1(b, y);
    case DType::kQ4_K:
      return DequantizeK45(b, nullptr, b + 16, y);
    case DType::kQ5_K:
      return DequantizeK45(b, b + 16, b + 48, y);
    case DType::kQ6_K:
      return DequantizeQ6_K(b, y);
    case DType::kMXFP4:
      return DequantizeMxfp4(b, y);
    case DType::kFP8_128:
      return DequantizeFp8(b, y);
    default:
      LS_CHECK(false && "not a block type");
  }
}

// Not a number if any element is not: the scale then carries it on.
float MaxAbs(const float* x, int64_t n) {
  uint32_t max = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t abs = std::bit_cast<uint32_t>(x[i]) & 0x7fffffff;
    max = abs > max ? abs : max;
  }
  return std::bit_cast<float>(max);
}

int8_t RoundToCode(float x) {
  return static_cast<int8_t>(std::fmax(-127.0f, std::fmin(127.0f, std::round(x))));
}

}  // namespace

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t abs = bits & 0x7fffffff;
  if (abs > 0x7f800000) return sign | 0x7e00 | static_cast<uint16_t>((abs >> 13) & 0x1ff);
  if (abs >= 0x477ff000) return sign | 0x7c00;  // rounds to 65536 or more
  if (abs < 0x38800000) {
    // Subnormal half: adding 0.5 puts the rounding at half's last bit, 2^-24.
    const float shifted = std::bit_cast<float>(abs) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000);
  }
  const uint32_t odd = (abs >> 13) & 1;
  return sign | static_cast<uint16_t>((abs - 0x38000000 + 0xfff + odd) >> 13);
}

float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t abs = bits & 0x7fff;
  if (abs >= 0x7c00) {
    const uint32_t quiet = abs > 0x7c00 ? 0x400000 : 0;
    return std::bit_cast<float>(sign | 0x7f800000 | quiet | (abs & 0x3ff) << 13);
  }
  if (abs >= 0x400) return std::bit_cast<float>(sign | ((abs << 13) + 0x38000000));
  const float subnormal = static_cast<float>(abs) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(subnormal));
}

uint16_t FloatToBfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float Bfloat16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

float E4m3ToFloat(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24, abs = bits & 0x7f;
  if (abs == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000);
  // The bits under float32's exponent are 2^-120 times the value, also where they are subnormal.
  return std::bit_cast<float>(sign | abs << 20) * 0x1p120f;
}

uint8_t FloatToE4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), abs = bits & 0x7fffffff;
  const uint32_t sign = bits >> 24 & 0x80;
  if (abs > 0x7f800000) return static_cast<uint8_t>(sign | 0x7f);
  if (abs >= 0x43e00000) return static_cast<uint8_t>(sign | 0x7e);  // 448
  if (abs < 0x3c800000) {
    // Below 2^-6 codes are multiples of 2^-9, which the sum with 2^14 rounds to.
    const float sum = std::bit_cast<float>(abs) + 0x1p14f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(sum) - 0x46800000u));
  }
  const uint32_t rounded = abs + 0x7ffff + (abs >> 20 & 1);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

float E8m0Half(uint8_t e) {
  const uint32_t bits = e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23;
  return std::bit_cast<float>(bits);
}

void UnpackScaleMinK4(const uint8_t* scales, int j, uint8_t* scale, uint8_t* minimum) {
  if (j < 4) {
    *scale = scales[j] & 63;
    *minimum = scales[j + 4] & 63;
  } else {
    *scale = static_cast<uint8_t>((scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4);
    *minimum = static_cast<uint8_t>((scales[j + 4] >> 4) | (scales[j] >> 6) << 4);
  }
}

bool CanDequantize(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
         IsQuantized(dtype);
}

void DequantizeRow(DType dtype, const void* row, int64_t n, float* out) {
  LS_CHECK(CanDequantize(dtype) && n % BlockElements(dtype) == 0);
  const auto* bytes = static_cast<const uint8_t*>(row);
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, row, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < n; ++i) out[i] = HalfToFloat(Load16(bytes + 2 * i));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) out[i] = Bfloat16ToFloat(Load16(bytes + 2 * i));
      return;
    default:
      break;
  }
  const int64_t step = BlockElements(dtype);
  for (int64_t i = 0; i < n; i += step, bytes += BlockBytes(dtype)) {
    DequantizeBlock(dtype, bytes, out + i);
  }
}

void QuantizeRowQ8_0(const float* x, int64_t n, void* out) {
  LS_CHECK_EQ(n % kQK, 0);
  auto* b = static_cast<uint8_t*>(out);
  for (int64_t i = 0; i < n; i += kQK, b += BlockBytes(DType::kQ8_0)) {
    const float d = MaxAbs(x + i, kQK) / 127.0f;
    const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
    const uint16_t half = FloatToHalf(d);
    std::memcpy(b, &half, sizeof(half));
    for (int j = 0; j < kQK; ++j) {
      b[2 + j] = static_cast<uint8_t>(RoundToCode(x[i + j] * inverse));
    }
  }
}

void QuantizeKvRow(const float* x, int64_t n, int8_t* codes, float* scale) {
  const float d = MaxAbs(x, n) / 127.0f;
  const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
  *scale = d;
  for (int64_t j = 0; j < n; ++j) codes[j] = RoundToCode(x[j] * inverse);
}

}  // namespace longstride::kernels

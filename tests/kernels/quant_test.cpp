#include "kernels/quant.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <sstream>
#include <vector>

namespace longstride::kernels {
namespace {

std::vector<uint8_t> FromHex(const std::string& hex) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

// The file is written by tests/parity/kernels/make_quant_golden.py with the gguf package.
TEST(QuantTest, DecodesEveryBlockTypeToTheBitsOfTheGgufPackage) {
  const std::map<std::string, DType> types = {
      {"Q8_0", DType::kQ8_0}, {"Q4_0", DType::kQ4_0}, {"Q4_1", DType::kQ4_1},
      {"Q5_0", DType::kQ5_0}, {"Q5_1", DType::kQ5_1}, {"Q4_K", DType::kQ4_K},
      {"Q5_K", DType::kQ5_K}, {"Q6_K", DType::kQ6_K}, {"MXFP4", DType::kMXFP4}};
  std::ifstream file(LONGSTRIDE_SOURCE_DIR "/tests/parity/kernels/quant_golden.txt");
  ASSERT_TRUE(file.good());
  std::map<std::string, int> blocks;
  std::string name, block_hex, values_hex;
  while (file >> name >> block_hex >> values_hex) {
    ASSERT_TRUE(types.contains(name)) << name;
    const DType type = types.at(name);
    const std::vector<uint8_t> block = FromHex(block_hex);
    const std::vector<uint8_t> want = FromHex(values_hex);
    ASSERT_EQ(static_cast<int64_t>(block.size()), BlockBytes(type));
    ASSERT_EQ(static_cast<int64_t>(want.size()), 4 * BlockElements(type));
    std::vector<float> got(BlockElements(type));
    DequantizeRow(type, block.data(), BlockElements(type), got.data());
    for (size_t i = 0; i < got.size(); ++i) {
      float value;
      std::memcpy(&value, want.data() + 4 * i, 4);
      // -0 and 0 are the same weight; the package's product order decides the sign.
      if (value == 0.0f && got[i] == 0.0f) continue;
      EXPECT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(value))
          << name << " element " << i << ": " << got[i] << " vs " << value;
    }
    ++blocks[name];
  }
  for (const auto& [type_name, type] : types) EXPECT_GE(blocks[type_name], 4) << type_name;
}

TEST(QuantTest, HalfRoundTripsEveryFiniteValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      EXPECT_EQ(FloatToHalf(value), bits);
    }
  }
}

TEST(QuantTest, HalfRoundsToNearestEven) {
  // The neighbours of x in half precision bracket it; the nearer one must be chosen.
  std::mt19937 rng(7);
  for (int i = 0; i < 200000; ++i) {
    const uint32_t bits = rng();
    const float x = std::bit_cast<float>(bits);
    if (std::isnan(x)) continue;
    const uint16_t half = FloatToHalf(x);
    if (std::fabs(x) >= 65520.0f) {
      EXPECT_EQ(half & 0x7fff, 0x7c00) << x;
      continue;
    }
    const double error = std::fabs(double{HalfToFloat(half)} - x);
    for (const int step : {-1, 1}) {
      const uint16_t other = static_cast<uint16_t>(half + step);
      const double value = HalfToFloat(other);
      if (!std::isfinite(value) || (other & 0x8000) != (half & 0x8000)) continue;
      const double other_error = std::fabs(value - x);
      EXPECT_LE(error, other_error) << x;
      if (error == other_error) {
        EXPECT_EQ(half & 1, 0) << x;
      }
    }
  }
  EXPECT_EQ(FloatToHalf(65519.996f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(0x1p-25f), 0);  // halfway to the smallest subnormal: to even
  EXPECT_EQ(FloatToHalf(0x1.000002p-25f), 1);
  EXPECT_EQ(FloatToHalf(-0.0f), 0x8000);
  EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(std::nanf("")))));
}

TEST(QuantTest, E4m3RoundsToNearestEvenAndSaturates) {
  EXPECT_EQ(E4m3ToFloat(0x38), 1.0f);
  EXPECT_EQ(E4m3ToFloat(0x01), 0x1p-9f);
  EXPECT_EQ(E4m3ToFloat(0x7e), 448.0f);
  EXPECT_EQ(FloatToE4m3(1e6f), 0x7e);
  EXPECT_EQ(FloatToE4m3(-std::numeric_limits<float>::infinity()), 0xfe);
  EXPECT_TRUE(std::isnan(E4m3ToFloat(FloatToE4m3(std::nanf("")))));
  for (int code = 0; code < 0x7e; ++code) {
    const float low = E4m3ToFloat(static_cast<uint8_t>(code));
    const float high = E4m3ToFloat(static_cast<uint8_t>(code + 1));
    const float middle = (low + high) / 2;  // exact
    EXPECT_EQ(FloatToE4m3(low), code);
    EXPECT_EQ(FloatToE4m3(-low), code | 0x80);
    EXPECT_EQ(FloatToE4m3(middle), code + (code & 1));
    EXPECT_EQ(FloatToE4m3(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(FloatToE4m3(std::nextafter(middle, 500.0f)), code + 1);
  }
}

TEST(QuantTest, Bfloat16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBfloat16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBfloat16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(FloatToBfloat16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBfloat16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(FloatToBfloat16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(Bfloat16ToFloat(FloatToBfloat16(std::nanf("")))));
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = Bfloat16ToFloat(static_cast<uint16_t>(bits));
    if (!std::isnan(value)) {
      EXPECT_EQ(FloatToBfloat16(value), bits);
    }
  }
}

TEST(QuantTest, Q8ErrorIsAtMostHalfAStep) {
  std::mt19937 rng(11);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (int trial = 0; trial < 50; ++trial) {
    std::vector<float> x(256), back(256);
    for (float& v : x) v = normal(rng);
    std::vector<uint8_t> blocks(RowBytes(DType::kQ8_0, 256));
    QuantizeRowQ8_0(x.data(), 256, blocks.data());
    DequantizeRow(DType::kQ8_0, blocks.data(), 256, back.data());
    for (int b = 0; b < 8; ++b) {
      float max = 0.0f;
      for (int i = 0; i < 32; ++i) max = std::max(max, std::fabs(x[b * 32 + i]));
      for (int i = b * 32; i < b * 32 + 32; ++i) {
        EXPECT_LE(std::fabs(back[i] - x[i]), max / 127 / 2 + std::fabs(x[i]) / 2048 + 1e-6f);
      }
    }
    std::vector<int8_t> codes(256);
    float scale;
    QuantizeKvRow(x.data(), 256, codes.data(), &scale);
    for (int i = 0; i < 256; ++i) {
      EXPECT_LE(std::fabs(codes[i] * scale - x[i]), scale * 0.50001f);
    }
  }
}

TEST(QuantTest, KvRowOfZerosHasScaleZeroAndNaNStaysVisible) {
  std::vector<float> x(64, 0.0f);
  std::vector<int8_t> codes(64, 1);
  float scale = 1.0f;
  QuantizeKvRow(x.data(), 64, codes.data(), &scale);
  EXPECT_EQ(scale, 0.0f);
  for (const int8_t c : codes) EXPECT_EQ(c, 0);
  x[5] = std::nanf("");
  QuantizeKvRow(x.data(), 64, codes.data(), &scale);
  EXPECT_TRUE(std::isnan(scale));
}

TEST(QuantTest, E4m3IsTheSpecificationsForEveryCode) {
  for (int code = 0; code < 256; ++code) {
    const float got = E4m3ToFloat(static_cast<uint8_t>(code));
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(got)) << code;
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    EXPECT_EQ(got, code < 128 ? magnitude : -magnitude) << code;
    EXPECT_EQ(std::signbit(got), code >= 128) << code;
  }
}

}  // namespace
}  // namespace longstride::kernels

// What the kernel tests share: printed seeds, random tensors of every dtype, backends by name.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/quant.h"

namespace longstride::kernels {

#define ASSERT_LS_OK(expr)                              \
  do {                                                  \
    const absl::Status ls_test_status = (expr);         \
    ASSERT_TRUE(ls_test_status.ok()) << ls_test_status; \
  } while (false)

// Seeded from the clock unless LONGSTRIDE_TEST_SEED is set; prints the seed with every failure.
class SeededTest : public testing::Test {
 protected:
  SeededTest() : seed_(ChooseSeed()), rng(seed_), trace_(__FILE__, __LINE__, SeedText()) {}

 private:
  static uint32_t ChooseSeed() {
    const char* wanted = std::getenv("LONGSTRIDE_TEST_SEED");
    return wanted != nullptr ? static_cast<uint32_t>(std::strtoul(wanted, nullptr, 10))
                             : std::random_device()();
  }
  std::string SeedText() const {
    return "rerun with LONGSTRIDE_TEST_SEED=" + std::to_string(seed_);
  }
  uint32_t seed_;

 protected:
  std::mt19937 rng;
  int RandomInt(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); }
  std::vector<float> Normal(int64_t n, float sigma = 1.0f) {
    std::normal_distribution<float> normal(0.0f, sigma);
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = normal(rng);
    return v;
  }

 private:
  testing::ScopedTrace trace_;
};

inline const char* const kIsaNames[] = {"portable", "avx2", "avxvnni", "avx512vnni"};

// A cpu backend, or null where this processor lacks the instruction set.
inline std::unique_ptr<Backend> MakeCpu(const std::string& isa, int threads = 2) {
  auto backend = MakeBackend(BackendKind::kCpu, {.num_threads = threads, .isa = isa});
  return backend.ok() ? *std::move(backend) : nullptr;
}
inline std::unique_ptr<Backend> MakeReference() {
  return *MakeBackend(BackendKind::kReference, {});
}

inline const DType kWeightTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                     DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                     DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kMXFP4,
                                     DType::kFP8_128};

// Bytes of a random [rows, cols] tensor whose decoded values are of order 1.
inline std::vector<uint8_t> RandomWeight(DType type, int64_t rows, int64_t cols,
                                         std::mt19937& rng) {
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * RowBytes(type, cols)));
  std::normal_distribution<float> normal(0.0f, 1.0f);
  const auto put_half = [&](uint8_t* p, float value) {
    const uint16_t half = FloatToHalf(value);
    std::memcpy(p, &half, 2);
  };
  if (!IsQuantized(type)) {
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float x = normal(rng);
      if (type == DType::kF32) std::memcpy(&bytes[4 * i], &x, 4);
      const uint16_t b = type == DType::kF16 ? FloatToHalf(x) : FloatToBfloat16(x);
      if (type != DType::kF32) std::memcpy(&bytes[2 * i], &b, 2);
    }
    return bytes;
  }
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(rng());
  for (size_t i = 0; i < bytes.size(); i += BlockBytes(type)) {
    uint8_t* b = &bytes[i];
    const float spread = 0.5f + 0.5f * std::fabs(normal(rng));
    switch (type) {
      case DType::kQ8_0:
        put_half(b, spread / 64);
        break;
      case DType::kQ4_0:
        put_half(b, -spread / 4);
        break;
      case DType::kQ5_0:
        put_half(b, spread / 8);
        break;
      case DType::kQ4_1:
        put_half(b, spread / 8);
        put_half(b + 2, -spread);
        break;
      case DType::kQ5_1:
        put_half(b, spread / 16);
        put_half(b + 2, -spread);
        break;
      case DType::kQ4_K:
      case DType::kQ5_K:
        put_half(b, spread / 512);
        put_half(b + 2, spread / 64);
        break;
      case DType::kQ6_K:
        put_half(b + 208, spread / 2048);
        break;
      case DType::kMXFP4:
        b[0] = static_cast<uint8_t>(124 + rng() % 4);
        break;
      case DType::kFP8_128: {
        const float scale = spread / 128;
        std::memcpy(b, &scale, sizeof(scale));
        for (int k = 4; k < 132; ++k) {
          if ((b[k] & 0x7f) == 0x7f) b[k] ^= 1;  // not a number
        }
        break;
      }
      default:
        break;
    }
  }
  return bytes;
}

inline std::vector<float> Decode(DType type, const std::vector<uint8_t>& bytes, int64_t cols) {
  const int64_t rows = static_cast<int64_t>(bytes.size()) / RowBytes(type, cols);
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    DequantizeRow(type, &bytes[r * RowBytes(type, cols)], cols, &values[r * cols]);
  }
  return values;
}

inline TensorView View2(std::vector<float>& v, int64_t rows, int64_t cols) {
  return TensorView::Matrix(v.data(), DType::kF32, rows, cols);
}
inline TensorView View3(std::vector<float>& v, int64_t rows, int64_t heads, int64_t dim) {
  const int64_t dims[3] = {rows, heads, dim};
  return TensorView::Contiguous(v.data(), DType::kF32, dims, 3);
}

}  // namespace longstride::kernels

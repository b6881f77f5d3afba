#include <algorithm>

#include "kernels/cuda/linear/linear.h"
#include "kernels/cuda/linear/packed_weight.h"
#include "kernels/cuda/linear/product.h"
#include "tests/kernels/cuda/gpu_test.h"

namespace longstride::kernels::cuda {
namespace {

// Relative error of a product against the decoded weight; see linear.h.
double Tolerance(DType type) {
  switch (type) {
    case DType::kF32:
      return 1e-6;
    case DType::kF16:
      return 3e-4;
    case DType::kBF16:
    case DType::kMXFP4:
      return 3e-3;
    case DType::kFP8_128:
      return TestKernels() == KernelChoice::kPortable ? 5e-3 : 4e-2;
    default:
      return 1e-3;
  }
}

// What fp8 weights are multiplied with, in exact arithmetic: see Conversion.
std::vector<float> RoundedToFp8(const std::vector<float>& x, int64_t cols) {
  std::vector<float> out(x.size());
  for (size_t row = 0; row < x.size(); row += cols) {
    float largest = 0.0f;
    for (size_t i = row; i < row + cols; ++i) {
      out[i] = Bfloat16ToFloat(FloatToBfloat16(x[i]));
      largest = std::max(largest, std::fabs(out[i]));
    }
    const float scale = 448.0f / largest;
    for (size_t i = row; i < row + cols; ++i) {
      out[i] = E4m3ToFloat(FloatToE4m3(out[i] * scale)) * (largest / 448.0f);
    }
  }
  return out;
}

class LinearGpuTest : public GpuTest {
 protected:
  std::unique_ptr<LinearWeight> Prepare(const std::vector<TensorView>& parts) {
    auto weight = PrepareCudaLinear(parts, *context_);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return weight.ok() ? *std::move(weight) : nullptr;
  }
  // [rows, weight rows] float32 of float32 activations.
  std::vector<float> Run(const LinearWeight& weight, const std::vector<float>& x, int64_t rows) {
    const size_t kept = buffers_.size();
    const float* in = OnDevice(x);
    void* out = Poisoned(rows * weight.rows() * 4);
    const absl::Status status =
        RunCudaLinear({.x = DeviceMatrix(in, DType::kF32, rows, weight.cols()),
                       .weight = &weight,
                       .out = DeviceMatrix(out, DType::kF32, rows, weight.rows())},
                      *context_);
    EXPECT_TRUE(status.ok()) << status;
    std::vector<float> result = Read<float>(out, rows * weight.rows());
    buffers_.resize(kept);
    return result;
  }
  static std::vector<double> Expected(const std::vector<float>& weight, const std::vector<float>& x,
                                      int64_t rows, int64_t cols) {
    const int64_t n_rows = static_cast<int64_t>(weight.size()) / cols;
    std::vector<double> out(static_cast<size_t>(rows * n_rows));
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t n = 0; n < n_rows; ++n) {
        double sum = 0;
        const float* w = &weight[n * cols];
        const float* v = &x[m * cols];
        for (int64_t k = 0; k < cols; ++k) sum += double{w[k]} * v[k];
        out[m * n_rows + n] = sum;
      }
    }
    return out;
  }
};

TEST_F(LinearGpuTest, MatchesTheDecodedWeight) {
  for (const DType type : kWeightTypes) {
    const int64_t step = BlockElements(type) == 1 ? 1 : BlockElements(type);
    const std::vector<int64_t> widths = step == 256   ? std::vector<int64_t>{256, 1280, 2304}
                                        : step == 128 ? std::vector<int64_t>{128, 384, 640, 2176}
                                        : step == 32  ? std::vector<int64_t>{32, 96, 640, 2080}
                                                      : std::vector<int64_t>{1, 31, 100, 640, 2056};
    for (const int64_t cols : widths) {
      for (const int64_t n : {1, 63, 200, 1030}) {
        const std::vector<uint8_t> bytes = RandomWeight(type, n, cols, rng);
        const std::vector<float> values = Decode(type, bytes, cols);
        const auto weight = Prepare({TensorView::Matrix(bytes.data(), type, n, cols)});
        ASSERT_NE(weight, nullptr);
        for (const int64_t rows : {1, 7, 33, 130}) {
          const std::vector<float> x = Normal(rows * cols, 3.0f);
          const std::vector<float> got = Run(*weight, x, rows);
          const std::vector<double> want = Expected(values, x, rows, cols);
          // A few results may cancel: they are measured against the size of what was added.
          double norm = 0, added = 0;
          for (const double v : want) norm += v * v;
          for (const float v : values) added += double{v} * v * 9 * rows;
          const double few = std::sqrt(std::max(1.0, added / std::max(norm, 1e-300)));
          // Products of single elements have no averaging.
          const double tolerance =
              Tolerance(type) * (cols < 64 ? 2 : 1) * (want.size() < 64 ? 2 * few : 1);
          ASSERT_LT(RelativeError(got, want), tolerance)
              << DTypeName(type) << " " << n << " x " << cols << ", rows " << rows;
        }
      }
    }
  }
}

TEST_F(LinearGpuTest, ARowHasTheSameBitsInEveryCompany) {
  for (const DType type : kWeightTypes) {
    // The second shape makes long calls take the kernel of wide tiles, the third makes one block
    // take all parts of a tile of block formats.
    for (const auto& [n, cols] :
         {std::pair<int64_t, int64_t>{328, 2304}, {12992, 256}, {8448, 2048}}) {
      if (n == 8448 && IsDense(type)) continue;
      const std::vector<uint8_t> bytes = RandomWeight(type, n, cols, rng);
      const auto weight = Prepare({TensorView::Matrix(bytes.data(), type, n, cols)});
      ASSERT_NE(weight, nullptr);
      const std::vector<float> x = Normal(512 * cols);
      const std::vector<float> all = Run(*weight, x, 512);
      for (const int64_t rows : {1, 2, 7, 8, 9, 16, 33, 64, 65, 128, 129, 255, 256, 257, 400}) {
        const int64_t first = RandomInt(0, static_cast<int>(512 - rows));
        const std::vector<float> some(x.begin() + first * cols, x.begin() + (first + rows) * cols);
        const std::vector<float> got = Run(*weight, some, rows);
        ASSERT_EQ(std::memcmp(got.data(), &all[first * n], got.size() * 4), 0)
            << DTypeName(type) << " " << n << " x " << cols << ", rows " << first << " + " << rows;
      }
    }
  }
}

TEST_F(LinearGpuTest, PartsOfSeveralTypesStackUp) {
  const int64_t cols = 512;
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<TensorView> parts;
  std::vector<float> values;
  for (const DType type : {DType::kQ4_K, DType::kQ4_K, DType::kQ6_K, DType::kBF16, DType::kF16,
                           DType::kF32, DType::kQ8_0, DType::kQ8_0}) {
    const int64_t rows = parts.size() % 2 == 0 ? 128 : 72;
    bytes.push_back(RandomWeight(type, rows, cols, rng));
    parts.push_back(TensorView::Matrix(bytes.back().data(), type, rows, cols));
    const std::vector<float> decoded = Decode(type, bytes.back(), cols);
    values.insert(values.end(), decoded.begin(), decoded.end());
  }
  const auto weight = Prepare(parts);
  ASSERT_NE(weight, nullptr);
  const std::vector<float> x = Normal(20 * cols);
  EXPECT_LT(RelativeError(Run(*weight, x, 20), Expected(values, x, 20, cols)), 3e-3);
}

// Parts with scales of their own, at rows where packed pieces begin and where they do not.
TEST_F(LinearGpuTest, Fp8IsMultipliedAsItsNumericsSay) {
  if (context_->path() == KernelPath::kPortable) GTEST_SKIP() << "activations stay bf16 there";
  for (const int64_t cols : {128, 1280, 4096, 16512}) {
    std::vector<std::vector<uint8_t>> bytes;
    std::vector<TensorView> parts;
    std::vector<float> values;
    for (const int64_t rows : {128, 64, 200, 72}) {
      bytes.push_back(RandomWeight(DType::kFP8_128, rows, cols, rng));
      parts.push_back(TensorView::Matrix(bytes.back().data(), DType::kFP8_128, rows, cols));
      const std::vector<float> decoded = Decode(DType::kFP8_128, bytes.back(), cols);
      values.insert(values.end(), decoded.begin(), decoded.end());
    }
    const auto weight = Prepare(parts);
    ASSERT_NE(weight, nullptr);
    for (const int64_t rows : {1, 9, 70, 300}) {
      std::vector<float> x = Normal(rows * cols);
      for (size_t i = 0; i < x.size(); i += 128) x[i] *= 20;  // small elements beside large ones
      EXPECT_LT(
          RelativeError(Run(*weight, x, rows), Expected(values, RoundedToFp8(x, cols), rows, cols)),
          1e-3)
          << rows << " x " << cols;
    }
  }
}

TEST_F(LinearGpuTest, BiasAccumulationStridesAndSixteenBitTensors) {
  const int64_t n = 150, cols = 384, x_stride = cols + 8, out_stride = n + 5;
  for (const DType type : {DType::kBF16, DType::kF16, DType::kQ5_0, DType::kF32, DType::kFP8_128}) {
    const std::vector<uint8_t> bytes = RandomWeight(type, n, cols, rng);
    const std::vector<float> values = Decode(type, bytes, cols);
    const auto weight = Prepare({TensorView::Matrix(bytes.data(), type, n, cols)});
    ASSERT_NE(weight, nullptr);
    for (const DType in : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const DType out : {DType::kF32, DType::kBF16, DType::kF16}) {
        const int64_t rows = RandomInt(1, 300);
        std::vector<float> x = Normal(rows * x_stride), before = Normal(rows * out_stride);
        if (in != DType::kF32) x = From16(To16(x, in), in);
        if (out != DType::kF32) before = From16(To16(before, out), out);
        const std::vector<float> bias = Normal(n);
        TensorView x_view = DeviceMatrix(
            in == DType::kF32 ? static_cast<void*>(OnDevice(x)) : OnDevice(To16(x, in)), in, rows,
            cols);
        x_view.strides[0] = x_stride;
        TensorView out_view = DeviceMatrix(
            out == DType::kF32 ? static_cast<void*>(OnDevice(before)) : OnDevice(To16(before, out)),
            out, rows, n);
        out_view.strides[0] = out_stride;
        ASSERT_LS_OK(RunCudaLinear({.x = x_view,
                                    .weight = weight.get(),
                                    .bias = TensorView::Vector(OnDevice(bias), DType::kF32, n),
                                    .accumulate = true,
                                    .out = out_view},
                                   *context_));
        const int64_t count = rows * out_stride;
        const std::vector<float> got = out == DType::kF32
                                           ? Read<float>(out_view.data, count)
                                           : From16(Read<uint16_t>(out_view.data, count), out);
        std::vector<double> want(before.begin(), before.end());
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t r = 0; r < n; ++r) {
            double sum = bias[r];
            for (int64_t k = 0; k < cols; ++k) {
              sum += double{values[r * cols + k]} * x[m * x_stride + k];
            }
            want[m * out_stride + r] += sum;
          }
        }
        for (int64_t m = 0; m < rows; ++m) {  // what lies between rows is not touched
          for (int64_t r = n; r < out_stride; ++r) {
            ASSERT_EQ(got[m * out_stride + r], before[m * out_stride + r]);
          }
        }
        const double rounding = out == DType::kBF16 ? 3e-3 : out == DType::kF16 ? 3e-4 : 0;
        ASSERT_LT(RelativeError(got, want), Tolerance(type) + rounding)
            << DTypeName(type) << " " << DTypeName(in) << " -> " << DTypeName(out);
        FreeBuffers();
      }
    }
  }
}

// Wide tiles leave through copies of their own; the bits are those of rows computed in narrow ones.
TEST_F(LinearGpuTest, WideTilesRoundAsNarrowOnesDo) {
  const int64_t n = 12872, cols = 128, rows = 300;
  ASSERT_EQ(TileRows(context_->path(), DType::kBF16, n, rows), 256);
  for (const DType type : {DType::kBF16, DType::kF16, DType::kFP8_128}) {
    const std::vector<uint8_t> bytes = RandomWeight(type, n, cols, rng);
    const auto weight = Prepare({TensorView::Matrix(bytes.data(), type, n, cols)});
    ASSERT_NE(weight, nullptr);
    for (const DType out : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const bool accumulate : {false, true}) {
        const std::vector<float> x = Normal(rows * cols), bias = Normal(n),
                                 before = Normal(rows * n);
        const float* in = OnDevice(x);
        const TensorView bias_view = TensorView::Vector(OnDevice(bias), DType::kF32, n);
        std::vector<char> results[2];
        for (const bool narrow : {false, true}) {
          char* to = out == DType::kF32 ? reinterpret_cast<char*>(OnDevice(before))
                                        : reinterpret_cast<char*>(OnDevice(To16(before, out)));
          const int64_t row_bytes = n * BlockBytes(out), step = narrow ? 100 : rows;
          for (int64_t row = 0; row < rows; row += step) {
            ASSERT_LS_OK(RunCudaLinear({.x = DeviceMatrix(in + row * cols, DType::kF32, step, cols),
                                        .weight = weight.get(),
                                        .bias = bias_view,
                                        .accumulate = accumulate,
                                        .out = DeviceMatrix(to + row * row_bytes, out, step, n)},
                                       *context_));
          }
          results[narrow ? 1 : 0] = Read<char>(to, rows * row_bytes);
        }
        EXPECT_TRUE(results[0] == results[1])
            << DTypeName(type) << " -> " << DTypeName(out) << (accumulate ? ", added" : "");
        FreeBuffers();
      }
    }
  }
}

TEST_F(LinearGpuTest, LargeAndSmallActivationsKeepTheirPrecision) {
  const int64_t n = 64, cols = 256;
  for (const DType type : {DType::kQ8_0, DType::kFP8_128}) {
    const std::vector<uint8_t> bytes = RandomWeight(type, n, cols, rng);
    const auto weight = Prepare({TensorView::Matrix(bytes.data(), type, n, cols)});
    ASSERT_NE(weight, nullptr);
    const std::vector<float> values = Decode(type, bytes, cols);
    for (const float size : {1e-30f, 1e-6f, 1e6f, 1e30f}) {
      const std::vector<float> x = Normal(3 * cols, size);
      EXPECT_LT(RelativeError(Run(*weight, x, 3), Expected(values, x, 3, cols)), Tolerance(type))
          << DTypeName(type) << " " << size;
    }
    // A row that is not finite spoils itself alone.
    std::vector<float> x = Normal(3 * cols);
    const std::vector<float> clean = Run(*weight, x, 3);
    x[cols + 5] = NAN;
    const std::vector<float> spoilt = Run(*weight, x, 3);
    EXPECT_TRUE(std::isnan(spoilt[n]));
    EXPECT_EQ(std::memcmp(spoilt.data(), clean.data(), n * 4), 0);
    EXPECT_EQ(std::memcmp(&spoilt[2 * n], &clean[2 * n], n * 4), 0);
  }
}

TEST_F(LinearGpuTest, OffsetsPastTwoToThe31) {
  const auto memory = context_->Memory();
  ASSERT_LS_OK(memory.status());
  if (memory->free_bytes < int64_t{40} << 30) GTEST_SKIP() << "needs 40 GB of device memory";
  // Results past 2^31 elements, few columns.
  {
    const int64_t n = 131080, cols = 64, rows = 16500;
    const std::vector<uint8_t> bytes = RandomWeight(DType::kBF16, n, cols, rng);
    const std::vector<float> values = Decode(DType::kBF16, bytes, cols);
    const auto weight = Prepare({TensorView::Matrix(bytes.data(), DType::kBF16, n, cols)});
    ASSERT_NE(weight, nullptr);
    const std::vector<float> x = Normal(rows * cols);
    auto* out = static_cast<float*>(Poisoned(rows * n * 4));
    ASSERT_LS_OK(RunCudaLinear({.x = DeviceMatrix(OnDevice(x), DType::kF32, rows, cols),
                                .weight = weight.get(),
                                .out = DeviceMatrix(out, DType::kF32, rows, n)},
                               *context_));
    for (const int64_t row : {int64_t{0}, int64_t{16390}, rows - 1}) {
      const std::vector<float> one(x.begin() + row * cols, x.begin() + (row + 1) * cols);
      EXPECT_LT(RelativeError(Read<float>(out + row * n, n), Expected(values, one, 1, cols)), 3e-3)
          << row;
    }
    FreeBuffers();
  }
  // A weight of more than 2^31 elements, on the device already: the same 1000 rows again and again.
  {
    const int64_t n = 262500, cols = 8192 + 64, period = 1000;
    const std::vector<uint8_t> bytes = RandomWeight(DType::kBF16, period, cols, rng);
    auto* big = static_cast<uint8_t*>(Poisoned(n * cols * 2));
    for (int64_t row = 0; row < n; row += period) {
      const int64_t rows = std::min(period, n - row);
      ASSERT_EQ(
          cudaMemcpy(big + row * cols * 2, bytes.data(), rows * cols * 2, cudaMemcpyHostToDevice),
          cudaSuccess);
    }
    const auto weight = Prepare({DeviceMatrix(big, DType::kBF16, n, cols)});
    ASSERT_NE(weight, nullptr);
    const std::vector<float> got = Run(*weight, Normal(2 * cols), 2);
    for (int64_t i = 0; i < 2 * n; ++i) {
      ASSERT_EQ(got[i], got[i / n * n + i % n % period]) << i;
    }
  }
}

TEST_F(LinearGpuTest, OtherTypesAreRefused) {
  const std::vector<uint8_t> bytes(64);
  const std::vector<TensorView> parts = {TensorView::Matrix(bytes.data(), DType::kI8, 4, 16)};
  const absl::Status status = PrepareCudaLinear(parts, *context_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
}

TEST(PackedWeightTest, SplitsDependOnTheShapeAloneAndCoverK) {
  for (const DType type : {DType::kQ4_K, DType::kQ8_0}) {
    for (const int64_t rows : {1, 640, 1024, 4096, 6144, 28672, 128256}) {
      for (const int64_t cols : {256, 768, 4096, 14336}) {
        const int64_t part = PartBlocks(type, rows, cols);
        EXPECT_EQ(part % 4, 0);
        EXPECT_LE(CeilDiv(cols, 64 * part), 8);
        EXPECT_GE(part * 64 * SplitParts(type, rows, cols), cols);
      }
    }
  }
}

}  // namespace
}  // namespace longstride::kernels::cuda

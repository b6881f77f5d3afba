#include <algorithm>

#include "tests/kernels/test_util.h"

namespace longstride::kernels {
namespace {

class LinearTest : public SeededTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    backend_ = MakeCpu(GetParam());
    if (backend_ == nullptr) GTEST_SKIP() << "this processor has no " << GetParam();
  }

  struct Weight {
    std::vector<std::vector<uint8_t>> bytes;
    std::vector<TensorView> parts;
    std::vector<float> values;  // [rows, cols]
    std::vector<DType> row_type;
    std::unique_ptr<LinearWeight> prepared;
  };

  Weight MakeWeight(Backend& backend, const std::vector<std::pair<DType, int64_t>>& parts,
                    int64_t cols) {
    Weight w;
    for (const auto& [type, rows] : parts) {
      w.bytes.push_back(RandomWeight(type, rows, cols, rng));
      w.parts.push_back(TensorView::Matrix(w.bytes.back().data(), type, rows, cols));
      const std::vector<float> values = Decode(type, w.bytes.back(), cols);
      w.values.insert(w.values.end(), values.begin(), values.end());
      w.row_type.insert(w.row_type.end(), rows, type);
    }
    bool keeps_views = true;
    auto prepared = backend.PrepareLinear(w.parts, &keeps_views);
    EXPECT_TRUE(prepared.ok()) << prepared.status();
    EXPECT_FALSE(keeps_views);
    w.prepared = *std::move(prepared);
    for (auto& bytes : w.bytes) std::fill(bytes.begin(), bytes.end(), 0xff);  // not needed any more
    return w;
  }

  static std::vector<float> Run(Backend& backend, const Weight& w, std::vector<float>& x,
                                int64_t rows) {
    std::vector<float> out(rows * w.prepared->rows(), -7.0f);
    const absl::Status status = backend.Linear({.x = View2(x, rows, w.prepared->cols()),
                                                .weight = w.prepared.get(),
                                                .out = View2(out, rows, w.prepared->rows())});
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  std::unique_ptr<Backend> backend_;
};

// Other quantised types are multiplied with activations rounded to int8.
bool RoundsActivations(DType type) { return IsQuantized(type) && type != DType::kFP8_128; }

// What they are multiplied with: x rounded to int8 per 32 elements.
std::vector<float> RoundedActivations(const std::vector<float>& x) {
  std::vector<float> y(x.size());
  for (size_t b = 0; b < x.size(); b += 32) {
    float max = 0.0f;
    for (size_t i = b; i < b + 32; ++i) max = std::max(max, std::fabs(x[i]));
    const float inverse = max > 0.0f ? 127.0f / max : 0.0f;
    for (size_t i = b; i < b + 32; ++i) y[i] = std::nearbyint(x[i] * inverse) * (max / 127.0f);
  }
  return y;
}

// Float weights: the sum of K products in float32. Quantised: the same for the rounded activations,
// with which only the summation differs.
TEST_P(LinearTest, MatchesDoublePrecisionProductsForEveryType) {
  for (const DType type : kWeightTypes) {
    for (int trial = 0; trial < 6; ++trial) {
      const int64_t unit = IsQuantized(type) ? BlockElements(type) : 1;
      const int64_t cols = trial == 0 ? 2304
                                      : unit * RandomInt(1, unit == 1    ? 300
                                                            : unit == 32 ? 21
                                                                         : 3);
      const int64_t n = RandomInt(1, 70), m = trial == 1 ? 1 : RandomInt(1, 33);
      const Weight w = MakeWeight(*backend_, {{type, n}}, cols);
      std::vector<float> x = Normal(m * cols);
      const std::vector<float> got = Run(*backend_, w, x, m);
      const std::vector<float> used = RoundsActivations(type) ? RoundedActivations(x) : x;
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          double want = 0.0, magnitude = 0.0;
          for (int64_t k = 0; k < cols; ++k) {
            const double product = double{used[i * cols + k]} * w.values[j * cols + k];
            want += product;
            magnitude += std::fabs(product);
          }
          ASSERT_NEAR(got[i * n + j], want, 1e-6 * magnitude + 1e-6)
              << DTypeName(type) << " M " << m << " N " << n << " K " << cols << " at " << i << ", "
              << j;
        }
      }
    }
  }
}

// Rounding an activation moves it by at most half a step, max|x| / 254 of its 32 elements.
TEST_P(LinearTest, QuantisationErrorStaysWithinHalfAStepOfEachActivation) {
  for (const DType type : kWeightTypes) {
    if (!RoundsActivations(type)) continue;
    const int64_t cols = 768, n = 40, m = 5;
    const Weight w = MakeWeight(*backend_, {{type, n}}, cols);
    std::vector<float> x = Normal(m * cols);
    const std::vector<float> got = Run(*backend_, w, x, m);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double want = 0.0, bound = 1e-4;
        for (int64_t b = 0; b < cols; b += 32) {
          double max = 0.0, weights = 0.0;
          for (int64_t k = b; k < b + 32; ++k) {
            want += double{x[i * cols + k]} * w.values[j * cols + k];
            max = std::max(max, std::fabs(double{x[i * cols + k]}));
            weights += std::fabs(w.values[j * cols + k]);
          }
          bound += max / 254 * weights * 1.00001;
        }
        ASSERT_NEAR(got[i * n + j], want, bound) << DTypeName(type);
      }
    }
  }
}

TEST_P(LinearTest, RowBitsDoNotDependOnTheOtherRowsOrTheThreads) {
  const auto one = MakeCpu(GetParam(), 1);
  const auto four = MakeCpu(GetParam(), 4);
  // The portable loops are slow: fewer rows there.
  const bool portable = std::string(GetParam()) == "portable";
  const int64_t rows = portable ? 150 : 300;
  for (const DType type : kWeightTypes) {
    const int64_t cols = portable ? 256 : 2304, n = 100;
    const Weight w = MakeWeight(*backend_, {{type, n}}, cols);
    std::vector<float> x = Normal(rows * cols);
    const std::vector<float> all = Run(*backend_, w, x, rows);
    ASSERT_EQ(all, Run(*one, w, x, rows)) << DTypeName(type);
    ASSERT_EQ(all, Run(*four, w, x, rows)) << DTypeName(type);
    for (int64_t m = 1; m <= 40; ++m) {
      const auto begin = RandomInt(0, static_cast<int>(rows - 40));
      std::vector<float> part(x.begin() + begin * cols, x.begin() + (begin + m) * cols);
      const std::vector<float> got = Run(m % 2 == 0 ? *four : *backend_, w, part, m);
      const std::vector<float> want(all.begin() + begin * n, all.begin() + (begin + m) * n);
      ASSERT_EQ(got, want) << DTypeName(type) << " M " << m;
    }
  }
}

TEST_P(LinearTest, ConcatenatedPartsOfMixedTypesBiasAccumulateAndStrides) {
  const int64_t cols = 256, m = 7;
  const Weight w = MakeWeight(
      *backend_, {{DType::kQ5_0, 37}, {DType::kQ8_0, 16}, {DType::kF32, 5}, {DType::kQ6_K, 33}},
      cols);
  const int64_t n = 37 + 16 + 5 + 33;
  ASSERT_EQ(w.prepared->rows(), n);
  std::vector<float> x = Normal(m * cols), bias = Normal(n), out = Normal(m * (n + 9));
  // Rows of x and out inside wider buffers.
  std::vector<float> wide(m * (cols + 13));
  for (int64_t i = 0; i < m; ++i) {
    std::copy_n(&x[i * cols], cols, &wide[i * (cols + 13)]);
  }
  TensorView x_view = View2(wide, m, cols), out_view = View2(out, m, n);
  x_view.strides[0] = cols + 13;
  out_view.strides[0] = n + 9;
  const std::vector<float> before = out, plain = Run(*backend_, w, x, m);
  ASSERT_LS_OK(backend_->Linear({.x = x_view,
                                 .weight = w.prepared.get(),
                                 .bias = TensorView::Vector(bias.data(), DType::kF32, n),
                                 .accumulate = true,
                                 .out = out_view}));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n + 9; ++j) {
      const float old = before[i * (n + 9) + j];
      const float want = j < n ? old + (plain[i * n + j] + bias[j]) : old;
      EXPECT_EQ(out[i * (n + 9) + j], want);
    }
  }
}

TEST_P(LinearTest, ValuesThatAreNotNumbersStayVisible) {
  for (const DType type : kWeightTypes) {
    const Weight w = MakeWeight(*backend_, {{type, 20}}, 512);
    std::vector<float> x = Normal(3 * 512);
    x[512 + 77] = std::nanf("");
    const std::vector<float> got = Run(*backend_, w, x, 3);
    for (int64_t j = 0; j < 20; ++j) {
      EXPECT_TRUE(std::isfinite(got[j]));
      EXPECT_TRUE(std::isnan(got[20 + j])) << DTypeName(type);
      EXPECT_TRUE(std::isfinite(got[40 + j]));
    }
  }
}

TEST_P(LinearTest, QuantisedWeightsTakeNoMoreBytesThanTheirTensor) {
  for (const DType type : kWeightTypes) {
    const Weight w = MakeWeight(*backend_, {{type, 64}}, 512);
    EXPECT_LE(w.prepared->owned_bytes(), 64 * RowBytes(type, 512)) << DTypeName(type);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, LinearTest, testing::ValuesIn(kIsaNames),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace longstride::kernels

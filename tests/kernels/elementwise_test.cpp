// Norms, rotary embedding, activations and the other row-wise ops: cpu against reference, and both
// against formulas in double where one line says what is meant.

#include <limits>

#include "tests/kernels/mirrored_backend.h"
#include "tests/kernels/test_util.h"

namespace longstride::kernels {
namespace {

class ElementwiseTest : public SeededTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    backend_ = MakeByName(GetParam());
    if (backend_ == nullptr) GTEST_SKIP() << "this machine has no " << GetParam();
  }

  void ExpectNear(const std::vector<float>& got, const std::vector<double>& want, double relative) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], want[i], relative * (std::fabs(want[i]) + 1e-3)) << "element " << i;
    }
  }

  std::unique_ptr<Backend> backend_;
};

TEST_P(ElementwiseTest, RmsNormIsTheFormula) {
  for (const int64_t dim : {1, 7, 8, 64, 100, 640, 2304}) {
    const int64_t rows = RandomInt(1, 40);
    std::vector<float> x = Normal(rows * dim, 3.0f), w = Normal(dim), out(x.size());
    std::vector<double> want(x.size());
    for (int64_t r = 0; r < rows; ++r) {
      double mean = 0.0;
      for (int64_t c = 0; c < dim; ++c) mean += double{x[r * dim + c]} * x[r * dim + c] / dim;
      for (int64_t c = 0; c < dim; ++c) {
        want[r * dim + c] = x[r * dim + c] / std::sqrt(mean + 1e-6) * (w[c] + 1.0);
      }
    }
    ASSERT_LS_OK(backend_->RmsNorm({.x = View2(x, rows, dim),
                                    .weight = TensorView::Vector(w.data(), DType::kF32, dim),
                                    .weight_offset = 1.0f,
                                    .out = View2(out, rows, dim)}));
    ExpectNear(out, want, 2e-6);
    // In place, without a weight.
    std::vector<float> y = x;
    ASSERT_LS_OK(backend_->RmsNorm({.x = View2(y, rows, dim), .out = View2(y, rows, dim)}));
    for (size_t i = 0; i < y.size(); ++i) want[i] /= w[i % dim] + 1.0;
    for (size_t i = 0; i < y.size(); ++i) {
      if (std::fabs(w[i % dim] + 1.0) > 0.01) {
        ASSERT_NEAR(y[i], want[i], 1e-4);
      }
    }
  }
}

TEST_P(ElementwiseTest, NormsPerHeadTakeAWeightPerHeadOrOneForAll) {
  const int64_t rows = 5, heads = 3, dim = 24, stride = heads * dim + 11;
  for (const bool per_head : {false, true}) {
    std::vector<float> x = Normal(rows * stride), w = Normal(per_head ? heads * dim : dim),
                       b = Normal(w.size()), out(x.size(), 5.0f), layer(x.size(), 5.0f);
    TensorView vx = View3(x, rows, heads, dim), vo = View3(out, rows, heads, dim),
               vl = View3(layer, rows, heads, dim);
    vx.strides[0] = vo.strides[0] = vl.strides[0] = stride;
    const TensorView vw = TensorView::Vector(w.data(), DType::kF32, w.size());
    const TensorView vb = TensorView::Vector(b.data(), DType::kF32, b.size());
    ASSERT_LS_OK(backend_->RmsNorm({.x = vx, .weight = vw, .out = vo}));
    ASSERT_LS_OK(backend_->LayerNorm({.x = vx, .weight = vw, .bias = vb, .out = vl}));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        const float* v = &x[r * stride + h * dim];
        double squares = 0.0, mean = 0.0, variance = 0.0;
        for (int64_t c = 0; c < dim; ++c) squares += double{v[c]} * v[c] / dim;
        for (int64_t c = 0; c < dim; ++c) mean += v[c] / static_cast<double>(dim);
        for (int64_t c = 0; c < dim; ++c) variance += (v[c] - mean) * (v[c] - mean) / dim;
        for (int64_t c = 0; c < dim; ++c) {
          const int64_t at = per_head ? h * dim + c : c;
          EXPECT_NEAR(out[r * stride + h * dim + c], v[c] / std::sqrt(squares + 1e-6) * w[at],
                      1e-5);
          EXPECT_NEAR(layer[r * stride + h * dim + c],
                      (v[c] - mean) / std::sqrt(variance + 1e-5) * w[at] + b[at], 1e-5);
        }
      }
      EXPECT_EQ(out[r * stride + heads * dim], 5.0f);
    }
  }
}

TEST_P(ElementwiseTest, MergeAttentionIsOneSoftmax) {
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  for (const int32_t parts : {1, 2, 3}) {
    const int64_t rows = RandomInt(1, 40), heads = 3, dim = RandomInt(1, 70);
    const int64_t stride = heads * dim + 5;
    std::vector<std::vector<float>> x(parts), lse(parts);
    MergeAttentionParams p = {.num_parts = parts};
    for (int32_t i = 0; i < parts; ++i) {
      x[i] = Normal(rows * stride);
      lse[i] = Normal(rows * heads, 5.0f);
      // Parts that see nothing, all of them in some rows.
      for (int64_t at = 0; at < rows * heads; ++at) {
        if (at % 7 < 2 || (at + i) % 5 == 0) lse[i][at] = kNothing;
      }
      p.parts[i] = View3(x[i], rows, heads, dim);
      p.parts[i].strides[0] = stride;
      p.lse[i] = lse[i].data();
    }
    std::vector<float> out(rows * stride, 9.0f);
    p.out = View3(out, rows, heads, dim);
    p.out.strides[0] = stride;
    ASSERT_LS_OK(backend_->MergeAttention(p));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        double total = 0;
        int32_t seen = 0, only = 0;
        for (int32_t i = 0; i < parts; ++i) {
          total += std::exp(double{lse[i][r * heads + h]});
          if (lse[i][r * heads + h] == kNothing) continue;
          ++seen;
          only = i;
        }
        for (int64_t c = 0; c < dim; ++c) {
          const int64_t at = r * stride + h * dim + c;
          double want = 0;
          for (int32_t i = 0; seen > 0 && i < parts; ++i) {
            want += std::exp(double{lse[i][r * heads + h]}) / total * x[i][at];
          }
          if (seen <= 1) {
            EXPECT_EQ(out[at], seen == 0 ? 0.0f : x[only][at]);
          } else {
            EXPECT_NEAR(out[at], want, 1e-5);
          }
        }
      }
      EXPECT_EQ(out[r * stride + heads * dim], 9.0f);
    }
    // What is not a number stays to be seen.
    lse[0][0] = std::numeric_limits<float>::quiet_NaN();
    ASSERT_LS_OK(backend_->MergeAttention(p));
    EXPECT_TRUE(std::isnan(out[0]));
  }
}

TEST_P(ElementwiseTest, RopeRotatesPairs) {
  for (const bool interleaved : {false, true}) {
    for (const int32_t n : {1, 8, 20, 32}) {
      const int64_t rows = 9, heads = 3, dim = 64;
      std::vector<float> x = Normal(rows * heads * dim), before = x, frequencies(n);
      for (int32_t f = 0; f < n; ++f) frequencies[f] = std::pow(10000.0f, -2.0f * f / dim);
      std::vector<int32_t> positions(rows);
      for (int32_t& p : positions) p = RandomInt(0, 30000);
      // Twice, the second time from what the backend may have kept.
      for (int call = 0; call < 2; ++call) {
        x = before;
        ASSERT_LS_OK(backend_->Rope({.x = View3(x, rows, heads, dim),
                                     .positions = positions.data(),
                                     .inv_freq = frequencies.data(),
                                     .num_frequencies = n,
                                     .interleaved = interleaved,
                                     .scale = 1.25f}));
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t h = 0; h < heads; ++h) {
            const float* in = &before[(r * heads + h) * dim];
            const float* out = &x[(r * heads + h) * dim];
            for (int32_t f = 0; f < n; ++f) {
              const double angle = static_cast<float>(positions[r]) * frequencies[f];
              const int a = interleaved ? 2 * f : f, b = interleaved ? 2 * f + 1 : f + n;
              EXPECT_NEAR(out[a], 1.25 * (in[a] * std::cos(angle) - in[b] * std::sin(angle)),
                          2e-6 * 8);
              EXPECT_NEAR(out[b], 1.25 * (in[a] * std::sin(angle) + in[b] * std::cos(angle)),
                          2e-6 * 8);
            }
            for (int64_t c = 2 * n; c < dim; ++c) EXPECT_EQ(out[c], in[c]);
          }
        }
      }
    }
  }
}

// Tables are kept by what they were made from: other positions, frequencies or scales are others.
TEST_P(ElementwiseTest, RopeNoticesEveryChangeOfItsInputs) {
  const auto reference = MakeReference();
  std::vector<float> frequencies = {1.0f, 0.1f, 0.01f, 0.001f};
  std::vector<int32_t> positions = {3, 5, 100};
  const std::vector<float> x = Normal(3 * 8);
  for (int change = 0; change < 40; ++change) {
    float scale = 1.0f;
    switch (change % 4) {
      case 1:
        positions[RandomInt(0, 2)] = RandomInt(0, 1000);
        break;
      case 2:
        frequencies[RandomInt(0, 3)] *= 0.5f;
        break;
      case 3:
        scale = static_cast<float>(RandomInt(1, 3));
        break;
      default:
        break;
    }
    std::vector<float> got = x, want = x;
    RopeParams p{.x = View3(got, 3, 1, 8),
                 .positions = positions.data(),
                 .inv_freq = frequencies.data(),
                 .num_frequencies = 4,
                 .scale = scale};
    ASSERT_LS_OK(backend_->Rope(p));
    p.x = View3(want, 3, 1, 8);
    ASSERT_LS_OK(reference->Rope(p));
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5);
  }
}

TEST_P(ElementwiseTest, PositionScaleIsLlama4sTemperature) {
  std::vector<float> x = Normal(4 * 2 * 16), before = x;
  const std::vector<int32_t> positions = {0, 8190, 8191, 100000};
  ASSERT_LS_OK(backend_->PositionScale({.x = View3(x, 4, 2, 16), .positions = positions.data()}));
  for (size_t i = 0; i < x.size(); ++i) {
    const double steps = std::floor((positions[i / 32] + 1.0) / 8192.0);
    EXPECT_NEAR(x[i], before[i] * (1.0 + 0.1 * std::log(1.0 + steps)), 1e-5);
  }
}

TEST_P(ElementwiseTest, GatedActivationsAreTheirFormulas) {
  for (const auto& [dim, gated] :
       {std::pair(1, true), std::pair(8, true), std::pair(13, true), std::pair(200, true),
        std::pair(13, false), std::pair(200, false)}) {
    const int64_t rows = 7, stride = 2 * dim + 3;
    std::vector<float> both = Normal(rows * stride, 6.0f);
    both[0] = 100.0f;
    if (dim > 1) both[1] = -100.0f;
    TensorView gate = View2(both, rows, dim), up = gate;
    gate.strides[0] = up.strides[0] = stride;
    up.data = both.data() + dim;
    for (const Activation a :
         {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu, Activation::kSwigluOai}) {
      std::vector<float> out(rows * dim);
      const GatedActivationParams params = {.gate = gate,
                                            .up = gated ? up : TensorView(),
                                            .activation = a,
                                            .limit = 7.0f,
                                            .out = View2(out, rows, dim)};
      if (!gated && a == Activation::kSwigluOai) {
        EXPECT_TRUE(absl::IsInternal(backend_->GatedActivation(params)));
        continue;
      }
      ASSERT_LS_OK(backend_->GatedActivation(params));
      std::vector<double> want(out.size());
      for (int64_t i = 0; i < rows * dim; ++i) {
        double g = gate.row<float>(i / dim)[i % dim],
               u = gated ? up.row<float>(i / dim)[i % dim] : 1;
        switch (a) {
          case Activation::kSilu:
            want[i] = g / (1 + std::exp(-g)) * u;
            break;
          case Activation::kGeluTanh:
            want[i] =
                0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g))) * u;
            break;
          case Activation::kGelu:
            want[i] = 0.5 * g * (1 + std::erf(g / std::sqrt(2.0))) * u;
            break;
          case Activation::kSwigluOai:
            g = std::min(g, 7.0);
            u = std::max(-7.0, std::min(u, 7.0));
            want[i] = (u + 1) * g / (1 + std::exp(-1.702 * g));
            break;
        }
      }
      // The formulas cancel where the gate is far below zero; there the result is tiny.
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_NEAR(out[i], want[i], 3e-6 * std::fabs(want[i]) + 2e-5) << int{static_cast<int>(a)};
      }
    }
  }
}

TEST_P(ElementwiseTest, AddSoftcapGatherAndEmbedding) {
  const int64_t rows = 11, dim = 77;
  std::vector<float> x = Normal(rows * dim), y = Normal(rows * dim), out(rows * dim);
  ASSERT_LS_OK(backend_->Add({.x = View2(x, rows, dim),
                              .y = View2(y, rows, dim),
                              .a = 0.5f,
                              .b = -2.0f,
                              .out = View2(out, rows, dim)}));
  for (size_t i = 0; i < out.size(); ++i) EXPECT_NEAR(out[i], 0.5 * x[i] - 2.0 * y[i], 1e-6);
  for (const float cap : {0.0f, 3.0f, 30.0f}) {
    std::vector<float> z = Normal(rows * dim, 20.0f), before = z;
    ASSERT_LS_OK(backend_->Softcap({.x = View2(z, rows, dim), .scale = 0.7f, .softcap = cap}));
    for (size_t i = 0; i < z.size(); ++i) {
      const double s = 0.7 * double{before[i]};
      EXPECT_NEAR(z[i], cap > 0 ? cap * std::tanh(s / cap) : s, 2e-5);
    }
  }
  const std::vector<int32_t> pick = {10, 0, 3, 3};
  std::vector<float> picked(4 * dim);
  ASSERT_LS_OK(backend_->GatherRows(
      {.x = View2(x, rows, dim), .rows = pick.data(), .out = View2(picked, 4, dim)}));
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t c = 0; c < dim; ++c) EXPECT_EQ(picked[r * dim + c], x[pick[r] * dim + c]);
  }
  for (const DType type : kWeightTypes) {
    std::vector<uint8_t> table = RandomWeight(type, 20, 256, rng);
    const std::vector<float> values = Decode(type, table, 256);
    const std::vector<int32_t> ids = {19, 0, 7};
    std::vector<float> rows_out(3 * 256);
    ASSERT_LS_OK(backend_->Embedding({.table = TensorView::Matrix(table.data(), type, 20, 256),
                                      .ids = ids.data(),
                                      .scale = 25.25f,
                                      .out = View2(rows_out, 3, 256)}));
    for (int64_t i = 0; i < 3 * 256; ++i) {
      EXPECT_EQ(rows_out[i], values[ids[i / 256] * 256 + i % 256] * 25.25f) << DTypeName(type);
    }
  }
}

// Another backend's cache must read the same, and neighbouring rows stay untouched.
TEST_P(ElementwiseTest, KvWriteStoresExactlyTheRowsNamed) {
  const auto reference = MakeReference();
  for (const KvDType dtype :
       {KvDType::kF32, KvDType::kF16, KvDType::kBF16, KvDType::kQ8, KvDType::kFp8}) {
    const int32_t heads = 3, dim = RandomInt(1, 100), pages = 5, rows = 40;
    const int64_t head_bytes = KvHeadPageBytes(dtype, dim), page = head_bytes * heads + 256;
    std::vector<float> k = Normal(rows * heads * dim), v = Normal(rows * heads * dim);
    k[0] = 1e6f;  // infinite as a half
    if (dim > 3) k[3] = 3e-6f;
    std::vector<int32_t> page_ids(rows), slots(rows);
    for (int32_t r = 0; r < rows; ++r) {
      page_ids[r] = r % pages;
      slots[r] = (r * 13) % kPageTokens;
    }
    page_ids[7] = page_ids[rows - 1] = kNoPage;  // padding
    std::vector<std::vector<char>> caches(2, std::vector<char>(2 * page * pages, 0x55));
    for (int i = 0; i < 2; ++i) {
      char* base = caches[i].data();
      KvWriteParams p{
          .k = View3(k, rows, heads, dim),
          .v = View3(v, rows, heads, dim),
          .cache = {base, base + page * pages, page, head_bytes, pages, heads, dim, dtype},
          .page_ids = page_ids.data(),
          .slots = slots.data()};
      ASSERT_LS_OK((i == 0 ? *backend_ : *reference).KvWrite(p));
    }
    EXPECT_EQ(caches[0], caches[1]) << KvDTypeName(dtype) << " dim " << dim;
  }
}

TEST_P(ElementwiseTest, MoeIsTheWeightedSumOfTheChosenExperts) {
  const int64_t rows = 19, dim = 64, ffn = 32, experts = 6;
  struct Expert {
    std::vector<float> gate_up, down;
    std::unique_ptr<LinearWeight> gate_up_weight, down_weight;
  };
  std::vector<Expert> all(experts);
  std::vector<const LinearWeight*> gate_up, down;
  for (Expert& e : all) {
    e.gate_up = Normal(2 * ffn * dim, 0.2f);
    e.down = Normal(dim * ffn, 0.2f);
    const TensorView g = View2(e.gate_up, 2 * ffn, dim), d = View2(e.down, dim, ffn);
    e.gate_up_weight = *backend_->PrepareLinear({&g, 1}, nullptr);
    e.down_weight = *backend_->PrepareLinear({&d, 1}, nullptr);
    gate_up.push_back(e.gate_up_weight.get());
    down.push_back(e.down_weight.get());
  }
  std::vector<float> x = Normal(rows * dim), logits = Normal(rows * experts),
                     bias1 = Normal(experts * 2 * ffn), bias2 = Normal(experts * dim);
  logits[1] = logits[4] = 9.0f;  // a tie: the lower expert first
  for (const ExpertScoring scoring :
       {ExpertScoring::kSoftmaxOfTopK, ExpertScoring::kSoftmaxThenTopK,
        ExpertScoring::kSigmoidInput}) {
    for (const bool renormalize : {false, true}) {
      const int32_t top_k = scoring == ExpertScoring::kSigmoidInput ? 1 : 3;
      std::vector<float> out(rows * dim, 2.0f);
      ASSERT_LS_OK(backend_->Moe({.x = View2(x, rows, dim),
                                  .router_logits = View2(logits, rows, experts),
                                  .top_k = top_k,
                                  .scoring = scoring,
                                  .renormalize = renormalize,
                                  .gate_up = gate_up.data(),
                                  .down = down.data(),
                                  .gate_up_bias = View2(bias1, experts, 2 * ffn),
                                  .down_bias = View2(bias2, experts, dim),
                                  .accumulate = true,
                                  .out = View2(out, rows, dim)}));
      for (int64_t r = 0; r < rows; ++r) {
        std::vector<int> order(experts);
        for (int e = 0; e < experts; ++e) order[e] = e;
        const float* l = &logits[r * experts];
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return l[a] > l[b]; });
        double everything = 0.0, chosen = 0.0;
        for (int e = 0; e < experts; ++e) everything += std::exp(double{l[e]});
        for (int i = 0; i < top_k; ++i) chosen += std::exp(double{l[order[i]]});
        std::vector<double> want(dim, 2.0);
        for (int i = 0; i < top_k; ++i) {
          const int e = order[i];
          double weight = std::exp(double{l[e]}) / chosen, input = 1.0;
          if (scoring == ExpertScoring::kSoftmaxThenTopK && !renormalize) {
            weight = std::exp(double{l[e]}) / everything;
          }
          if (scoring == ExpertScoring::kSigmoidInput) {
            weight = 1.0;
            input = 1.0 / (1.0 + std::exp(-double{l[e]}));
          }
          std::vector<double> hidden(2 * ffn);
          for (int64_t n = 0; n < 2 * ffn; ++n) {
            hidden[n] = bias1[e * 2 * ffn + n];
            for (int64_t c = 0; c < dim; ++c) {
              hidden[n] += input * x[r * dim + c] * all[e].gate_up[n * dim + c];
            }
          }
          for (int64_t c = 0; c < dim; ++c) {
            double sum = bias2[e * dim + c];
            for (int64_t n = 0; n < ffn; ++n) {
              const double g = hidden[n];
              sum += g / (1 + std::exp(-g)) * hidden[ffn + n] * all[e].down[c * ffn + n];
            }
            want[c] += weight * sum;
          }
        }
        for (int64_t c = 0; c < dim; ++c) ASSERT_NEAR(out[r * dim + c], want[c], 2e-5) << r;
      }
    }
  }
}

// DeepSeek's routing. Expert e gives its weight in channel e and nothing elsewhere.
TEST_P(ElementwiseTest, MoeChoosesInTheBestGroupsBySigmoidAndBias) {
  const int64_t rows = 40, ffn = 8;
  for (const int64_t experts : {16, 48, 256}) {
    const int64_t dim = experts;
    std::vector<float> zeros(2 * ffn * dim);
    const TensorView g = View2(zeros, 2 * ffn, dim);
    const auto gate_up_weight = *backend_->PrepareLinear({&g, 1}, nullptr);
    std::vector<std::vector<float>> downs;
    std::vector<std::unique_ptr<LinearWeight>> weights;
    std::vector<const LinearWeight*> gate_up(experts, gate_up_weight.get()), down;
    const float silu_1 = 1.0f / (1.0f + std::exp(-1.0f));
    for (int64_t e = 0; e < experts; ++e) {
      downs.emplace_back(dim * ffn);
      std::fill_n(downs.back().begin() + e * ffn, ffn, 1.0f / (ffn * silu_1));
      const TensorView d = View2(downs.back(), dim, ffn);
      weights.push_back(*backend_->PrepareLinear({&d, 1}, nullptr));
      down.push_back(weights.back().get());
    }
    std::vector<float> ones(experts * 2 * ffn, 1.0f), x = Normal(rows * dim);
    std::vector<float> logits = Normal(rows * experts), bias = Normal(experts, 0.2f);
    std::fill_n(logits.begin(), experts, 0.5f);  // ties: the first groups, the first experts
    for (const bool sigmoid : {true, false}) {
      for (const auto& [groups, chosen, best] :
           {std::tuple(1, 1, 1), std::tuple(4, 2, 2), std::tuple(8, 3, 2), std::tuple(4, 1, 1)}) {
        const bool renormalize = RandomInt(0, 1) == 1, biased = sigmoid && RandomInt(0, 3) > 0;
        if (best == 2 && !sigmoid) continue;
        const int32_t top_k = RandomInt(1, 4);
        std::vector<float> out(rows * dim);
        MoeParams p{.x = View2(x, rows, dim),
                    .router_logits = View2(logits, rows, experts),
                    .top_k = top_k,
                    .scoring = sigmoid ? ExpertScoring::kSigmoid : ExpertScoring::kSoftmaxThenTopK,
                    .renormalize = renormalize,
                    .groups = {groups, chosen, best},
                    .weight_scale = 2.5f,
                    .gate_up = gate_up.data(),
                    .down = down.data(),
                    .gate_up_bias = View2(ones, experts, 2 * ffn),
                    .out = View2(out, rows, dim)};
        if (biased) p.selection_bias = TensorView::Vector(bias.data(), DType::kF32, experts);
        ASSERT_LS_OK(backend_->Moe(p));
        for (int64_t r = 0; r < rows; ++r) {
          const float* l = &logits[r * experts];
          std::vector<double> weight(experts), by(experts);
          double all = 0.0;
          for (int64_t e = 0; e < experts; ++e) all += std::exp(double{l[e]});
          for (int64_t e = 0; e < experts; ++e) {
            weight[e] =
                sigmoid ? 1.0 / (1.0 + std::exp(-double{l[e]})) : std::exp(double{l[e]}) / all;
            by[e] = weight[e] + (biased ? bias[e] : 0.0f);
            if (r == 0 && !biased) by[e] = 0.0;
          }
          const int64_t size = experts / groups;
          std::vector<double> group_by(groups);
          for (int64_t n = 0; n < groups; ++n) {
            std::vector<double> in(by.begin() + n * size, by.begin() + (n + 1) * size);
            std::sort(in.rbegin(), in.rend());
            group_by[n] = in[0] + (best == 2 ? in[1] : 0.0);
          }
          const auto first = [](const std::vector<double>& scores, int count) {
            std::vector<int64_t> order(scores.size());
            for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
            std::stable_sort(order.begin(), order.end(),
                             [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
            order.resize(count);
            return order;
          };
          std::vector<double> open(experts, -1e9);
          for (const int64_t n : first(group_by, chosen)) {
            for (int64_t e = n * size; e < (n + 1) * size; ++e) open[e] = by[e];
          }
          std::vector<double> want(dim);
          double sum = 0.0;
          for (const int64_t e : first(open, top_k)) sum += want[e] = weight[e];
          for (int64_t e = 0; e < experts; ++e) {
            ASSERT_NEAR(out[r * dim + e], 2.5 * want[e] / (renormalize ? sum : 1.0), 1e-5)
                << experts << " experts, groups " << groups << ", row " << r << ", expert " << e;
          }
        }
      }
    }
  }
}

// A row's experts do not know how many other rows there are.
TEST_P(ElementwiseTest, MoeRowBitsDoNotDependOnTheBatch) {
  const int64_t rows = 30, dim = 64, ffn = 32, experts = 4;
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<std::unique_ptr<LinearWeight>> weights;
  std::vector<const LinearWeight*> gate_up, down;
  for (int64_t e = 0; e < experts; ++e) {
    bytes.push_back(RandomWeight(DType::kMXFP4, 2 * ffn, dim, rng));
    const TensorView g = TensorView::Matrix(bytes.back().data(), DType::kMXFP4, 2 * ffn, dim);
    weights.push_back(*backend_->PrepareLinear({&g, 1}, nullptr));
    gate_up.push_back(weights.back().get());
    bytes.push_back(RandomWeight(DType::kMXFP4, dim, ffn, rng));
    const TensorView d = TensorView::Matrix(bytes.back().data(), DType::kMXFP4, dim, ffn);
    weights.push_back(*backend_->PrepareLinear({&d, 1}, nullptr));
    down.push_back(weights.back().get());
  }
  std::vector<float> x = Normal(rows * dim), logits = Normal(rows * experts), all(rows * dim);
  const auto run = [&](int64_t begin, int64_t count, std::vector<float>& out) {
    MoeParams p{
        .x = TensorView::Matrix(&x[begin * dim], DType::kF32, count, dim),
        .router_logits = TensorView::Matrix(&logits[begin * experts], DType::kF32, count, experts),
        .top_k = 2,
        .gate_up = gate_up.data(),
        .down = down.data(),
        .activation = Activation::kSwigluOai,
        .out = View2(out, count, dim)};
    ASSERT_LS_OK(backend_->Moe(p));
  };
  run(0, rows, all);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<float> one(dim);
    run(r, 1, one);
    EXPECT_EQ(one, std::vector<float>(all.begin() + r * dim, all.begin() + (r + 1) * dim));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, ElementwiseTest,
                         testing::Values("reference", "portable", "avx2", "avxvnni", "avx512vnni",
                                         "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace longstride::kernels

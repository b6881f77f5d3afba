#include "kernels/cuda/moe/moe.h"
#include "tests/kernels/cuda/gpu_test.h"

namespace longstride::kernels::cuda {
namespace {

// A layer of random experts for the GPU and, decoded to float32, for the reference.
struct Layer {
  int32_t experts = 8;
  int64_t dim = 128, ffn = 192;
  std::vector<std::unique_ptr<LinearWeight>> gpu, host;  // gate_up, then down
  std::vector<const LinearWeight*> gpu_pointers, host_pointers;
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<std::vector<float>> values;
  std::vector<float> gate_up_bias, down_bias;
};

class MoeGpuTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    reference_ = MakeReference();
  }

  void Make(Layer* layer, DType gate_up, DType down) {
    for (const bool second : {false, true}) {
      const int64_t rows = second ? layer->dim : 2 * layer->ffn;
      const int64_t cols = second ? layer->ffn : layer->dim;
      for (int32_t e = 0; e < layer->experts; ++e) {
        const DType type = second ? down : gate_up;
        layer->bytes.push_back(RandomWeight(type, rows, cols, rng));
        layer->values.push_back(Decode(type, layer->bytes.back(), cols));
        const TensorView packed = TensorView::Matrix(layer->bytes.back().data(), type, rows, cols);
        auto gpu = PrepareCudaLinear({&packed, 1}, *context_);
        ASSERT_LS_OK(gpu.status());
        layer->gpu.push_back(*std::move(gpu));
        const TensorView plain = View2(layer->values.back(), rows, cols);
        auto host = reference_->PrepareLinear({&plain, 1}, nullptr);
        ASSERT_LS_OK(host.status());
        layer->host.push_back(*std::move(host));
      }
    }
    for (const auto& w : layer->gpu) layer->gpu_pointers.push_back(w.get());
    for (const auto& w : layer->host) layer->host_pointers.push_back(w.get());
    layer->gate_up_bias = Normal(layer->experts * 2 * layer->ffn);
    layer->down_bias = Normal(layer->experts * layer->dim);
  }

  // Results of the GPU; `params` holds host views, whose memory is copied.
  std::vector<float> Run(const Layer& layer, MoeParams params, std::vector<float>& x,
                         std::vector<float>& logits, std::vector<float>& before) {
    const int64_t rows = params.x.shape[0];
    params.x = DeviceMatrix(OnDevice(x), DType::kF32, rows, layer.dim);
    params.router_logits = DeviceMatrix(OnDevice(logits), DType::kF32, rows, layer.experts);
    params.out = DeviceMatrix(OnDevice(before), DType::kF32, rows, layer.dim);
    params.gate_up = layer.gpu_pointers.data();
    params.down = layer.gpu_pointers.data() + layer.experts;
    if (params.gate_up_bias.data != nullptr) {
      params.gate_up_bias.data = OnDevice(layer.gate_up_bias);
      params.down_bias.data = OnDevice(layer.down_bias);
    }
    const absl::Status status = RunCudaMoe(params, *context_);
    EXPECT_TRUE(status.ok()) << status;
    std::vector<float> out = Read<float>(params.out.data, rows * layer.dim);
    FreeBuffers();
    return out;
  }

  std::unique_ptr<Backend> reference_;
};

TEST_F(MoeGpuTest, MatchesTheReference) {
  struct Case {
    DType gate_up, down;
    double tolerance;
  };
  for (const Case& c :
       {Case{DType::kF32, DType::kF32, 1e-5}, Case{DType::kBF16, DType::kBF16, 1e-2},
        Case{DType::kF16, DType::kQ8_0, 3e-3}, Case{DType::kQ4_K, DType::kQ6_K, 5e-3},
        Case{DType::kMXFP4, DType::kMXFP4, 1e-2}, Case{DType::kFP8_128, DType::kFP8_128, 8e-2}}) {
    Layer layer;
    layer.dim = 256;
    layer.ffn = 512;
    layer.experts = RandomInt(3, 40);
    Make(&layer, c.gate_up, c.down);
    if (HasFatalFailure()) return;
    for (const auto scoring : {ExpertScoring::kSoftmaxOfTopK, ExpertScoring::kSoftmaxThenTopK,
                               ExpertScoring::kSigmoidInput}) {
      for (const int64_t rows : {1, 3, 70}) {
        MoeParams p;
        p.scoring = scoring;
        p.top_k = scoring == ExpertScoring::kSigmoidInput ? 1 : RandomInt(1, 3);
        p.renormalize = RandomInt(0, 1) == 1;
        p.activation = RandomInt(0, 1) == 1 ? Activation::kSilu : Activation::kSwigluOai;
        p.limit = 100.0f;
        p.accumulate = RandomInt(0, 1) == 1;
        std::vector<float> x = Normal(rows * layer.dim, 0.1f),
                           logits = Normal(rows * layer.experts), before = Normal(rows * layer.dim),
                           want = before;
        if (rows == 3) logits.assign(logits.size(), 0.5f);  // ties: the lowest experts
        p.x = View2(x, rows, layer.dim);
        p.router_logits = View2(logits, rows, layer.experts);
        p.out = View2(want, rows, layer.dim);
        p.gate_up = layer.host_pointers.data();
        p.down = layer.host_pointers.data() + layer.experts;
        if (RandomInt(0, 1) == 1) {
          p.gate_up_bias = View2(layer.gate_up_bias, layer.experts, 2 * layer.ffn);
          p.down_bias = View2(layer.down_bias, layer.experts, layer.dim);
        }
        ASSERT_LS_OK(reference_->Moe(p));
        const std::vector<float> got = Run(layer, p, x, logits, before);
        EXPECT_LT(RelativeError(got, {want.begin(), want.end()}), c.tolerance)
            << DTypeName(c.gate_up) << " rows " << rows << " scoring " << static_cast<int>(scoring)
            << " top " << p.top_k << " experts " << layer.experts;
      }
    }
  }
}

// DeepSeek's routers, up to the released 256 experts in 8 groups of which 4 are chosen.
TEST_F(MoeGpuTest, RoutingByGroupsMatchesTheReference) {
  struct Case {
    int32_t experts, groups, chosen, best, top_k;
    ExpertScoring scoring;
  };
  for (const Case& c : {Case{256, 8, 4, 2, 8, ExpertScoring::kSigmoid},
                        Case{160, 8, 3, 1, 6, ExpertScoring::kSoftmaxThenTopK},
                        Case{48, 4, 2, 2, 5, ExpertScoring::kSigmoid},
                        Case{7, 1, 1, 1, 3, ExpertScoring::kSigmoid}}) {
    Layer layer;
    layer.experts = c.experts;
    layer.dim = 128;
    layer.ffn = 64;
    Make(&layer, DType::kBF16, DType::kBF16);
    if (HasFatalFailure()) return;
    for (const bool biased : {false, true}) {
      if (biased && c.scoring != ExpertScoring::kSigmoid) continue;
      for (const int64_t rows : {1, 3, 70}) {
        std::vector<float> x = Normal(rows * layer.dim), before(rows * layer.dim),
                           want(rows * layer.dim), logits = Normal(rows * c.experts),
                           bias = Normal(c.experts, 0.5f);
        if (rows == 3) logits.assign(logits.size(), 0.5f);  // ties: the lowest groups and experts
        MoeParams p;
        p.scoring = c.scoring;
        p.top_k = c.top_k;
        p.groups = {c.groups, c.chosen, c.best};
        p.renormalize = biased;
        p.weight_scale = 2.5f;
        p.x = View2(x, rows, layer.dim);
        p.router_logits = View2(logits, rows, c.experts);
        p.out = View2(want, rows, layer.dim);
        p.gate_up = layer.host_pointers.data();
        p.down = layer.host_pointers.data() + layer.experts;
        if (biased) p.selection_bias = TensorView::Vector(bias.data(), DType::kF32, c.experts);
        ASSERT_LS_OK(reference_->Moe(p));
        if (biased) p.selection_bias.data = OnDevice(bias);
        const std::vector<float> got = Run(layer, p, x, logits, before);
        EXPECT_LT(RelativeError(got, {want.begin(), want.end()}), 1e-2)
            << c.experts << " experts in " << c.groups << " groups, rows " << rows << " biased "
            << biased;
      }
    }
  }
}

TEST_F(MoeGpuTest, ARowHasTheSameBitsInEveryCompany) {
  for (const DType type : {DType::kBF16, DType::kQ4_K, DType::kFP8_128}) {
    Layer layer;
    layer.dim = 512;
    layer.ffn = 256;
    layer.experts = 8;
    Make(&layer, type, type);
    if (HasFatalFailure()) return;
    const int64_t rows = 700;  // some 175 rows an expert
    std::vector<float> x = Normal(rows * layer.dim), logits = Normal(rows * layer.experts),
                       before(rows * layer.dim);
    MoeParams p;
    p.top_k = 2;
    p.x = View2(x, rows, layer.dim);
    const std::vector<float> all = Run(layer, p, x, logits, before);
    for (const int64_t some : {1, 5, 40, 300}) {
      const int64_t first = RandomInt(0, static_cast<int>(rows - some));
      std::vector<float> part(x.begin() + first * layer.dim,
                              x.begin() + (first + some) * layer.dim);
      std::vector<float> part_logits(logits.begin() + first * layer.experts,
                                     logits.begin() + (first + some) * layer.experts);
      std::vector<float> part_before(some * layer.dim);
      p.x = View2(part, some, layer.dim);
      const std::vector<float> got = Run(layer, p, part, part_logits, part_before);
      EXPECT_EQ(std::memcmp(got.data(), &all[first * layer.dim], got.size() * 4), 0)
          << DTypeName(type) << " rows " << some;
    }
  }
}

TEST_F(MoeGpuTest, ExpertsOfDifferentFormatsAreRefused) {
  Layer layer;
  layer.experts = 2;
  layer.dim = 256;
  layer.ffn = 256;
  Make(&layer, DType::kF16, DType::kF16);
  if (HasFatalFailure()) return;
  Layer other = Layer{.experts = 2, .dim = 256, .ffn = 256};
  Make(&other, DType::kQ8_0, DType::kF16);
  if (HasFatalFailure()) return;
  layer.gpu_pointers[1] = other.gpu_pointers[1];
  std::vector<float> x = Normal(256), logits = Normal(2), out(256);
  MoeParams p;
  p.x = DeviceMatrix(OnDevice(x), DType::kF32, 1, 256);
  p.router_logits = DeviceMatrix(OnDevice(logits), DType::kF32, 1, 2);
  p.out = DeviceMatrix(OnDevice(out), DType::kF32, 1, 256);
  p.gate_up = layer.gpu_pointers.data();
  p.down = layer.gpu_pointers.data() + 2;
  const absl::Status status = RunCudaMoe(p, *context_);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
}

}  // namespace
}  // namespace longstride::kernels::cuda

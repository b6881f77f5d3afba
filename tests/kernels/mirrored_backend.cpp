#include "tests/kernels/mirrored_backend.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/kernels/test_util.h"
#include "tests/testing/kernel_choice.h"

namespace longstride::kernels {
namespace {

// Copies on the device of host memory ranges, and the way back. Device copies live as long as the
// inner backend, which is what tests of small problems can afford.
class Mirror {
 public:
  explicit Mirror(Backend& inner) : inner_(inner) {}

  // The device address of `host`, whose `bytes` are copied there now; ranges given as `out` are
  // copied back by Finish.
  void* Range(const void* host, int64_t bytes, bool out = false) {
    if (host == nullptr || bytes <= 0) return nullptr;
    const absl::StatusOr<TensorView> copy = inner_.Resident(Bytes(host, bytes));
    EXPECT_TRUE(copy.ok()) << copy.status();
    if (!copy.ok()) return nullptr;
    if (out) outputs_.push_back({const_cast<void*>(host), *copy});
    return copy->data;
  }
  TensorView View(const TensorView& host, bool out = false) {
    if (host.data == nullptr) return host;
    int64_t last = 0;
    for (int d = 0; d < host.rank; ++d) last += (host.shape[d] - 1) * host.strides[d];
    const int64_t bytes = host.num_elements() == 0 ? 0
                          : IsQuantized(host.dtype) ? host.num_bytes()
                                                    : (last + 1) * BlockBytes(host.dtype);
    TensorView view = host;
    view.device = inner_.device();
    view.data = Range(host.data, bytes, out);
    return view;
  }
  // K, V and summaries lie in one range, k first where there are summaries.
  PagedKv Cache(const PagedKv& host, bool out) {
    char* k = static_cast<char*>(host.k);
    char* v = static_cast<char*>(host.v);
    const int64_t plane = host.num_pages * host.page_stride - std::abs(v - k);
    const int64_t each =
        std::max(plane, (host.num_pages - 1) * host.page_stride +
                            (host.num_heads - 1) * host.head_stride +
                            KvHeadPageBytes(host.dtype, host.head_dim));
    char* begin = std::min(k, v);
    PagedKv cache = host;
    char* copy = static_cast<char*>(Range(begin, std::max(k, v) + each - begin, out));
    cache.k = copy + (k - begin);
    cache.v = copy + (v - begin);
    if (host.summaries != nullptr) {
      cache.summaries = copy + (static_cast<char*>(host.summaries) - begin);
    }
    return cache;
  }

  // Runs the op as a step of its own and brings the outputs back.
  template <typename Op>
  absl::Status Run(const Op& op) {
    RETURN_IF_ERROR(inner_.BeginStep({}));
    absl::Status status = op();
    std::vector<TensorView> results;
    for (const Output& output : outputs_) {
      const absl::StatusOr<TensorView> result = inner_.ToHost(output.device);
      if (!result.ok()) return result.status();
      results.push_back(*result);
    }
    status.Update(inner_.EndStep());
    for (size_t i = 0; i < results.size(); ++i) {
      std::memcpy(outputs_[i].host, results[i].data,
                  static_cast<size_t>(outputs_[i].device.num_bytes()));
    }
    return status;
  }

 private:
  struct Output {
    void* host;
    TensorView device;
  };
  static TensorView Bytes(const void* data, int64_t bytes) {
    return TensorView::Matrix(data, DType::kU8, 1, bytes);
  }
  Backend& inner_;
  std::vector<Output> outputs_;
};

class MirroredBackend : public Backend {
 public:
  explicit MirroredBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  Device device() const override { return Device::kCpu; }
  std::string Describe() const override { return inner_->Describe(); }
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override { return Buffer::AllocateHost(bytes); }
  absl::StatusOr<Buffer> Reserve(int64_t bytes) override { return Buffer::ReserveHost(bytes); }

 private:
  absl::StatusOr<std::unique_ptr<LinearWeight>> DoPrepareLinear(std::span<const TensorView> parts,
                                                                bool* keeps_views) override {
    return inner_->PrepareLinear(parts, keeps_views);
  }
  absl::Status DoEmbedding(const EmbeddingParams& p) override {
    Mirror m(*inner_);
    EmbeddingParams d = p;
    d.table = m.View(p.table);
    d.out = m.View(p.out, true);
    return m.Run([&] { return inner_->Embedding(d); });
  }
  absl::Status DoRmsNorm(const RmsNormParams& p) override {
    Mirror m(*inner_);
    RmsNormParams d = p;
    d.out = m.View(p.out, true);
    d.x = p.x.data == p.out.data ? d.out : m.View(p.x);
    d.weight = m.View(p.weight);
    return m.Run([&] { return inner_->RmsNorm(d); });
  }
  absl::Status DoLayerNorm(const LayerNormParams& p) override {
    Mirror m(*inner_);
    LayerNormParams d = p;
    d.out = m.View(p.out, true);
    d.x = p.x.data == p.out.data ? d.out : m.View(p.x);
    d.weight = m.View(p.weight);
    d.bias = m.View(p.bias);
    return m.Run([&] { return inner_->LayerNorm(d); });
  }
  absl::Status DoLinear(const LinearParams& p) override {
    Mirror m(*inner_);
    LinearParams d = p;
    d.x = m.View(p.x);
    d.bias = m.View(p.bias);
    d.out = m.View(p.out, true);
    return m.Run([&] { return inner_->Linear(d); });
  }
  absl::Status DoRope(const RopeParams& p) override {
    Mirror m(*inner_);
    RopeParams d = p;
    d.x = m.View(p.x, true);
    d.inv_freq = static_cast<float*>(m.Range(p.inv_freq, 4 * int64_t{p.num_frequencies}));
    return m.Run([&] { return inner_->Rope(d); });
  }
  absl::Status DoMergeAttention(const MergeAttentionParams& p) override {
    Mirror m(*inner_);
    MergeAttentionParams d = p;
    for (int32_t i = 0; i < p.num_parts; ++i) {
      d.parts[i] = m.View(p.parts[i]);
      d.lse[i] = static_cast<const float*>(m.Range(p.lse[i], 4 * p.out.shape[0] * p.out.shape[1]));
    }
    d.out = m.View(p.out, true);
    return m.Run([&] { return inner_->MergeAttention(d); });
  }
  absl::Status DoGateAttention(const GateAttentionParams& p) override {
    Mirror m(*inner_);
    GateAttentionParams d = p;
    for (int32_t i = 0; i < p.num_parts; ++i) d.parts[i] = m.View(p.parts[i]);
    d.gates = m.View(p.gates);
    d.out = m.View(p.out, true);
    return m.Run([&] { return inner_->GateAttention(d); });
  }
  absl::Status DoPositionScale(const PositionScaleParams& p) override {
    Mirror m(*inner_);
    PositionScaleParams d = p;
    d.x = m.View(p.x, true);
    return m.Run([&] { return inner_->PositionScale(d); });
  }
  absl::Status DoKvWrite(const KvWriteParams& p) override {
    Mirror m(*inner_);
    KvWriteParams d = p;
    d.k = m.View(p.k);
    d.v = m.View(p.v);
    d.cache = m.Cache(p.cache, true);
    return m.Run([&] { return inner_->KvWrite(d); });
  }
  absl::Status DoKvWriteSummarized(const KvWriteParams& p, const PageSummaryParams&) override {
    return DoKvWrite(p);
  }
  absl::Status DoAttention(const AttentionParams& p) override {
    Mirror m(*inner_);
    AttentionParams d = p;
    const int64_t heads = p.q.shape[1];
    d.q = m.View(p.q);
    d.out = m.View(p.out, true);
    d.cache = m.Cache(p.cache, false);
    if (p.selection.entries_made) {
      d.selection.entries =
          static_cast<int32_t*>(m.Range(p.selection.entries, 4 * p.selection.num_entries));
    }
    d.sinks = static_cast<float*>(m.Range(p.sinks, 4 * heads));
    d.lse = static_cast<float*>(m.Range(p.lse, 4 * heads * p.q.shape[0], true));
    return m.Run([&] { return inner_->Attention(d); });
  }
  absl::Status DoSummarizePages(const PageSummaryParams& p) override {
    Mirror m(*inner_);
    PageSummaryParams d = p;
    d.cache = m.Cache(p.cache, true);
    return m.Run([&] { return inner_->SummarizePages(d); });
  }
  absl::Status DoSelectPages(const SelectPagesParams& p) override {
    Mirror m(*inner_);
    SelectPagesParams d = p;
    d.q = m.View(p.q);
    d.cache = m.Cache(p.cache, false);
    d.entries = static_cast<int32_t*>(m.Range(p.entries, 4 * p.num_entries, true));
    return m.Run([&] { return inner_->SelectPages(d); });
  }
  absl::Status DoSelectTokens(const SelectTokensParams& p) override {
    Mirror m(*inner_);
    SelectTokensParams d = p;
    d.q = m.View(p.q);
    d.weights = m.View(p.weights);
    d.cache = m.Cache(p.cache, false);
    d.entries = static_cast<int32_t*>(m.Range(p.entries, 4 * p.num_entries, true));
    return m.Run([&] { return inner_->SelectTokens(d); });
  }
  absl::Status DoGatedActivation(const GatedActivationParams& p) override {
    Mirror m(*inner_);
    GatedActivationParams d = p;
    d.gate = m.View(p.gate);
    d.up = m.View(p.up);
    d.out = m.View(p.out, true);
    return m.Run([&] { return inner_->GatedActivation(d); });
  }
  absl::Status DoAdd(const AddParams& p) override {
    Mirror m(*inner_);
    AddParams d = p;
    d.x = m.View(p.x);
    d.y = m.View(p.y);
    d.out = m.View(p.out, true);
    return m.Run([&] { return inner_->Add(d); });
  }
  absl::Status DoSoftcap(const SoftcapParams& p) override {
    Mirror m(*inner_);
    SoftcapParams d = p;
    d.x = m.View(p.x, true);
    return m.Run([&] { return inner_->Softcap(d); });
  }
  absl::Status DoGatherRows(const GatherRowsParams& p) override {
    Mirror m(*inner_);
    GatherRowsParams d = p;
    d.x = m.View(p.x);
    d.out = m.View(p.out, true);
    return m.Run([&] { return inner_->GatherRows(d); });
  }
  absl::Status DoMoe(const MoeParams& p) override {
    Mirror m(*inner_);
    MoeParams d = p;
    d.x = m.View(p.x);
    d.router_logits = m.View(p.router_logits);
    d.selection_bias = m.View(p.selection_bias);
    d.gate_up_bias = m.View(p.gate_up_bias);
    d.down_bias = m.View(p.down_bias);
    d.out = m.View(p.out, true);
    return m.Run([&] { return inner_->Moe(d); });
  }

  std::unique_ptr<Backend> inner_;
};

}  // namespace

std::unique_ptr<Backend> MakeByName(const std::string& name) {
  if (name == "reference") return MakeReference();
  if (name != "cuda") return MakeCpu(name);
  auto backend = MakeBackend(BackendKind::kCuda, {.kernels = TestKernels()});
  if (!backend.ok()) return nullptr;
  return std::make_unique<MirroredBackend>(*std::move(backend));
}

}  // namespace longstride::kernels

#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <map>
#include <utility>

#include "kernels/cuda/linear/linear.h"
#include "kernels/cuda/moe/moe.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/selection/run_selection.h"

namespace longstride::kernels::cuda {

// The reservations that live, by address. Shared with their buffers, which may outlive the backend.
class CudaBackend::Reservations : public Buffer::Deleter {
 public:
  absl::StatusOr<char*> Add(int device, int64_t bytes) {
    auto pieces = std::make_unique<PieceRange>();
    RETURN_IF_ERROR(pieces->Reserve(device, bytes));
    char* data = pieces->data();
    ranges_[data] = std::move(pieces);
    return data;
  }
  // The reservation that holds `p`, or null.
  PieceRange* Find(const void* p) const {
    const auto* at = static_cast<const char*>(p);
    auto it = ranges_.upper_bound(const_cast<char*>(at));
    if (it == ranges_.begin()) return nullptr;
    --it;
    return at < it->first + it->second->bytes() ? it->second.get() : nullptr;
  }
  void Free(void* data, int64_t bytes) override {
    cudaDeviceSynchronize();
    ranges_.erase(static_cast<char*>(data));
  }
  // Between steps nothing is queued that could still read the range.
  void Decommit(void* data, int64_t bytes) override {
    if (PieceRange* range = Find(data)) {
      range->Drop(static_cast<char*>(data) - range->data(), bytes);
    }
  }

 private:
  std::map<char*, std::unique_ptr<PieceRange>> ranges_;
};

namespace {

class PinnedDeleter : public Buffer::Deleter {
 public:
  void Free(void* data, int64_t bytes) override { cudaFreeHost(data); }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CudaBackend::Create(const BackendOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<DeviceContext> context, DeviceContext::Create(0, options.kernels));
  std::unique_ptr<CudaBackend> backend(new CudaBackend(std::move(context)));
  RETURN_IF_ERROR(backend->arrays_.Init());
  RETURN_IF_ERROR(backend->attention_.Init());
  return std::unique_ptr<Backend>(std::move(backend));
}

CudaBackend::CudaBackend(std::unique_ptr<DeviceContext> context)
    : context_(std::move(context)),
      arrays_(*context_),
      attention_(*context_, arrays_),
      reservations_(std::make_shared<Reservations>()) {}

CudaBackend::~CudaBackend() = default;

std::string CudaBackend::Describe() const {
  const CudaDeviceInfo& info = context_->info();
  return StrCat("cuda (", info.name, ", ", info.multiprocessors, " multiprocessors, ",
                info.memory_bytes >> 30, " GiB, ", KernelPathName(context_->path()), " kernels)");
}

absl::StatusOr<Buffer> CudaBackend::Reserve(int64_t bytes) {
  if (bytes <= 0) return Buffer();
  ASSIGN_OR_RETURN(char* data, reservations_->Add(context_->info().index, bytes));
  return Buffer(data, bytes, Device::kCuda, reservations_);
}

absl::StatusOr<TensorView> CudaBackend::Resident(const TensorView& host) {
  TensorView view = host;
  view.device = Device::kCuda;
  if (host.data == nullptr || host.num_elements() == 0) return view;
  // Up to the last row's end, so that strides stay as they are.
  const int64_t bytes =
      host.rank < 2 || IsQuantized(host.dtype)
          ? host.num_bytes()
          : ((host.shape[0] - 1) * host.strides[0] + host.num_elements() / host.shape[0]) *
                BlockBytes(host.dtype);
  ASSIGN_OR_RETURN(Buffer buffer, context_->Upload(host.data, bytes));
  view.data = buffer.data();
  resident_.push_back(std::move(buffer));
  return view;
}

absl::Status CudaBackend::BeginStep(std::span<const HostArray> arrays) {
  RETURN_IF_ERROR(context_->MakeCurrent());
  // After a step that failed in the middle its ops may still run.
  if (arrays_.in_step()) RETURN_IF_ERROR(context_->Synchronize());
  num_outputs_ = 0;
  attention_.BeginStep();
  return arrays_.Begin(arrays);
}

absl::Status CudaBackend::EndStep() {
  RETURN_IF_ERROR(attention_.QueueStatus());
  RETURN_IF_ERROR(context_->Synchronize());
  arrays_.End();
  return attention_.EndStep();
}

absl::StatusOr<TensorView> CudaBackend::ToHost(const TensorView& t) {
  TensorView host = TensorView::Contiguous(nullptr, t.dtype, t.shape, t.rank);
  const int64_t bytes = host.num_bytes();
  if (bytes == 0) return host;
  if (num_outputs_ == outputs_.size()) outputs_.emplace_back();
  Buffer& buffer = outputs_[num_outputs_++];
  if (buffer.bytes() < bytes) {
    void* p = nullptr;
    RETURN_IF_ERROR(context_->Check(
        cudaHostAlloc(&p, static_cast<size_t>(bytes), cudaHostAllocDefault),
        "allocating pinned memory"));
    buffer = Buffer(p, bytes, Device::kCpu, std::make_shared<PinnedDeleter>());
  }
  const auto width = static_cast<size_t>(bytes / t.shape[0]);
  const auto pitch = static_cast<size_t>(t.strides[0] * BlockBytes(t.dtype));
  RETURN_IF_ERROR(context_->Check(
      cudaMemcpy2DAsync(buffer.data(), width, t.data, t.shape[0] == 1 ? width : pitch, width,
                        static_cast<size_t>(t.shape[0]), cudaMemcpyDeviceToHost,
                        context_->stream()),
      "copying to the host"));
  host.data = buffer.data();
  return host;
}

absl::StatusOr<std::unique_ptr<LinearWeight>> CudaBackend::DoPrepareLinear(
    std::span<const TensorView> parts, bool* keeps_views) {
  if (keeps_views != nullptr) *keeps_views = false;
  return PrepareCudaLinear(parts, *context_);
}

absl::Status CudaBackend::DoLinear(const LinearParams& p) { return RunCudaLinear(p, *context_); }

absl::Status CudaBackend::DoMoe(const MoeParams& p) { return RunCudaMoe(p, *context_); }

absl::Status CudaBackend::DoEmbedding(const EmbeddingParams& p) {
  EmbeddingParams d = p;
  ASSIGN_OR_RETURN(d.ids, arrays_.OnDevice(p.ids, p.out.shape[0]));
  return context_->Check(LaunchEmbedding(d, context_->stream()), "Embedding");
}

absl::Status CudaBackend::DoGatherRows(const GatherRowsParams& p) {
  GatherRowsParams d = p;
  ASSIGN_OR_RETURN(d.rows, arrays_.OnDevice(p.rows, p.out.shape[0]));
  return context_->Check(LaunchGatherRows(d, context_->stream()), "GatherRows");
}

absl::Status CudaBackend::DoRmsNorm(const RmsNormParams& p) {
  return context_->Check(LaunchRmsNorm(p, context_->stream()), "RmsNorm");
}

absl::Status CudaBackend::DoLayerNorm(const LayerNormParams& p) {
  return context_->Check(LaunchLayerNorm(p, context_->stream()), "LayerNorm");
}

absl::Status CudaBackend::DoRope(const RopeParams& p) {
  RopeParams d = p;
  ASSIGN_OR_RETURN(d.positions, arrays_.OnDevice(p.positions, p.x.shape[0]));
  return context_->Check(LaunchRope(d, context_->stream()), "Rope");
}

absl::Status CudaBackend::DoPositionScale(const PositionScaleParams& p) {
  PositionScaleParams d = p;
  ASSIGN_OR_RETURN(d.positions, arrays_.OnDevice(p.positions, p.x.shape[0]));
  return context_->Check(LaunchPositionScale(d, context_->stream()), "PositionScale");
}

absl::Status CudaBackend::MapPages(const KvWriteParams& p) {
  PieceRange* const k = reservations_->Find(p.cache.k);
  PieceRange* const v = reservations_->Find(p.cache.v);
  if (k == nullptr && v == nullptr) return absl::OkStatus();
  const int64_t plane = (p.cache.num_heads - 1) * p.cache.head_stride +
                        KvHeadPageBytes(p.cache.dtype, p.cache.head_dim);
  // A cache's pages hold K, V and summaries side by side: one piece.
  const int64_t apart = static_cast<char*>(p.cache.v) - static_cast<char*>(p.cache.k);
  const bool whole = k == v && apart > 0 && apart + plane <= p.cache.page_stride;
  const int64_t bytes = whole ? p.cache.page_stride : plane;
  for (int64_t r = 0; r < p.k.shape[0]; ++r) {
    if (r > 0 && p.page_ids[r] == p.page_ids[r - 1]) continue;
    const int64_t offset = p.page_ids[r] * p.cache.page_stride;
    for (const auto& [range, base] : {std::pair(k, p.cache.k), std::pair(v, p.cache.v)}) {
      if (range == nullptr || (whole && base == p.cache.v)) continue;
      RETURN_IF_ERROR(range->Hold(static_cast<char*>(base) - range->data() + offset, bytes));
    }
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::DoKvWrite(const KvWriteParams& p) {
  RETURN_IF_ERROR(MapPages(p));
  KvWriteParams d = p;
  ASSIGN_OR_RETURN(d.page_ids, arrays_.OnDevice(p.page_ids, p.k.shape[0]));
  ASSIGN_OR_RETURN(d.slots, arrays_.OnDevice(p.slots, p.k.shape[0]));
  return context_->Check(LaunchKvWrite(d, context_->stream()), "KvWrite");
}

absl::Status CudaBackend::DoAttention(const AttentionParams& p) { return attention_.Run(p); }

absl::Status CudaBackend::DoSummarizePages(const PageSummaryParams& p) {
  return RunSummarizePages(p, arrays_, *context_);
}

absl::Status CudaBackend::DoSelectPages(const SelectPagesParams& p) {
  return RunSelectPages(p, arrays_, *context_);
}

absl::Status CudaBackend::DoGatedActivation(const GatedActivationParams& p) {
  return context_->Check(LaunchGatedActivation(p, context_->stream()), "GatedActivation");
}

absl::Status CudaBackend::DoAdd(const AddParams& p) {
  return context_->Check(LaunchAdd(p, context_->stream()), "Add");
}

absl::Status CudaBackend::DoSoftcap(const SoftcapParams& p) {
  return context_->Check(LaunchSoftcap(p, context_->stream()), "Softcap");
}

}  // namespace longstride::kernels::cuda

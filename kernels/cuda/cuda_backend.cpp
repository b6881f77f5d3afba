#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <map>
#include <utility>

#include "kernels/cuda/attention/merge_parts.h"
#include "kernels/cuda/linear/linear.h"
#include "kernels/cuda/moe/moe.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampling.h"
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
  absl::Status Commit(void* data, int64_t bytes) override {
    PieceRange* range = Find(data);
    if (range == nullptr) return absl::InternalError("a part of no reservation");
    return range->Hold(static_cast<char*>(data) - range->data(), bytes);
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

// Attention over pages' means, and several attentions summed by gates.
absl::Status NoGatedParts() {
  return absl::UnimplementedError(
      "the CUDA backend has no kernels for attention whose parts are summed by gates (the pattern "
      "\"nsa\"); serve this checkpoint with the cpu backend.");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CudaBackend::Create(const BackendOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<DeviceContext> context, DeviceContext::Create(0, options.kernels));
  std::unique_ptr<CudaBackend> backend(new CudaBackend(std::move(context), options));
  RETURN_IF_ERROR(backend->arrays_.Init());
  RETURN_IF_ERROR(backend->attention_.Init());
  return std::unique_ptr<Backend>(std::move(backend));
}

CudaBackend::CudaBackend(std::unique_ptr<DeviceContext> context, const BackendOptions& options)
    : context_(std::move(context)),
      arrays_(*context_),
      attention_(*context_, arrays_),
      timer_(*context_),
      use_graphs_(options.cuda_graphs),
      graphs_(*context_),
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
  if (graphs_.recording()) graphs_.Abandon();
  if (arrays_.in_step()) RETURN_IF_ERROR(context_->Synchronize());
  num_outputs_ = 0;
  graph_ = nullptr;
  run_ = StepRun::kLaunched;
  status_queued_ = false;
  attention_.BeginStep();
  measured_.clear();
  timer_.BeginStep();
  return arrays_.Begin(arrays);
}

absl::StatusOr<StepRun> CudaBackend::BeginRepeatable(std::span<const HostArray> arrays,
                                                     std::string_view key) {
  RETURN_IF_ERROR(BeginStep(arrays));
  if (!use_graphs_ || timer_.measuring()) return run_;
  std::string full(key);
  for (const HostArray& a : arrays) StrAppend(&full, ",", a.bytes);
  graph_ = graphs_.Find(full);
  if (graph_->recorded()) {
    run_ = StepRun::kReplayed;
    RETURN_IF_ERROR(graphs_.Launch(graph_));
  } else if (graph_->launched && !graph_->refused) {
    RETURN_IF_ERROR(graphs_.BeginRecording());
    run_ = StepRun::kRecorded;
  }
  return run_;
}

absl::Status CudaBackend::EndRepeatable() {
  if (run_ == StepRun::kReplayed) {
    attention_.ExpectStatus(graph_->status_words);
  } else {
    RETURN_IF_ERROR(attention_.QueueStatus());
  }
  status_queued_ = true;
  if (graph_ == nullptr) return absl::OkStatus();
  // What a step copies beside its named arrays would be copied again, as it is now.
  graph_->refused = graph_->refused || arrays_.copied_more();
  graph_->launched = true;
  if (run_ != StepRun::kRecorded) return absl::OkStatus();
  if (graph_->refused) return absl::InternalError("a recorded step copied an array of its own");
  graph_->status_words = attention_.status_words();
  return graphs_.EndRecording(graph_);
}

absl::Status CudaBackend::EndStep() {
  if (!status_queued_) RETURN_IF_ERROR(attention_.QueueStatus());
  RETURN_IF_ERROR(context_->Synchronize());
  arrays_.End();
  const absl::Status status = attention_.EndStep();
  for (const MeasuredAttention& m : measured_) {
    const auto keys = static_cast<double>(m.counters.keys_read);
    timer_.AddAttention(m.flops_per_key * keys, m.bytes_per_key * keys);
    if (m.caller == nullptr) continue;
    m.caller->keys_visible += m.counters.keys_visible;
    m.caller->keys_read += m.counters.keys_read;
  }
  measured_.clear();
  timer_.EndStep();
  return status;
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

absl::StatusOr<Buffer> CudaBackend::AllocateHost(int64_t bytes) {
  RETURN_IF_ERROR(context_->MakeCurrent());
  void* p = nullptr;
  const cudaError_t error = cudaHostAlloc(&p, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return absl::ResourceExhaustedError(
        StrCat("the system has no ", bytes, " bytes of host memory that can be pinned."));
  }
  RETURN_IF_ERROR(context_->Check(error, "allocating pinned memory"));
  return Buffer(p, bytes, Device::kCpu, std::make_shared<PinnedDeleter>());
}

absl::Status CudaBackend::CopyBytes(std::span<const ByteCopy> copies) {
  if (copies.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(context_->MakeCurrent());
  std::vector<void*> to;
  std::vector<const void*> from;
  std::vector<size_t> sizes;
  for (const ByteCopy& copy : copies) {
    to.push_back(copy.to);
    from.push_back(copy.from);
    sizes.push_back(static_cast<size_t>(copy.bytes));
  }
  // One call for all: a call for each of a layer's pages would take longer than the copy.
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  size_t first = 0;
  RETURN_IF_ERROR(context_->Check(
      cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), sizes.size(), &attributes, &first,
                           1, context_->stream()),
      "copying pages"));
  return context_->Synchronize();
}

absl::StatusOr<std::unique_ptr<LinearWeight>> CudaBackend::DoPrepareLinear(
    std::span<const TensorView> parts, bool* keeps_views) {
  if (keeps_views != nullptr) *keeps_views = false;
  return PrepareCudaLinear(parts, *context_);
}

absl::Status CudaBackend::DoLinear(const LinearParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kLinear);
  return RunCudaLinear(p, *context_);
}

absl::Status CudaBackend::DoMoe(const MoeParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kLinear);
  return RunCudaMoe(p, *context_);
}

absl::Status CudaBackend::DoEmbedding(const EmbeddingParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  EmbeddingParams d = p;
  ASSIGN_OR_RETURN(d.ids, arrays_.OnDevice(p.ids, p.out.shape[0]));
  return context_->Check(LaunchEmbedding(d, context_->stream()), "Embedding");
}

absl::Status CudaBackend::DoGatherRows(const GatherRowsParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  GatherRowsParams d = p;
  ASSIGN_OR_RETURN(d.rows, arrays_.OnDevice(p.rows, p.out.shape[0]));
  return context_->Check(LaunchGatherRows(d, context_->stream()), "GatherRows");
}

absl::Status CudaBackend::DoRmsNorm(const RmsNormParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  return context_->Check(LaunchRmsNorm(p, context_->stream()), "RmsNorm");
}

absl::Status CudaBackend::DoLayerNorm(const LayerNormParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  return context_->Check(LaunchLayerNorm(p, context_->stream()), "LayerNorm");
}

absl::Status CudaBackend::DoRope(const RopeParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  RopeParams d = p;
  ASSIGN_OR_RETURN(d.positions, arrays_.OnDevice(p.positions, p.x.shape[0]));
  return context_->Check(LaunchRope(d, context_->stream()), "Rope");
}

absl::Status CudaBackend::DoPositionScale(const PositionScaleParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  PositionScaleParams d = p;
  ASSIGN_OR_RETURN(d.positions, arrays_.OnDevice(p.positions, p.x.shape[0]));
  return context_->Check(LaunchPositionScale(d, context_->stream()), "PositionScale");
}

absl::Status CudaBackend::DoKvWrite(const KvWriteParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  KvWriteParams d = p;
  ASSIGN_OR_RETURN(d.page_ids, arrays_.OnDevice(p.page_ids, p.k.shape[0]));
  ASSIGN_OR_RETURN(d.slots, arrays_.OnDevice(p.slots, p.k.shape[0]));
  return context_->Check(LaunchKvWrite(d, context_->stream()), "KvWrite");
}

absl::Status CudaBackend::DoAttention(const AttentionParams& p) {
  if (p.cache.page_entries != kPageTokens) return NoGatedParts();
  for (int32_t h = 0; p.selection.num_tiles > 0 && h < p.selection.num_list_heads; ++h) {
    const EdgeRule& edge = p.selection.edges[h];
    if (edge.causal == 0 && edge.window != 0) {
      return absl::UnimplementedError("Attention: a window that reaches ahead, on a GPU");
    }
  }
  const KernelTimer::Scope timed(timer_, KernelKind::kAttention);
  if (!timer_.measuring() || !arrays_.in_step()) return attention_.Run(p);
  // A tile of one row reads its keys for itself; others share what they read.
  const auto group = static_cast<double>(p.q.shape[1] / p.cache.num_heads);
  const double key_bytes =
      2.0 * static_cast<double>(KvHeadPageBytes(p.cache.dtype, p.cache.head_dim)) / kPageTokens;
  AttentionParams counted = p;
  counted.counters = &measured_
                          .emplace_back(MeasuredAttention{
                              .counters = {},
                              .caller = p.counters,
                              .flops_per_key = 4.0 * p.cache.head_dim,
                              .bytes_per_key = p.selection.num_tiles == p.q.shape[0]
                                                   ? key_bytes / group
                                                   : 0.0})
                          .counters;
  return attention_.Run(counted);
}

absl::StatusOr<std::span<const SampleResult>> CudaBackend::DoSample(const SampleParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  Scratch scratch(*context_);
  SampleLaunch launch{.logits = p.logits.ptr<float>(),
                      .logits_stride = p.logits.strides[0],
                      .vocab = static_cast<int32_t>(p.logits.shape[1]),
                      .num_rows = p.num_rows};
  ASSIGN_OR_RETURN(launch.rows, arrays_.Copy(p.rows, p.num_rows));
  ASSIGN_OR_RETURN(launch.edits, arrays_.Copy(p.edits, p.num_edits));
  ASSIGN_OR_RETURN(launch.originals, scratch.Take<float>(p.num_edits));
  ASSIGN_OR_RETURN(launch.results, scratch.Take<SampleResult>(p.num_rows));
  RETURN_IF_ERROR(context_->Check(LaunchSample(launch, context_->stream()), "Sample"));
  const int64_t bytes[2] = {1, p.num_rows * int64_t{sizeof(SampleResult)}};
  ASSIGN_OR_RETURN(const TensorView host, ToHost(TensorView::Contiguous(launch.results, DType::kU8,
                                                                        bytes, 2, Device::kCuda)));
  return std::span<const SampleResult>(host.ptr<const SampleResult>(),
                                       static_cast<size_t>(p.num_rows));
}

absl::Status CudaBackend::DoSummarizePages(const PageSummaryParams& p) {
  if (p.cache.value_mean) return NoGatedParts();
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  return RunSummarizePages(p, arrays_, *context_);
}

absl::Status CudaBackend::DoKvWriteSummarized(const KvWriteParams& p,
                                              const PageSummaryParams& summaries) {
  if (p.cache.value_mean) return NoGatedParts();
  if (!AddsOneKeyToEach(p, summaries)) {
    RETURN_IF_ERROR(DoKvWrite(p));
    return DoSummarizePages(summaries);
  }
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  return RunAddKeys(p, arrays_, *context_);
}

absl::Status CudaBackend::DoSelectPages(const SelectPagesParams& p) {
  if (p.score == PageScore::kMeanShares) return NoGatedParts();
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  return RunSelectPages(p, arrays_, *context_);
}

absl::Status CudaBackend::DoSelectTokens(const SelectTokensParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  return RunSelectTokens(p, arrays_, *context_);
}

absl::Status CudaBackend::DoGatedActivation(const GatedActivationParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  return context_->Check(LaunchGatedActivation(p, context_->stream()), "GatedActivation");
}

absl::Status CudaBackend::DoMergeAttention(const MergeAttentionParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kAttention);
  return context_->Check(LaunchMergeAttention(p, context_->stream()), "MergeAttention");
}

absl::Status CudaBackend::DoGateAttention(const GateAttentionParams&) { return NoGatedParts(); }

absl::Status CudaBackend::DoAdd(const AddParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  return context_->Check(LaunchAdd(p, context_->stream()), "Add");
}

absl::Status CudaBackend::DoSoftcap(const SoftcapParams& p) {
  const KernelTimer::Scope timed(timer_, KernelKind::kOther);
  return context_->Check(LaunchSoftcap(p, context_->stream()), "Softcap");
}

}  // namespace longstride::kernels::cuda

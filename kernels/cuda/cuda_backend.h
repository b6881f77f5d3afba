// The CUDA backend: one device, one stream; ops are queued and return, EndStep waits.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/attention/attention_runner.h"
#include "kernels/cuda/device/context.h"
#include "kernels/cuda/device/kernel_timer.h"
#include "kernels/cuda/device/step_arrays.h"
#include "kernels/cuda/device/step_graphs.h"

namespace longstride::kernels::cuda {

// Device memory comes as plain allocations (Allocate) and as reservations whose parts get memory when
// they are committed (Reserve), as the KV cache wants it (docs/decisions/0002). Steps that repeat are
// replayed as CUDA graphs: every address an op gets (step arrays, scratch) follows from the order and
// the sizes of what was taken before, so a recorded launch finds the next step's data in its place.
// A tensor of host memory is refused by every op; Resident makes device copies.
class CudaBackend : public Backend {
 public:
  static absl::StatusOr<std::unique_ptr<Backend>> Create(const BackendOptions& options);
  ~CudaBackend() override;

  Device device() const override { return Device::kCuda; }
  std::string Describe() const override;
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override { return context_->Allocate(bytes); }
  absl::StatusOr<Buffer> Reserve(int64_t bytes) override;
  absl::StatusOr<TensorView> Resident(const TensorView& host) override;
  absl::StatusOr<DeviceMemory> Memory() const override { return context_->Memory(); }
  absl::Status BeginStep(std::span<const HostArray> arrays) override;
  absl::StatusOr<StepRun> BeginRepeatable(std::span<const HostArray> arrays,
                                          std::string_view key) override;
  absl::Status EndRepeatable() override;
  bool repeats_steps() const override { return use_graphs_; }
  absl::Status EndStep() override;
  absl::StatusOr<Buffer> AllocateHost(int64_t bytes) override;
  absl::Status CopyBytes(std::span<const ByteCopy> copies) override;
  absl::StatusOr<TensorView> ToHost(const TensorView& t) override;
  bool samples() const override { return true; }
  std::optional<KernelTimes> TakeKernelTimes() override { return timer_.Take(); }
  bool healthy() const override { return context_->healthy(); }

 private:
  CudaBackend(std::unique_ptr<DeviceContext> context, const BackendOptions& options);

  absl::StatusOr<std::unique_ptr<LinearWeight>> DoPrepareLinear(std::span<const TensorView> parts,
                                                                bool* keeps_views) override;
  absl::Status DoEmbedding(const EmbeddingParams& p) override;
  absl::Status DoRmsNorm(const RmsNormParams& p) override;
  absl::Status DoLayerNorm(const LayerNormParams& p) override;
  absl::Status DoLinear(const LinearParams& p) override;
  absl::Status DoRope(const RopeParams& p) override;
  absl::Status DoPositionScale(const PositionScaleParams& p) override;
  absl::Status DoKvWrite(const KvWriteParams& p) override;
  absl::Status DoAttention(const AttentionParams& p) override;
  absl::Status DoMergeAttention(const MergeAttentionParams& p) override;
  absl::Status DoGateAttention(const GateAttentionParams& p) override;
  absl::Status DoKvWriteSummarized(const KvWriteParams& p,
                                   const PageSummaryParams& summaries) override;
  absl::Status DoSummarizePages(const PageSummaryParams& p) override;
  absl::Status DoSelectPages(const SelectPagesParams& p) override;
  absl::Status DoSelectTokens(const SelectTokensParams& p) override;
  absl::Status DoGatedActivation(const GatedActivationParams& p) override;
  absl::Status DoAdd(const AddParams& p) override;
  absl::Status DoSoftcap(const SoftcapParams& p) override;
  absl::Status DoGatherRows(const GatherRowsParams& p) override;
  absl::Status DoMoe(const MoeParams& p) override;
  absl::StatusOr<std::span<const SampleResult>> DoSample(const SampleParams& p) override;

  class Reservations;
  std::unique_ptr<DeviceContext> context_;
  StepArrays arrays_;
  AttentionRunner attention_;
  KernelTimer timer_;
  // Attention calls of a step that is measured.
  struct MeasuredAttention {
    AttentionCounters counters;
    AttentionCounters* caller;  // or null
    double flops_per_key, bytes_per_key;
  };
  std::deque<MeasuredAttention> measured_;
  const bool use_graphs_;
  StepGraphs graphs_;
  StepGraph* graph_ = nullptr;  // of the repeatable step in progress
  StepRun run_ = StepRun::kLaunched;
  bool status_queued_ = false;
  std::shared_ptr<Reservations> reservations_;
  std::vector<Buffer> resident_;
  // Host copies of outputs: pinned, as large as the largest so far.
  std::vector<Buffer> outputs_;
  size_t num_outputs_ = 0;
};

}  // namespace longstride::kernels::cuda

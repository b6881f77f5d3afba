// The numeric ops of one device behind one documented contract. Three implementations, the same
// file names side by side: reference/ (plain float32, the specification and the oracle), cpu/
// (threads, SIMD, quantised weights) and cuda/.
//
// Public methods check the contract of op_params.h (shapes, dtypes, strides, ranges that can be
// checked cheaply) and then call the private virtual that does the work. Contract violations are
// programmer errors of the model code and return INTERNAL, naming op, expected and got.
// A backend may be used by one thread at a time.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "config/base/status.h"
#include "kernels/attention_parts.h"
#include "kernels/buffer.h"
#include "kernels/op_params.h"

namespace longstride::kernels {

// A weight matrix [rows, cols] in a backend's own form. Immutable, thread-safe.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  // Bytes this form takes beyond the views it was made from.
  int64_t owned_bytes() const { return owned_bytes_; }
  // The type of activations that Linear takes without converting them. Where it is bf16, ops that
  // make activations (op_params.h) may write them as such: the same values, rounded once.
  DType input_type() const { return input_type_; }

 protected:
  LinearWeight(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {}
  int64_t rows_;
  int64_t cols_;
  int64_t owned_bytes_ = 0;
  DType input_type_ = DType::kF32;
};

// cuda: which family of kernels runs.
enum class KernelChoice : uint8_t {
  kAuto,      // the fast ones where the device has them
  kFast,      // those written for one chip; refused on another
  kPortable,  // those of every chip
};

struct BackendOptions {
  int num_threads = 0;   // 0: one per physical core available to the process
  std::string isa = {};  // cpu: "" best available, else "portable", "avx2", "avx512vnni", …
  KernelChoice kernels = KernelChoice::kAuto;
  bool cuda_graphs = true;  // cuda: replay steps that repeat (BeginRepeatable)
};

struct DeviceMemory {
  int64_t free_bytes = 0;  // not taken by any process
  int64_t total_bytes = 0;
};

// Of one step, on the device.
struct KernelTimes {
  double attention_seconds = 0;
  double linear_seconds = 0;  // matrix products, those of experts included
  double other_seconds = 0;
  double attention_flops = 0;  // 4 * head_dim for each key that was scored
  double attention_bytes = 0;  // keys and values read, once for all heads that share them
};

// How a repeatable step runs: its ops are launched one by one, recorded, or replayed from a record.
enum class StepRun : uint8_t { kLaunched, kRecorded, kReplayed };

// Bytes in host memory that the ops of a step read.
struct HostArray {
  const void* data = nullptr;
  int64_t bytes = 0;
};

struct ByteCopy {
  const void* from = nullptr;
  void* to = nullptr;
  int64_t bytes = 0;
};

// Where tensors and arrays lie: activations, weights and tables of floats in the backend's memory
// (Allocate, Resident), arrays of integers and selections in host memory.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual Device device() const = 0;
  // For logs and `inspect`: "cpu (avx2, 2 threads)".
  virtual std::string Describe() const = 0;

  virtual absl::StatusOr<Buffer> Allocate(int64_t bytes) = 0;
  // Address space alone: Buffer::Commit puts memory behind the parts that are used.
  virtual absl::StatusOr<Buffer> Reserve(int64_t bytes) = 0;

  // A view of a host tensor in the backend's memory, for as long as the backend lives; the tensor
  // itself where the backend computes on host memory. No data stays no data.
  virtual absl::StatusOr<TensorView> Resident(const TensorView& host) { return host; }
  // The device's memory; UNIMPLEMENTED where that is the host's. Thread-safe.
  virtual absl::StatusOr<DeviceMemory> Memory() const {
    return absl::UnimplementedError("this backend computes in host memory");
  }

  // Host memory that CopyBytes reads and writes at the device's full rate. RESOURCE_EXHAUSTED.
  virtual absl::StatusOr<Buffer> AllocateHost(int64_t bytes) {
    return Buffer::AllocateHost(bytes);
  }
  // Copies within the backend's memory, or between it and memory of AllocateHost, in any order: no
  // copy reads what another one writes. Done when it returns. REQUIRES: no step is under way.
  virtual absl::Status CopyBytes(std::span<const ByteCopy> copies);

  // Ops between BeginStep and EndStep may run behind the calls that ask for them, and a host array
  // that one of them took must not change before EndStep. `arrays` are those that the step will
  // use, as far as they are known: naming them saves copies, leaving one out is no error.
  virtual absl::Status BeginStep(std::span<const HostArray> arrays) { return absl::OkStatus(); }
  // A step whose ops follow from `key` and the sizes of `arrays` alone: in all steps of one key the
  // same ops are asked for with the same arguments, arrays in the same order, and only what the
  // arrays hold differs. Like BeginStep; but after kReplayed the ops up to EndRepeatable are queued
  // already and must not be asked for (what they did to the backend's memory is the same to the
  // bit). Between the two calls the ops read no host arrays but the named ones.
  virtual absl::StatusOr<StepRun> BeginRepeatable(std::span<const HostArray> arrays,
                                                  std::string_view key) {
    RETURN_IF_ERROR(BeginStep(arrays));
    return StepRun::kLaunched;
  }
  virtual absl::Status EndRepeatable() { return absl::OkStatus(); }
  // Whether BeginRepeatable is worth preparing for.
  virtual bool repeats_steps() const { return false; }
  // Waits for the step's ops. INTERNAL: one of them failed on the device.
  virtual absl::Status EndStep() { return absl::OkStatus(); }
  // Where the tensor's contents are in host memory after EndStep, until the next BeginStep.
  virtual absl::StatusOr<TensorView> ToHost(const TensorView& t) { return t; }
  // Whether Sample is there: on a device, where logits would have to be copied to be sampled.
  virtual bool samples() const { return false; }
  // How long kernels of the last step took by kind, if that step was measured: few are, because
  // measuring costs time. Meaningful after EndStep.
  virtual std::optional<KernelTimes> TakeKernelTimes() { return std::nullopt; }
  // False once the device cannot be used any more by this process.
  virtual bool healthy() const { return true; }

  // Makes one weight of the row-concatenation of `parts` ([n_i, K], dtypes may differ). Parts are
  // read now; if `*keeps_views` is false afterwards, the views' memory is not needed any more.
  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(std::span<const TensorView> parts,
                                                              bool* keeps_views);

  absl::Status Embedding(const EmbeddingParams& p);
  absl::Status RmsNorm(const RmsNormParams& p);
  absl::Status LayerNorm(const LayerNormParams& p);
  absl::Status Linear(const LinearParams& p);
  absl::Status Rope(const RopeParams& p);
  absl::Status PositionScale(const PositionScaleParams& p);
  absl::Status KvWrite(const KvWriteParams& p);
  absl::Status Attention(const AttentionParams& p);
  absl::Status MergeAttention(const MergeAttentionParams& p);
  // UNIMPLEMENTED: the backend has no kernel for it.
  absl::Status GateAttention(const GateAttentionParams& p);
  absl::Status SummarizePages(const PageSummaryParams& p);
  absl::Status SelectPages(const SelectPagesParams& p);
  // UNIMPLEMENTED: the backend has no kernel for it.
  absl::Status SelectTokens(const SelectTokensParams& p);
  absl::Status GatedActivation(const GatedActivationParams& p);
  absl::Status Add(const AddParams& p);
  absl::Status Softcap(const SoftcapParams& p);
  absl::Status GatherRows(const GatherRowsParams& p);
  absl::Status Moe(const MoeParams& p);
  // Results, one for each row of `p`, lie in host memory after EndStep, until the next BeginStep.
  // REQUIRES: samples(), within a step.
  absl::StatusOr<std::span<const SampleResult>> Sample(const SampleParams& p);

 private:
  virtual absl::StatusOr<std::unique_ptr<LinearWeight>> DoPrepareLinear(
      std::span<const TensorView> parts, bool* keeps_views) = 0;
  virtual absl::Status DoEmbedding(const EmbeddingParams& p) = 0;
  virtual absl::Status DoRmsNorm(const RmsNormParams& p) = 0;
  virtual absl::Status DoLayerNorm(const LayerNormParams& p) = 0;
  virtual absl::Status DoLinear(const LinearParams& p) = 0;
  virtual absl::Status DoRope(const RopeParams& p) = 0;
  virtual absl::Status DoPositionScale(const PositionScaleParams& p) = 0;
  virtual absl::Status DoKvWrite(const KvWriteParams& p) = 0;
  // For backends that do both at once; the arrays of both are given.
  virtual absl::Status DoKvWriteSummarized(const KvWriteParams& p,
                                           const PageSummaryParams& summaries);
  virtual absl::Status DoAttention(const AttentionParams& p) = 0;
  virtual absl::Status DoMergeAttention(const MergeAttentionParams& p) = 0;
  virtual absl::Status DoGateAttention(const GateAttentionParams& p) = 0;
  virtual absl::Status DoSummarizePages(const PageSummaryParams& p) = 0;
  virtual absl::Status DoSelectPages(const SelectPagesParams& p) = 0;
  virtual absl::Status DoSelectTokens(const SelectTokensParams& p) = 0;
  virtual absl::Status DoGatedActivation(const GatedActivationParams& p) = 0;
  virtual absl::Status DoAdd(const AddParams& p) = 0;
  virtual absl::Status DoSoftcap(const SoftcapParams& p) = 0;
  virtual absl::Status DoGatherRows(const GatherRowsParams& p) = 0;
  virtual absl::Status DoMoe(const MoeParams& p) = 0;
  virtual absl::StatusOr<std::span<const SampleResult>> DoSample(const SampleParams& p) {
    return absl::UnimplementedError("this backend chooses no tokens");
  }
};

enum class BackendKind { kReference, kCpu, kCuda };

// UNIMPLEMENTED: built without CUDA. UNAVAILABLE: no usable device. INVALID_ARGUMENT: bad options.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(BackendKind kind,
                                                     const BackendOptions& options);

// The memory that a backend of the kind would compute in, without making one. UNIMPLEMENTED: it is
// the host's, or built without CUDA. UNAVAILABLE: no usable device.
absl::StatusOr<DeviceMemory> MemoryOf(BackendKind kind);

}  // namespace longstride::kernels

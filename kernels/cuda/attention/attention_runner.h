// The backend's side of Attention: chooses kernels, uploads selections once a step, converts
// activations, and keeps the counters.
#pragma once

#include <memory>
#include <vector>

#include "config/base/status.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/host_lists.h"
#include "kernels/cuda/attention/made_lists.h"
#include "kernels/cuda/device/context.h"
#include "kernels/cuda/device/step_arrays.h"

namespace longstride::kernels::cuda {

// A row's class alone decides its kernel: a prompt's rows go to the prefill kernel and generated
// ones, each as a tile of its own, to the decode kernel: Hopper's where they take the shape and may
// be used, else the portable ones. What neither takes goes to the float32 kernel. One thread.
class AttentionRunner {
 public:
  AttentionRunner(DeviceContext& context, StepArrays& arrays)
      : context_(context), arrays_(arrays) {}

  absl::Status Init();

  // As Backend::Attention. Outside a step it waits for the result. What lists with padding show is added
  // to the counters when the step ends.
  absl::Status Run(const AttentionParams& p);
  void BeginStep();
  // Queues what EndStep reads.
  absl::Status QueueStatus();
  // How much that is, and the same of a step that was replayed.
  int64_t status_words() const { return static_cast<int64_t>(num_status_); }
  void ExpectStatus(int64_t words) { num_status_ = static_cast<size_t>(words); }
  // After the device is done: adds to the counters that waited. INTERNAL: a visible key had no page.
  absl::Status EndStep();

 private:
  // Tiles of one class, on the device.
  struct Part {
    KvSelection selection;
    void* scratch = nullptr;
    int32_t max_list_pages = 0;  // decode
  };
  // Layers of one shape that share a selection share its plan within a step.
  struct Plan {
    AttentionParams key;
    AttentionCounters counters;
    AttentionParams device;  // arrays and `selection` (all tiles) in device memory
    bool tensor_cores = false;
    KernelPath path = KernelPath::kPortable;  // of those
    PrefillLayout layout = PrefillLayout::kPlain;
    Part prompt, generated;
    void* float_status = nullptr;
    // Lists with padding, whose lengths follow from each layer's queries: what of the selection above they
    // are, with room for list_count each, and where their lengths go.
    KvSelection padded;
    int32_t* lengths = nullptr;
    AttentionParams padded_shape;  // of the prompt's part
  };

  absl::StatusOr<Plan*> PlanFor(const AttentionParams& p);
  absl::Status MakePlan(const AttentionParams& p, Plan* plan);
  absl::Status SplitTiles(const AttentionParams& p, Plan* plan);
  absl::Status PlanGenerated(const AttentionParams& p, const std::vector<int32_t>& tiles,
                             AttentionParams shape, Plan* plan);
  // Makes the lists of single rows (RowLists) and copies them to the device.
  absl::Status UploadRows(const AttentionParams& p, const std::vector<int32_t>& tiles,
                          KvSelection* part);
  // Chooses kernels and layout. A function of the layer's shape alone, so that a row's bits are.
  void ChooseKernels(const AttentionParams& p, Plan* plan) const;
  // Has `selection`'s lists measured by every layer; from here on its lengths lie on the device.
  absl::Status AwaitLengths(KvSelection* selection, Plan* plan);
  // Measures a layer's lists, counts what they show and plans the prompt's part anew.
  absl::Status MeasureLists(const AttentionParams& p, const Plan& plan);
  absl::Status RunTensorCores(const AttentionParams& p, const Plan& plan);
  absl::Status RunFloat(const AttentionParams& p, const Plan& plan);
  // Device memory that lives as long as the step, 0 at first if `zeroed`.
  absl::StatusOr<void*> StepMemory(int64_t bytes, bool zeroed);

  DeviceContext& context_;
  StepArrays& arrays_;
  std::vector<std::unique_ptr<Plan>> plans_;  // the first num_plans_ are the step's
  size_t num_plans_ = 0;
  RowLists rows_;
  DeviceCounters* device_counters_ = nullptr;    // of the step: one for each of waiting_counters_
  std::vector<AttentionCounters*> waiting_counters_;
  DeviceCounters* host_counters_ = nullptr;  // pinned, behind host_status_
  std::vector<const void*> status_words_;
  size_t num_status_ = 0;  // queued
  uint32_t* host_status_ = nullptr;  // pinned
  Buffer host_status_owner_;
};

}  // namespace longstride::kernels::cuda

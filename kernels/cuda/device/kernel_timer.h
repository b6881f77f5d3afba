// Times of a step's kernels by kind, from device events around each op. Measuring takes a step about
// 2 us an op, so that few steps are measured.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device/context.h"

namespace longstride::kernels::cuda {

enum class KernelKind : uint8_t { kAttention, kLinear, kOther };

// One thread.
class KernelTimer {
 public:
  explicit KernelTimer(DeviceContext& context);
  ~KernelTimer();
  KernelTimer(const KernelTimer&) = delete;
  KernelTimer& operator=(const KernelTimer&) = delete;

  // Whether the step that begins is measured: the first after some seconds without.
  void BeginStep();
  bool measuring() const { return measuring_; }
  // The kernels that are queued between construction and destruction.
  class Scope {
   public:
    Scope(KernelTimer& timer, KernelKind kind) : timer_(timer), kind_(kind) { timer_.Mark(kind_); }
    ~Scope() { timer_.Mark(kind_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    KernelTimer& timer_;
    KernelKind kind_;
  };
  void AddAttention(double flops, double bytes);
  // After the device is done with the step.
  void EndStep();
  std::optional<KernelTimes> Take();

 private:
  void Mark(KernelKind kind);

  DeviceContext& context_;
  int64_t measured_at_;  // of the monotonic clock
  bool measuring_ = false;
  std::vector<cudaEvent_t> events_;  // two for each scope; as many as the largest step took
  std::vector<KernelKind> kinds_;    // of the events used
  KernelTimes times_;
  std::optional<KernelTimes> done_;
};

}  // namespace longstride::kernels::cuda

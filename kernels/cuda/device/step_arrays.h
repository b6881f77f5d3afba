// Device copies of the small host arrays that ops take (ids, positions, page tables, lists), staged
// through pinned memory: those named when a step begins go in one copy.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>

#include "config/base/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/device/context.h"

namespace longstride::kernels::cuda {

// Copies live until the next Begin; outside a step until the op that asked has been queued and
// those behind it. One thread.
class StepArrays {
 public:
  explicit StepArrays(DeviceContext& context) : context_(context) {}
  ~StepArrays();
  StepArrays(const StepArrays&) = delete;
  StepArrays& operator=(const StepArrays&) = delete;

  absl::Status Init();
  // REQUIRES: the device has finished the last step.
  absl::Status Begin(std::span<const HostArray> arrays);
  void End() { in_step_ = false; }
  bool in_step() const { return in_step_; }
  // Whether the step copied arrays that Begin was not told of.
  bool copied_more() const { return copied_more_; }

  // The device copy of `count` elements; within a step the same host array is copied once.
  template <typename T>
  absl::StatusOr<const T*> OnDevice(const T* host, int64_t count) {
    ASSIGN_OR_RETURN(const void* p, Find(host, count * static_cast<int64_t>(sizeof(T))));
    return static_cast<const T*>(p);
  }
  // A fresh copy of an array that may change after the call.
  template <typename T>
  absl::StatusOr<const T*> Copy(const T* host, int64_t count) {
    ASSIGN_OR_RETURN(const void* p, CopyBytes(host, count * static_cast<int64_t>(sizeof(T))));
    return static_cast<const T*>(p);
  }
  // Device memory that lives as long as the copies.
  absl::StatusOr<char*> Take(int64_t bytes);

 private:
  absl::StatusOr<const void*> Find(const void* host, int64_t bytes);
  absl::StatusOr<const void*> CopyBytes(const void* host, int64_t bytes);
  absl::Status GrowPinned(int64_t bytes);

  struct Copied {
    int64_t bytes;
    const void* device;
  };
  DeviceContext& context_;
  VirtualRange memory_;
  int64_t used_ = 0;
  char* pinned_ = nullptr;
  int64_t pinned_bytes_ = 0;
  int64_t pinned_used_ = 0;
  int64_t pinned_wanted_ = 0;  // what the last step would have used
  bool in_step_ = false;
  bool copied_more_ = false;
  std::unordered_map<const void*, Copied> copies_;
};

}  // namespace longstride::kernels::cuda

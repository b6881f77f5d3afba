// What every CUDA op runs on: one device, one stream, scratch memory, and the translation of CUDA
// errors. One thread at a time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "config/base/status.h"
#include "kernels/backend.h"
#include "kernels/buffer.h"
#include "kernels/cuda/device/virtual_memory.h"
#include "kernels/cuda/device/kernel_path.h"
#include "kernels/cuda/device_info.h"

namespace longstride::kernels::cuda {

class DeviceContext {
 public:
  // Makes the device current on the calling thread. Errors: FindCudaDevice's, or the device's own.
  // UNAVAILABLE: this build has no code for the device, or no fast kernels where those were asked
  // for.
  static absl::StatusOr<std::unique_ptr<DeviceContext>> Create(
      int device_index, KernelChoice kernels = KernelChoice::kAuto);
  ~DeviceContext();
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  // For a thread that has not used the device yet.
  absl::Status MakeCurrent() { return Check(cudaSetDevice(info_.index), "choosing the device"); }

  const CudaDeviceInfo& info() const { return info_; }
  int multiprocessors() const { return info_.multiprocessors; }
  // Which family of kernels runs here, decided once.
  KernelPath path() const { return path_; }
  // All work of the backend, in order.
  cudaStream_t stream() const { return stream_; }
  // Whether the device still answers: a CUDA error that is not about one call's arguments is final.
  bool healthy() const { return healthy_; }

  // Device memory, 256-byte aligned, not initialised. RESOURCE_EXHAUSTED names need and have.
  absl::StatusOr<Buffer> Allocate(int64_t bytes);
  // Thread-safe.
  absl::StatusOr<DeviceMemory> Memory() const;
  // A copy of host memory on the device; the host memory may go afterwards. For loading: waits.
  absl::StatusOr<Buffer> Upload(const void* host, int64_t bytes);
  // Waits for the stream and reports what failed on it since the last call.
  absl::Status Synchronize();
  // INTERNAL with the op's name for anything but cudaSuccess.
  absl::Status Check(cudaError_t error, const char* op);

 private:
  friend class Scratch;
  explicit DeviceContext(CudaDeviceInfo info) : info_(std::move(info)) {}

  CudaDeviceInfo info_;
  KernelPath path_ = KernelPath::kPortable;
  cudaStream_t stream_ = nullptr;
  bool healthy_ = true;
  VirtualRange scratch_;
  int64_t scratch_used_ = 0;
};

// Scratch memory of one op, a stack: what is taken is free again when the scope ends. Reuse is
// ordered by the stream, so an op queues its work and returns. Scopes nest (an op may call another
// while it holds one). After the largest op has run once nothing is allocated, and addresses never
// move, so that launches can be captured in a graph.
class Scratch {
 public:
  explicit Scratch(DeviceContext& context) : context_(context), mark_(context.scratch_used_) {}
  ~Scratch() { context_.scratch_used_ = mark_; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // `count` elements, 256-byte aligned, not initialised.
  template <typename T>
  absl::StatusOr<T*> Take(int64_t count) {
    ASSIGN_OR_RETURN(void* p, TakeBytes(count * static_cast<int64_t>(sizeof(T))));
    return static_cast<T*>(p);
  }

 private:
  absl::StatusOr<void*> TakeBytes(int64_t bytes);
  DeviceContext& context_;
  int64_t mark_;
};

}  // namespace longstride::kernels::cuda

#include "kernels/cuda/device/step_arrays.h"

#include <algorithm>
#include <cstring>

namespace longstride::kernels::cuda {
namespace {

constexpr int64_t kAddresses = int64_t{16} << 30;
constexpr int64_t kFirstPinned = int64_t{4} << 20;
// Outside a step nothing says when copies may go: this much is kept.
constexpr int64_t kKeptOutside = int64_t{256} << 20;

int64_t Aligned(int64_t bytes) { return (std::max<int64_t>(bytes, 1) + 255) / 256 * 256; }

}  // namespace

StepArrays::~StepArrays() {
  if (pinned_ != nullptr) cudaFreeHost(pinned_);
}

absl::Status StepArrays::Init() {
  RETURN_IF_ERROR(memory_.Reserve(context_.info().index, kAddresses));
  return GrowPinned(kFirstPinned);
}

absl::Status StepArrays::GrowPinned(int64_t bytes) {
  if (bytes <= pinned_bytes_) return absl::OkStatus();
  if (pinned_ != nullptr) cudaFreeHost(pinned_);
  pinned_ = nullptr;
  pinned_bytes_ = 0;
  void* p = nullptr;
  RETURN_IF_ERROR(context_.Check(cudaHostAlloc(&p, static_cast<size_t>(bytes), cudaHostAllocDefault),
                                 "allocating pinned memory"));
  pinned_ = static_cast<char*>(p);
  pinned_bytes_ = bytes;
  return absl::OkStatus();
}

absl::Status StepArrays::Begin(std::span<const HostArray> arrays) {
  int64_t total = 0;
  for (const HostArray& a : arrays) total += Aligned(a.bytes);
  const int64_t wanted = std::max(total, pinned_wanted_);
  if (wanted > pinned_bytes_) RETURN_IF_ERROR(GrowPinned(wanted + wanted / 2));
  copies_.clear();
  used_ = pinned_used_ = pinned_wanted_ = 0;
  in_step_ = true;
  copied_more_ = false;
  if (total == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(char* base, Take(total));
  int64_t at = 0;
  for (const HostArray& a : arrays) {
    if (a.bytes == 0) continue;
    std::memcpy(pinned_ + at, a.data, static_cast<size_t>(a.bytes));
    copies_[a.data] = {a.bytes, base + at};
    at += Aligned(a.bytes);
  }
  pinned_used_ = pinned_wanted_ = total;
  return context_.Check(cudaMemcpyAsync(base, pinned_, static_cast<size_t>(at),
                                        cudaMemcpyHostToDevice, context_.stream()),
                        "copying the step's arrays");
}

absl::StatusOr<char*> StepArrays::Take(int64_t bytes) {
  const int64_t size = Aligned(bytes);
  if (!in_step_ && used_ + size > kKeptOutside) {
    RETURN_IF_ERROR(context_.Synchronize());
    used_ = 0;
  }
  RETURN_IF_ERROR(memory_.Map(used_, size));
  char* p = memory_.data() + used_;
  used_ += size;
  return p;
}

absl::StatusOr<const void*> StepArrays::Find(const void* host, int64_t bytes) {
  if (!in_step_) return CopyBytes(host, bytes);
  const auto it = copies_.find(host);
  if (it != copies_.end() && it->second.bytes >= bytes) return it->second.device;
  ASSIGN_OR_RETURN(const void* device, CopyBytes(host, bytes));
  copies_[host] = {bytes, device};
  return device;
}

absl::StatusOr<const void*> StepArrays::CopyBytes(const void* host, int64_t bytes) {
  ASSIGN_OR_RETURN(char* device, Take(bytes));
  if (bytes == 0) return static_cast<const void*>(device);
  copied_more_ = true;
  // Memory that is not pinned is read before the call returns.
  const void* from = host;
  pinned_wanted_ += Aligned(bytes);
  if (in_step_ && pinned_used_ + Aligned(bytes) <= pinned_bytes_) {
    std::memcpy(pinned_ + pinned_used_, host, static_cast<size_t>(bytes));
    from = pinned_ + pinned_used_;
    pinned_used_ += Aligned(bytes);
  }
  RETURN_IF_ERROR(context_.Check(cudaMemcpyAsync(device, from, static_cast<size_t>(bytes),
                                                 cudaMemcpyHostToDevice, context_.stream()),
                                 "copying an array"));
  return static_cast<const void*>(device);
}

}  // namespace longstride::kernels::cuda

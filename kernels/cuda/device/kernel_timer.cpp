#include "kernels/cuda/device/kernel_timer.h"

#include <utility>

#include "config/base/clock.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int64_t kEveryNanos = int64_t{5} * 1000 * 1000 * 1000;

}  // namespace

KernelTimer::KernelTimer(DeviceContext& context)
    : context_(context), measured_at_(Clock::Real()->MonotonicNanos()) {}

KernelTimer::~KernelTimer() {
  for (const cudaEvent_t event : events_) cudaEventDestroy(event);
}

void KernelTimer::BeginStep() {
  kinds_.clear();
  times_ = {};
  done_.reset();
  const int64_t now = Clock::Real()->MonotonicNanos();
  measuring_ = now - measured_at_ >= kEveryNanos;
  if (measuring_) measured_at_ = now;
}

void KernelTimer::Mark(KernelKind kind) {
  if (!measuring_) return;
  if (kinds_.size() == events_.size()) {
    cudaEvent_t event = nullptr;
    if (!context_.Check(cudaEventCreate(&event), "making an event").ok()) {
      measuring_ = false;
      return;
    }
    events_.push_back(event);
  }
  if (!context_.Check(cudaEventRecord(events_[kinds_.size()], context_.stream()), "an event").ok()) {
    measuring_ = false;
    return;
  }
  kinds_.push_back(kind);
}

void KernelTimer::AddAttention(double flops, double bytes) {
  times_.attention_flops += flops;
  times_.attention_bytes += bytes;
}

void KernelTimer::EndStep() {
  if (!measuring_) return;
  measuring_ = false;
  for (size_t i = 0; i + 1 < kinds_.size(); i += 2) {
    float milliseconds = 0;
    if (cudaEventElapsedTime(&milliseconds, events_[i], events_[i + 1]) != cudaSuccess) return;
    const double seconds = static_cast<double>(milliseconds) * 1e-3;
    switch (kinds_[i]) {
      case KernelKind::kAttention:
        times_.attention_seconds += seconds;
        break;
      case KernelKind::kLinear:
        times_.linear_seconds += seconds;
        break;
      case KernelKind::kOther:
        times_.other_seconds += seconds;
        break;
    }
  }
  done_ = times_;
}

std::optional<KernelTimes> KernelTimer::Take() { return std::exchange(done_, std::nullopt); }

}  // namespace longstride::kernels::cuda

#include "kernels/cpu/thread_pool.h"

#include <sched.h>

#include "config/base/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace longstride::kernels::cpu {
namespace {

// A decode step is a chain of short regions, so a worker spins through the gaps between them (some
// microseconds). The first part only pauses; then it offers its processor to others, which is what
// keeps more threads than processors from starving each other; then it sleeps.
constexpr int kPauses = 1500;
constexpr int kYields = 40;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Returns once `value` is no longer `old`.
void AwaitChange(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kPauses; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    Pause();
  }
  for (int i = 0; i < kYields; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    sched_yield();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  LS_CHECK_GE(num_threads, 1);
  workers_.reserve(num_threads - 1);
  for (int t = 1; t < num_threads; ++t) workers_.emplace_back([this, t] { WorkerLoop(t); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::WorkerLoop(int thread) {
  uint32_t seen = 0;
  for (;;) {
    AwaitChange(epoch_, seen);
    ++seen;
    if (stop_) return;
    call_(fn_, thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

void ThreadPool::RunErased(ErasedFn call, const void* fn) {
  call_ = call;
  fn_ = fn;
  running_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  call(fn, 0);
  for (;;) {
    const uint32_t left = running_.load(std::memory_order_acquire);
    if (left == 0) return;
    AwaitChange(running_, left);
  }
}

}  // namespace longstride::kernels::cpu

// The compute threads of one backend: fork-join regions that cost about a microsecond while the
// workers are warm, and nothing while idle (workers spin briefly, then sleep).
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace longstride::kernels::cpu {

// One thread at a time may call Run. The caller works as thread 0.
class ThreadPool {
 public:
  // `num_threads` >= 1, the caller included.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(thread) once for each thread in [0, num_threads) and returns when all have returned;
  // what they wrote is then visible. fn must not call Run.
  template <typename Fn>
  void Run(const Fn& fn) {
    if (workers_.empty()) {
      fn(0);
      return;
    }
    RunErased([](const void* f, int thread) { (*static_cast<const Fn*>(f))(thread); }, &fn);
  }

  // Calls fn(index, thread) for each index in [0, count), handing indices out in ascending order
  // to whichever thread is free. Runs on the caller alone where there is one index.
  template <typename Fn>
  void ParallelFor(int64_t count, const Fn& fn) {
    if (count <= 1 || workers_.empty()) {
      for (int64_t i = 0; i < count; ++i) fn(i, 0);
      return;
    }
    next_index_.store(0, std::memory_order_relaxed);
    Run([&](int thread) {
      for (;;) {
        const int64_t i = next_index_.fetch_add(1, std::memory_order_relaxed);
        if (i >= count) return;
        fn(i, thread);
      }
    });
  }

 private:
  using ErasedFn = void (*)(const void* fn, int thread);
  void RunErased(ErasedFn call, const void* fn);
  void WorkerLoop(int thread);

  ErasedFn call_ = nullptr;
  const void* fn_ = nullptr;
  bool stop_ = false;
  // Each on its own cache line: workers poll the first while others write the rest.
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<uint32_t> running_{0};
  alignas(64) std::atomic<int64_t> next_index_{0};
  std::vector<std::thread> workers_;
};

}  // namespace longstride::kernels::cpu

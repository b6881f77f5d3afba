// Threads for work that would hold up an I/O thread: parsing, templates, tokenising, large answers.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace longstride::frontend {

// Thread-safe. The number of waiting tasks is bounded by who posts: each connection and each gRPC
// call has at most one under way.
class WorkerPool {
 public:
  explicit WorkerPool(int32_t threads);
  ~WorkerPool() { Stop(); }

  // After Stop the task is destroyed without being run.
  void Post(std::function<void()> task);
  // Finishes the tasks being run, drops the waiting ones, joins. Idempotent.
  void Stop();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> tasks_;
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace longstride::frontend

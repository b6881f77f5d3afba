#include "server/frontend/worker_pool.h"

#include <utility>

#include "config/base/logging.h"

namespace longstride::frontend {

WorkerPool::WorkerPool(int32_t threads) {
  for (int32_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

void WorkerPool::Post(std::function<void()> task) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (stopped_) return;
  tasks_.push_back(std::move(task));
  ready_.notify_one();
}

void WorkerPool::Stop() {
  std::deque<std::function<void()>> dropped;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopped_ = true;
    dropped.swap(tasks_);
    ready_.notify_all();
  }
  dropped.clear();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void WorkerPool::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    ready_.wait(lock, [this] { return stopped_ || !tasks_.empty(); });
    if (stopped_) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    try {
      task();
    } catch (const std::exception&) {
      // What the task held (a sink, a call) answers with an internal error when it is destroyed.
      Log(LogLevel::kError, "a front-end task ended by an exception");
    }
    task = nullptr;
    lock.lock();
  }
}

}  // namespace longstride::frontend

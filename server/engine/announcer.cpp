#include "server/engine/announcer.h"

#include <iterator>
#include <utility>

namespace longstride::engine {

Announcer::Announcer() : thread_([this] { Run(); }) {}

Announcer::~Announcer() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Announcer::Announce(std::vector<std::shared_ptr<OutputQueue>>* queues) {
  if (queues->empty()) return;
  bool asleep = false;
  {
    const std::lock_guard lock(mutex_);
    asleep = waiting_.empty();
    if (asleep) {
      waiting_.swap(*queues);
    } else {
      waiting_.insert(waiting_.end(), std::make_move_iterator(queues->begin()),
                      std::make_move_iterator(queues->end()));
    }
  }
  queues->clear();
  if (asleep) wake_.notify_one();
}

void Announcer::Run() {
  std::vector<std::shared_ptr<OutputQueue>> queues;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      queues.swap(waiting_);
    }
    for (const auto& queue : queues) queue->Notify();
    queues.clear();
  }
}

}  // namespace longstride::engine

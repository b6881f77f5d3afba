// Wakes readers on a thread of its own: a step's outputs cost the engine's thread one wake-up, not
// one a stream.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "server/engine/output_queue.h"

namespace longstride::engine {

class Announcer {
 public:
  Announcer();
  // Announces what was given before.
  ~Announcer();

  // Calls Notify of each queue soon, in order. Empties `queues`, whose memory is reused.
  void Announce(std::vector<std::shared_ptr<OutputQueue>>* queues);

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<OutputQueue>> waiting_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace longstride::engine

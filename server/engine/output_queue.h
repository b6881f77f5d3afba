#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "absl/time/time.h"
#include "server/engine/request.h"

namespace longstride::engine {

// Events of one request on their way from the engine to the front end. Deltas of one choice that
// were not collected yet merge, so that a slow reader costs text, not events. Thread-safe: the engine
// pushes, the front end drains.
class OutputQueue {
 public:
  // `notify`: see Engine::Submit. `drained`: called after a Drain while WakeOnDrain is set.
  OutputQueue(std::function<void()> notify, std::function<void()> drained);

  // Engine. Returns the bytes waiting. Push does not notify; Notify does if something is new.
  int64_t Push(OutputEvent event);
  void Notify();
  int64_t bytes() const;
  void WakeOnDrain(bool on) { wake_on_drain_ = on; }

  // Front end.
  bool Drain(std::vector<OutputEvent>* events);
  bool Wait(absl::Duration timeout);
  // No notification after it returned.
  void Detach();

 private:
  static int64_t BytesOf(const OutputEvent& event);

  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<OutputEvent> events_;
  std::vector<int32_t> open_delta_;  // by choice: its last delta in events_, or -1
  int64_t bytes_ = 0;
  bool announced_ = false;  // notified since the last Drain
  bool finished_taken_ = false;
  std::atomic<bool> wake_on_drain_{false};

  std::mutex notify_mutex_;  // held while notify_ runs
  std::function<void()> notify_;
  const std::function<void()> drained_;
};

}  // namespace longstride::engine

// The one thread per model replica that plans, executes, samples and emits.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "config/base/clock.h"
#include "config/base/status.h"
#include "model/text/tokenizer.h"
#include "server/engine/executor.h"
#include "server/engine/observer.h"
#include "server/engine/options.h"
#include "server/engine/request.h"

namespace longstride::engine {

// A front end's end of a submitted request. Dropping it cancels the request within one step.
// Thread-safe.
class RequestHandle {
 public:
  virtual ~RequestHandle() = default;
  // Moves the events that are there to the back of `events`; false once kFinished was handed out.
  // Deltas of one choice that were not collected in time arrive merged.
  virtual bool Drain(std::vector<OutputEvent>* events) = 0;
  // Blocks until there is something to Drain (true) or the timeout passes; for command line use and
  // tests.
  virtual bool Wait(absl::Duration timeout) = 0;
  // Ends the request within one step: kCancelled (the client asked), kDeadline, or kError (the
  // server gives it up). Its last event still comes. No effect once it has finished.
  virtual void Cancel(FinishReason reason) = 0;
};

enum class Health { kLoading, kReady, kDraining, kStopped, kFailed };

struct EngineStatus {
  Health health = Health::kLoading;
  std::string reason;            // where kFailed
  int32_t waiting_requests = 0;
  int64_t waiting_prompt_tokens = 0;
  int32_t running_requests = 0;
  double kv_utilization = 0;     // bytes in use by running requests / budget
};

class Engine {
 public:
  virtual ~Engine() = default;

  // Queues a request. `notify` is called from the engine's thread whenever Drain has something new
  // after it had nothing; it must return at once (post to the front end's own executor) and may be
  // called until the handle is destroyed.
  // RESOURCE_EXHAUSTED: the queue is full (by requests or prompt tokens). UNAVAILABLE: draining or
  // failed. INVALID_ARGUMENT: the request can never run here (longer than the context, or than the
  // page budget), both numbers named.
  virtual absl::StatusOr<std::unique_ptr<RequestHandle>> Submit(
      GenerationRequest request, std::function<void()> notify) = 0;

  // The longest prompt + max_tokens of one request that the context and the page budget allow:
  // what a front end takes for "as much as possible".
  virtual int32_t max_request_tokens() const { return std::numeric_limits<int32_t>::max(); }
  virtual EngineStatus Status() const = 0;
  // No new work; running work goes on. Returns at once.
  virtual void BeginDrain() = 0;
  // Waits until nothing runs or waits; false on timeout.
  virtual bool WaitIdle(absl::Duration timeout) = 0;
  // Cancels everything that still runs and joins the thread.
  virtual void Stop() = 0;
};

// Starts the thread. All pointers must outlive the engine.
std::unique_ptr<Engine> StartEngine(const EngineOptions& options, Executor* executor,
                                    const model::Tokenizer* tokenizer, EngineObserver* observer,
                                    const Clock* clock);

}  // namespace longstride::engine

// An engine that does what a test says: hands out scripted events, or produces tokens on a tick.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "server/engine/engine.h"

namespace longstride::testing {

// One submitted request as the test sees it. Thread-safe. Outlives the front end's handle.
class FakeRequest {
 public:
  FakeRequest(engine::GenerationRequest request, std::function<void()> notify)
      : request_(std::move(request)), notify_(std::move(notify)) {}

  const engine::GenerationRequest& request() const { return request_; }
  void Push(std::vector<engine::OutputEvent> events);
  bool cancelled() const { return cancelled_.load(); }  // by Cancel or by a dropped handle
  bool dropped() const { return dropped_.load(); }

 private:
  friend class FakeEngine;
  friend class FakeHandle;
  const engine::GenerationRequest request_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> notify_;
  std::vector<engine::OutputEvent> events_;
  bool finished_ = false;    // kFinished was pushed
  bool handed_out_ = false;  // kFinished was drained
  int32_t generated_ = 0;
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> dropped_{false};
};

class FakeEngine final : public engine::Engine {
 public:
  using Script = std::function<std::vector<engine::OutputEvent>(const engine::GenerationRequest&)>;

  FakeEngine() = default;
  ~FakeEngine() override { Stop(); }

  // Every later request gets these events at once.
  void set_script(Script script);
  // Later submissions are refused with this; OK ends that.
  void set_submit_error(absl::Status status);
  // Gives every live request one letter per tick, from a thread of its own, until max_tokens.
  void StartTicking(absl::Duration interval);

  std::vector<std::shared_ptr<FakeRequest>> requests();
  // The index-th submitted request, waiting for it up to 10 s; null after that.
  std::shared_ptr<FakeRequest> WaitRequest(std::size_t index);
  // Handles that the front end holds.
  int32_t live() const { return live_.load(); }
  // Whether live() falls to `count` within 20 s.
  bool WaitLive(int32_t count);
  int64_t submitted() const { return submitted_.load(); }
  void Forget();  // the list of requests, to keep memory flat

  absl::StatusOr<std::unique_ptr<engine::RequestHandle>> Submit(
      engine::GenerationRequest request, std::function<void()> notify) override;
  engine::EngineStatus Status() const override;
  void BeginDrain() override { draining_.store(true); }
  bool WaitIdle(absl::Duration timeout) override;
  void Stop() override;

 private:
  friend class FakeHandle;
  void Tick();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Script script_;
  absl::Status submit_error_;
  std::vector<std::shared_ptr<FakeRequest>> requests_;
  std::atomic<int32_t> live_{0};
  std::atomic<int64_t> submitted_{0};
  std::atomic<bool> draining_{false};
  std::atomic<bool> stop_{false};
  absl::Duration interval_;
  std::thread ticker_;
};

// Events of an ordinary answer: one delta per word of `words`, then the choice's and the request's
// end. `finish` false leaves the last two out.
std::vector<engine::OutputEvent> Answer(const engine::GenerationRequest& request,
                                        const std::vector<std::string>& words,
                                        engine::FinishReason reason = engine::FinishReason::kStop);
engine::OutputEvent DeltaEvent(std::string text, int32_t token, int32_t choice = 0);
engine::OutputEvent ChoiceEndEvent(engine::FinishReason reason, int32_t choice = 0);
engine::OutputEvent EndEvent(const engine::GenerationRequest& request, int32_t generated,
                             absl::Status status = absl::OkStatus());

}  // namespace longstride::testing

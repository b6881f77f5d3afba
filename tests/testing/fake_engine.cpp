#include "tests/testing/fake_engine.h"

#include <limits>
#include <utility>

namespace longstride::testing {

using engine::FinishReason;
using engine::OutputEvent;

void FakeRequest::Push(std::vector<OutputEvent> events) {
  std::function<void()> notify;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (dropped_.load() || finished_) return;
    const bool had_nothing = events_.empty();
    for (OutputEvent& event : events) {
      finished_ = finished_ || event.kind == OutputEvent::Kind::kFinished;
      events_.push_back(std::move(event));
    }
    if (had_nothing) notify = notify_;
    changed_.notify_all();
  }
  if (notify) notify();
}

class FakeHandle final : public engine::RequestHandle {
 public:
  FakeHandle(FakeEngine* engine, std::shared_ptr<FakeRequest> request)
      : engine_(engine), request_(std::move(request)) {}

  ~FakeHandle() override {
    {
      std::lock_guard<std::mutex> lock(request_->mutex_);
      if (!request_->handed_out_) request_->cancelled_.store(true);
      request_->dropped_.store(true);
      request_->notify_ = nullptr;
    }
    std::lock_guard<std::mutex> lock(engine_->mutex_);
    engine_->live_.fetch_sub(1);
    engine_->changed_.notify_all();
  }

  bool Drain(std::vector<OutputEvent>* events) override {
    std::lock_guard<std::mutex> lock(request_->mutex_);
    if (request_->handed_out_) return false;
    for (OutputEvent& event : request_->events_) events->push_back(std::move(event));
    request_->events_.clear();
    request_->handed_out_ = request_->finished_;
    return true;
  }

  bool Wait(absl::Duration timeout) override {
    std::unique_lock<std::mutex> lock(request_->mutex_);
    return request_->changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout),
                                       [this] { return !request_->events_.empty(); });
  }

  void Cancel(FinishReason reason) override {
    request_->cancelled_.store(true);
    request_->Push({EndEvent(request_->request(), 0, absl::CancelledError("cancelled"))});
  }

 private:
  FakeEngine* const engine_;
  const std::shared_ptr<FakeRequest> request_;
};

void FakeEngine::set_script(Script script) {
  std::lock_guard<std::mutex> lock(mutex_);
  script_ = std::move(script);
}

void FakeEngine::set_submit_error(absl::Status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  submit_error_ = std::move(status);
}

absl::StatusOr<std::unique_ptr<engine::RequestHandle>> FakeEngine::Submit(
    engine::GenerationRequest request, std::function<void()> notify) {
  if (draining_.load()) return absl::UnavailableError("draining");
  std::shared_ptr<FakeRequest> made;
  Script script;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!submit_error_.ok()) return submit_error_;
    made = std::make_shared<FakeRequest>(std::move(request), std::move(notify));
    requests_.push_back(made);
    submitted_.fetch_add(1);
    live_.fetch_add(1);
    script = script_;
    changed_.notify_all();
  }
  auto handle = std::make_unique<FakeHandle>(this, made);
  if (script) made->Push(script(made->request()));
  return std::unique_ptr<engine::RequestHandle>(std::move(handle));
}

engine::EngineStatus FakeEngine::Status() const {
  engine::EngineStatus status;
  status.health = draining_.load() ? engine::Health::kDraining : engine::Health::kReady;
  status.running_requests = live_.load();
  return status;
}

bool FakeEngine::WaitIdle(absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout),
                           [this] { return live_.load() == 0; });
}

bool FakeEngine::WaitLive(int32_t count) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return live_.load() == count; });
}

std::vector<std::shared_ptr<FakeRequest>> FakeEngine::requests() {
  std::lock_guard<std::mutex> lock(mutex_);
  return requests_;
}

void FakeEngine::Forget() {
  std::vector<std::shared_ptr<FakeRequest>> kept;
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& request : requests_) {
    if (!request->dropped()) kept.push_back(std::move(request));
  }
  requests_.swap(kept);
}

std::shared_ptr<FakeRequest> FakeEngine::WaitRequest(std::size_t index) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, std::chrono::seconds(10), [&] { return requests_.size() > index; });
  return requests_.size() > index ? requests_[index] : nullptr;
}

void FakeEngine::StartTicking(absl::Duration interval) {
  interval_ = interval;
  ticker_ = std::thread([this] {
    while (!stop_.load()) {
      std::this_thread::sleep_for(absl::ToChronoNanoseconds(interval_));
      Tick();
    }
  });
}

void FakeEngine::Tick() {
  Forget();
  for (const auto& request : requests()) {
    const engine::GenerationRequest& asked = request->request();
    if (request->dropped() || request->generated_ > asked.max_tokens) continue;
    if (asked.kind != engine::RequestKind::kGenerate) {
      OutputEvent event;
      event.kind = OutputEvent::Kind::kVector;
      event.vector = {3, 4};
      if (asked.kind == engine::RequestKind::kClassify) event.vector = {0.125f, 0.625f, 0.25f};
      request->Push({std::move(event), EndEvent(asked, 0)});
      continue;
    }
    if (request->generated_++ < asked.max_tokens) {
      const int32_t letter = 'a' + request->generated_ % 26;
      request->Push({DeltaEvent(std::string(1, static_cast<char>(letter)), letter)});
    } else {
      request->Push({ChoiceEndEvent(FinishReason::kLength), EndEvent(asked, asked.max_tokens)});
    }
  }
}

void FakeEngine::Stop() {
  draining_.store(true);
  stop_.store(true);
  if (ticker_.joinable()) ticker_.join();
}

OutputEvent DeltaEvent(std::string text, int32_t token, int32_t choice) {
  OutputEvent event;
  event.kind = OutputEvent::Kind::kDelta;
  event.choice = choice;
  engine::TokenOutput output;
  output.token = token;
  output.text = text;
  output.logprob = -0.5f;
  output.top = {{token, -0.5f}, {token == 0 ? 1 : 0, -std::numeric_limits<float>::infinity()}};
  event.tokens.push_back(std::move(output));
  event.text = std::move(text);
  return event;
}

OutputEvent ChoiceEndEvent(FinishReason reason, int32_t choice) {
  OutputEvent event;
  event.kind = OutputEvent::Kind::kChoiceFinished;
  event.choice = choice;
  event.reason = reason;
  return event;
}

OutputEvent EndEvent(const engine::GenerationRequest& request, int32_t generated,
                     absl::Status status) {
  OutputEvent event;
  event.kind = OutputEvent::Kind::kFinished;
  event.status = std::move(status);
  event.usage.prompt_tokens = static_cast<int32_t>(request.prompt.size());
  event.usage.cached_tokens = 1;
  event.usage.generated_tokens = generated;
  event.usage.kv_tokens_total = 1000;
  event.usage.kv_tokens_attended = 250;
  event.usage.kv_bytes_peak = 4096;
  return event;
}

std::vector<OutputEvent> Answer(const engine::GenerationRequest& request,
                                const std::vector<std::string>& words, FinishReason reason) {
  std::vector<OutputEvent> events;
  for (int32_t choice = 0; choice < request.num_choices; ++choice) {
    for (const std::string& word : words) {
      events.push_back(DeltaEvent(word, static_cast<unsigned char>(word[0]), choice));
    }
    events.push_back(ChoiceEndEvent(reason, choice));
  }
  events.push_back(EndEvent(request, static_cast<int32_t>(words.size()) * request.num_choices));
  return events;
}

}  // namespace longstride::testing

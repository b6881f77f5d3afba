#include "server/engine/output_queue.h"

#include <chrono>
#include <iterator>
#include <utility>

namespace longstride::engine {

OutputQueue::OutputQueue(std::function<void()> notify, std::function<void()> drained)
    : notify_(std::move(notify)), drained_(std::move(drained)) {}

int64_t OutputQueue::BytesOf(const OutputEvent& event) {
  auto bytes = static_cast<int64_t>(sizeof(OutputEvent) + event.text.size() +
                                    event.vector.size() * sizeof(float));
  for (const TokenOutput& token : event.tokens) {
    bytes += static_cast<int64_t>(sizeof(TokenOutput) + token.text.size() +
                                  token.top.size() * sizeof(model::TokenLogprob));
  }
  return bytes;
}

int64_t OutputQueue::Push(OutputEvent event) {
  const std::lock_guard lock(mutex_);
  bytes_ += BytesOf(event);
  if (event.kind == OutputEvent::Kind::kDelta) {
    const auto choice = static_cast<size_t>(event.choice);
    if (open_delta_.size() <= choice) open_delta_.resize(choice + 1, -1);
    if (open_delta_[choice] >= 0) {
      OutputEvent& last = events_[static_cast<size_t>(open_delta_[choice])];
      bytes_ -= static_cast<int64_t>(sizeof(OutputEvent));
      last.text += event.text;
      last.tokens.insert(last.tokens.end(), std::make_move_iterator(event.tokens.begin()),
                         std::make_move_iterator(event.tokens.end()));
      return bytes_;
    }
    open_delta_[choice] = static_cast<int32_t>(events_.size());
  } else if (event.kind == OutputEvent::Kind::kProgress && !events_.empty() &&
             events_.back().kind == OutputEvent::Kind::kProgress) {
    bytes_ -= BytesOf(events_.back());
    events_.back() = std::move(event);
    return bytes_;
  }
  events_.push_back(std::move(event));
  return bytes_;
}

void OutputQueue::Notify() {
  {
    const std::lock_guard lock(mutex_);
    if (events_.empty() || announced_) return;
    announced_ = true;
    ready_.notify_all();
  }
  const std::lock_guard lock(notify_mutex_);
  if (notify_) notify_();
}

int64_t OutputQueue::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

bool OutputQueue::Drain(std::vector<OutputEvent>* events) {
  bool more = false;
  {
    const std::lock_guard lock(mutex_);
    for (OutputEvent& event : events_) {
      finished_taken_ = finished_taken_ || event.kind == OutputEvent::Kind::kFinished;
      events->push_back(std::move(event));
    }
    events_.clear();
    open_delta_.clear();
    bytes_ = 0;
    announced_ = false;
    more = !finished_taken_;
  }
  if (wake_on_drain_ && drained_) drained_();
  return more;
}

bool OutputQueue::Wait(absl::Duration timeout) {
  std::unique_lock lock(mutex_);
  const auto there = [this] { return !events_.empty(); };
  if (timeout == absl::InfiniteDuration()) {
    ready_.wait(lock, there);
    return true;
  }
  return ready_.wait_for(lock, absl::ToChronoNanoseconds(timeout), there);
}

void OutputQueue::Detach() {
  const std::lock_guard lock(notify_mutex_);
  notify_ = nullptr;
}

}  // namespace longstride::engine

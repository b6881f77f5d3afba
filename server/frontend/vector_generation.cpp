#include "server/frontend/vector_generation.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <utility>

namespace longstride::frontend {
namespace {

class VectorGeneration final : public Generation {
 public:
  VectorGeneration(GenerationInfo info, std::vector<engine::GenerationRequest> requests,
                  int32_t window, engine::Engine* engine, std::function<void()> notify)
      : info_(std::move(info)),
        requests_(std::move(requests)),
        window_(window),
        engine_(engine),
        notify_(std::move(notify)) {}

  const GenerationInfo& info() const override { return info_; }

  void Cancel() override { cancelled_.store(true); }

  // Submits up to the window. A full queue is an error only while nothing of ours is in it: else
  // the next completion tries again.
  absl::Status Fill() {
    while (next_ < requests_.size() && static_cast<int32_t>(active_.size()) < window_) {
      auto handle = engine_->Submit(requests_[next_], notify_);
      if (!handle.ok()) {
        if (absl::IsResourceExhausted(handle.status()) && !active_.empty()) break;
        return handle.status();
      }
      std::vector<int32_t>().swap(requests_[next_].prompt);
      active_.push_back({static_cast<int32_t>(next_), *std::move(handle)});
      ++next_;
    }
    return absl::OkStatus();
  }

  bool Drain(std::vector<GenerationEvent>* events) override {
    if (finished_) return false;
    absl::Status status;
    for (auto it = active_.begin(); it != active_.end() && status.ok();) {
      std::vector<engine::OutputEvent> scratch;
      it->handle->Drain(&scratch);
      bool done = false;
      for (engine::OutputEvent& event : scratch) {
        if (event.kind == engine::OutputEvent::Kind::kVector) {
          GenerationEvent out;
          out.kind = GenerationEvent::Kind::kVector;
          out.prompt = it->input;
          out.choice = it->input;
          out.vector = std::move(event.vector);
          events->push_back(std::move(out));
        } else if (event.kind == engine::OutputEvent::Kind::kFinished) {
          done = true;
          status = event.status;
          usage_.prompt_tokens += event.usage.prompt_tokens;
          usage_.cached_tokens += event.usage.cached_tokens;
          usage_.kv_tokens_total += event.usage.kv_tokens_total;
          usage_.kv_tokens_attended += event.usage.kv_tokens_attended;
          usage_.kv_bytes_peak = std::max(usage_.kv_bytes_peak, event.usage.kv_bytes_peak);
        }
      }
      it = done ? active_.erase(it) : std::next(it);
    }
    if (status.ok() && cancelled_.load())
      status = absl::CancelledError("the request was cancelled");
    if (status.ok()) status = Fill();
    if (status.ok() && !active_.empty()) return true;
    active_.clear();
    finished_ = true;
    GenerationEvent last;
    last.kind = GenerationEvent::Kind::kFinished;
    last.status = std::move(status);
    last.usage = usage_;
    events->push_back(std::move(last));
    return false;
  }

 private:
  struct Active {
    int32_t input;
    std::unique_ptr<engine::RequestHandle> handle;
  };

  const GenerationInfo info_;
  std::vector<engine::GenerationRequest> requests_;
  const int32_t window_;
  engine::Engine* const engine_;
  const std::function<void()> notify_;
  std::size_t next_ = 0;
  std::deque<Active> active_;
  std::atomic<bool> cancelled_{false};
  bool finished_ = false;
  engine::RequestUsage usage_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Generation>> StartVectors(
    GenerationInfo info, std::vector<engine::GenerationRequest> requests, int32_t window,
    engine::Engine* engine, std::function<void()> notify) {
  auto generation = std::make_unique<VectorGeneration>(std::move(info), std::move(requests), window,
                                                      engine, std::move(notify));
  RETURN_IF_ERROR(generation->Fill());
  return std::unique_ptr<Generation>(std::move(generation));
}

}  // namespace longstride::frontend

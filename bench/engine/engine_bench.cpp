// What the engine's thread does for a token beside the model: CPU time of whole decode steps over an
// executor that answers at once, with readers woken the way the server wakes them.
//
//   build/cpu/bench/engine/engine_bench [seconds a line, default 1]
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "config/base/check.h"
#include "server/engine/announcer.h"
#include "server/engine/engine_core.h"

namespace longstride::engine {
namespace {

constexpr int32_t kVocab = 256;  // so small that sampling is not what is measured
constexpr int32_t kPromptTokens = 100;

int64_t ThreadCpuNanos() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return int64_t{1000000000} * t.tv_sec + t.tv_nsec;
}

// Gemma 3 270M's groups, and the same logits for every row.
class InstantExecutor : public Executor {
 public:
  InstantExecutor() {
    info_.groups = {{.retention = {.window = 512}, .page_bytes = int64_t{64} * 1024 * 15},
                    {.page_bytes = int64_t{64} * 1024 * 3}};
    info_.num_pages = {1 << 20, 1 << 20};
    info_.kv_budget_bytes = int64_t{64} << 30;
    info_.vocab_size = kVocab;
    info_.max_context = 32768;
    info_.max_step_tokens = 4096;
  }
  const ExecutorInfo& info() const override { return info_; }
  double AttendedKeys(int64_t position, model::NumericsClass) const override {
    return static_cast<double>(position + 1);
  }
  absl::Status Forward(const model::ModelInput& input, model::ModelOutput* output) override {
    int64_t rows = 0;
    for (const model::InputRun& run : input.runs) rows += run.num_logits;
    logits_.assign(static_cast<size_t>(rows * kVocab), 0.0f);
    for (int64_t r = 0; r < rows; ++r) logits_[static_cast<size_t>(r * kVocab + 17)] = 1.0f;
    output->logits =
        kernels::TensorView::Matrix(logits_.data(), kernels::DType::kF32, rows, kVocab);
    return absl::OkStatus();
  }
  void Decommit(int32_t, std::span<const int32_t>) override {}
  std::vector<float> Embed(std::span<const float>) override { return {}; }
  std::vector<float> Classify(std::span<const float>) override { return {}; }
  absl::Status CopyPages(std::span<const model::PageCopy>) override { return absl::OkStatus(); }

 private:
  ExecutorInfo info_;
  std::vector<float> logits_;
};

class Times : public EngineObserver {
 public:
  void StepDone(const StepReport& report) override {
    other_ns += report.plan_ns + report.forward_ns;
    plan_ns += report.plan_ns;
    tokens += report.generated_tokens;
  }
  int64_t other_ns = 0, plan_ns = 0, tokens = 0;
};

void Measure(int32_t streams, double seconds) {
  InstantExecutor executor;
  Times times;
  const Clock* clock = Clock::Real();
  EngineOptions options;
  options.max_running_sequences = streams;
  options.max_step_tokens = 4096;
  Announcer announcer;
  EngineCore core(options, &executor, nullptr, &times, clock,
                  [&](auto* queues) { announcer.Announce(queues); });
  std::atomic<int64_t> wakes{0};
  std::vector<std::shared_ptr<OutputQueue>> outputs;
  for (int32_t i = 0; i < streams; ++i) {
    GenerationRequest request;
    request.prompt.assign(kPromptTokens, i % kVocab);
    request.max_tokens = 30000;
    request.ignore_eos = true;
    request.sampling.temperature = 0;
    auto prepared = core.Prepare(std::move(request));
    LS_CHECK(prepared.ok());
    (*prepared)->number = i + 1;
    (*prepared)->output = std::make_shared<OutputQueue>([&wakes] { ++wakes; }, [] {});
    outputs.push_back((*prepared)->output);
    core.Enqueue(*std::move(prepared));
  }
  std::vector<OutputEvent> events;
  const auto drain = [&] {
    for (const auto& output : outputs) output->Drain(&events);
    events.clear();
  };
  for (int i = 0; i < 64; ++i) core.Step(), drain();
  times = {};
  int64_t cpu = 0;
  const absl::Time end = clock->Now() + absl::Seconds(seconds);
  while (clock->Now() < end) {
    // As long as a short step: the announcer sleeps again.
    std::this_thread::sleep_for(std::chrono::microseconds(300));
    const int64_t before = ThreadCpuNanos();
    core.Step();
    cpu += ThreadCpuNanos() - before;
    drain();
  }
  const auto tokens = static_cast<double>(times.tokens);
  std::printf("%4d streams: %6.2f us a token outside plan and forward pass (plan %.2f), %.0f tokens\n",
              streams, static_cast<double>(cpu - times.other_ns) / tokens / 1e3,
              static_cast<double>(times.plan_ns) / tokens / 1e3, tokens);
}

}  // namespace
}  // namespace longstride::engine

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 1.0;
  for (const int32_t streams : {1, 8, 64, 256}) longstride::engine::Measure(streams, seconds);
}

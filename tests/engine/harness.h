// An engine core on a fake executor and a virtual clock, for tests of one behaviour at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "server/engine/engine_core.h"
#include "tests/engine/fake_executor.h"
#include "tests/engine/naive_model.h"

namespace longstride::engine {

// What a client saw of one request, with the virtual time of each event.
struct Seen {
  GenerationRequest request;
  Hash128 root_key;
  std::shared_ptr<OutputQueue> output;
  std::vector<std::string> text;                 // by choice
  std::vector<std::vector<int32_t>> tokens;      // by choice
  std::vector<absl::Time> token_times;           // of all choices
  std::vector<OutputEvent> endings;              // kChoiceFinished
  std::vector<TokenOutput> prompt_scores;
  std::vector<float> vector;
  std::vector<int32_t> progress;
  absl::Time submitted_at;
  absl::Time finished_at = absl::InfiniteFuture();
  bool finished = false;
  bool reads = true;
  absl::Status status;
  RequestUsage usage;
};

struct CountingObserver : EngineObserver {
  std::map<PageFreeCause, int64_t> freed;
  std::vector<FinishReport> finishes;
  int preemptions = 0;
  int invalid_logits = 0;
  int generated_hits = 0;
  int stalls = 0;
  std::vector<StepReport> steps;
  void PagesFreed(int32_t, PageFreeCause cause, int64_t pages) override { freed[cause] += pages; }
  void Finished(const FinishReport& report) override { finishes.push_back(report); }
  void Preempted(int32_t) override { ++preemptions; }
  void InvalidLogits() override { ++invalid_logits; }
  void GeneratedPrefixHit(int32_t tokens) override { generated_hits += tokens; }
  void ClientStalled(double) override { ++stalls; }
  void StepDone(const StepReport& report) override { steps.push_back(report); }
};

class Harness {
 public:
  explicit Harness(const FakeExecutorOptions& executor_options, EngineOptions options = {});
  ~Harness();  // expects a clean shutdown: no page left, no executor error

  RequestNumber Submit(GenerationRequest request);
  absl::Status Refusal(const GenerationRequest& request) {
    return core.Prepare(request).status();
  }
  // One step and one read of all outputs; false where nothing was done.
  bool Step();
  // Until nothing is left (or `steps` have passed: a failure).
  void Run(int steps = 100'000);
  void RunUntilFinished(RequestNumber number, int steps = 100'000);
  Seen& seen(RequestNumber number) { return seen_.at(number); }
  Sequence* sequence(RequestNumber number, int32_t choice = 0) {
    return core.scheduler().Find(number * 256 + choice);
  }
  // Fails the test where the request's text is not the naive model's.
  void ExpectNaive(RequestNumber number);
  int64_t used_pages(int32_t group) {
    return core.scheduler().state().allocator->counts(group).used;
  }

  static std::vector<int32_t> Prompt(int32_t length, uint64_t seed, int32_t vocab = 48);
  static GenerationRequest Request(int32_t prompt_tokens, int32_t max_tokens, uint64_t seed = 1);

  FakeClock clock;
  FakeText text;
  CountingObserver observer;
  FakeExecutor executor;
  EngineOptions options;
  EngineCore core;

 private:
  void Read();
  RequestNumber next_ = 1;
  std::map<RequestNumber, Seen> seen_;
};

}  // namespace longstride::engine

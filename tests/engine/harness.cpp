#include "tests/engine/harness.h"

#include <random>

namespace longstride::engine {
namespace {

EngineOptions Complete(EngineOptions options, const FakeExecutorOptions& executor) {
  options.max_step_tokens = executor.max_step_tokens;
  if (options.cache_key_seed == 0) options.cache_key_seed = 7;
  return options;
}

}  // namespace

Harness::Harness(const FakeExecutorOptions& executor_options, EngineOptions engine_options)
    : executor(executor_options, &clock),
      options(Complete(engine_options, executor_options)),
      core(options, &executor, &text, &observer, &clock) {
  executor.Watch(&core.scheduler(), &core.last_plan());
}

Harness::~Harness() {
  for (const std::string& error : executor.errors()) ADD_FAILURE() << error;
  core.CancelAll(absl::UnavailableError("the test is over"), AbortCause::kShutdown);
  core.scheduler().FlushCache();
  EXPECT_EQ(core.CheckIntegrity(), absl::OkStatus());
  EXPECT_EQ(core.scheduler().state().allocator->used_bytes(), 0);
  EXPECT_EQ(core.scheduler().state().allocator->cached_bytes(), 0);
}

RequestNumber Harness::Submit(GenerationRequest request) {
  auto prepared = core.Prepare(std::move(request));
  EXPECT_EQ(prepared.status(), absl::OkStatus());
  if (!prepared.ok()) return 0;
  PreparedRequest& p = **prepared;
  p.number = next_++;
  p.output = std::make_shared<OutputQueue>([] {}, [] {});
  Seen& seen = seen_[p.number];
  seen.request = p.request;
  seen.root_key = p.root_key;
  seen.output = p.output;
  seen.submitted_at = clock.Now();
  seen.text.resize(static_cast<size_t>(p.request.num_choices));
  seen.tokens.resize(static_cast<size_t>(p.request.num_choices));
  const RequestNumber number = p.number;
  core.Enqueue(*std::move(prepared));
  return number;
}

void Harness::Read() {
  for (auto& [number, seen] : seen_) {
    if (!seen.reads || seen.finished) continue;
    std::vector<OutputEvent> events;
    seen.output->Drain(&events);
    for (OutputEvent& event : events) {
      const auto choice = static_cast<size_t>(event.choice);
      switch (event.kind) {
        case OutputEvent::Kind::kDelta:
          seen.text[choice] += event.text;
          for (const TokenOutput& token : event.tokens) {
            seen.tokens[choice].push_back(token.token);
            seen.token_times.push_back(clock.Now());
          }
          break;
        case OutputEvent::Kind::kChoiceFinished: seen.endings.push_back(event); break;
        case OutputEvent::Kind::kPromptLogprobs: seen.prompt_scores = event.tokens; break;
        case OutputEvent::Kind::kProgress: seen.progress.push_back(event.processed_tokens); break;
        case OutputEvent::Kind::kVector: seen.vector = event.vector; break;
        case OutputEvent::Kind::kFinished:
          EXPECT_FALSE(seen.finished);
          seen.finished = true;
          seen.finished_at = clock.Now();
          seen.status = event.status;
          seen.usage = event.usage;
          break;
      }
    }
  }
}

bool Harness::Step() {
  const bool worked = core.Step();
  Read();
  const absl::Status integrity = core.CheckIntegrity();
  EXPECT_EQ(integrity, absl::OkStatus());
  return worked;
}

void Harness::Run(int steps) {
  for (int i = 0; i < steps && !core.idle(); ++i) {
    if (!Step()) {
      const absl::Time next = core.NextWakeup();
      if (next == absl::InfiniteFuture()) {
        ADD_FAILURE() << "nothing to do, but requests are left";
        return;
      }
      clock.Advance(next - clock.Now());
    }
  }
  EXPECT_TRUE(core.idle()) << "requests are left after " << steps << " steps";
}

void Harness::RunUntilFinished(RequestNumber number, int steps) {
  for (int i = 0; i < steps && !seen(number).finished; ++i) Step();
  EXPECT_TRUE(seen(number).finished);
}

void Harness::ExpectNaive(RequestNumber number) {
  const Seen& s = seen(number);
  EXPECT_EQ(s.status, absl::OkStatus());
  for (int32_t c = 0; c < s.request.num_choices; ++c) {
    const NaiveChoice naive =
        NaiveGenerate(s.request, c, s.root_key, 0, executor.info().vocab_size);
    EXPECT_EQ(s.text[static_cast<size_t>(c)], naive.text) << "choice " << c;
  }
}

std::vector<int32_t> Harness::Prompt(int32_t length, uint64_t seed, int32_t vocab) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(length));
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  return tokens;
}

GenerationRequest Harness::Request(int32_t prompt_tokens, int32_t max_tokens, uint64_t seed) {
  GenerationRequest request;
  request.prompt = Prompt(prompt_tokens, seed);
  request.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  return request;
}

}  // namespace longstride::engine

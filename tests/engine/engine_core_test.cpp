#include "server/engine/engine_core.h"

#include "gmock/gmock.h"
#include "tests/engine/harness.h"

namespace longstride::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

FakeExecutorOptions Small(int64_t pages = 100) {
  FakeExecutorOptions e;
  e.groups = {MakeGroup("full", {}, 1000), MakeGroup("window", {.window = 100}, 1000)};
  e.kv_budget_bytes = pages * 1000;
  e.max_step_tokens = 128;
  return e;
}

TEST(EngineCore, CancelsWithinOneStepInEveryState) {
  EngineOptions options;
  options.max_running_sequences = 2;
  Harness h(Small(), options);
  const auto decoding = h.Submit(Harness::Request(60, 500, 1));
  for (int i = 0; i < 5; ++i) h.Step();
  const auto prefilling = h.Submit(Harness::Request(800, 100, 2));
  h.Step();
  h.Step();
  const auto waiting = h.Submit(Harness::Request(100, 10, 3));
  ASSERT_TRUE(h.sequence(decoding)->is_decoding());
  ASSERT_GT(h.sequence(prefilling)->num_computed, 0);
  ASSERT_FALSE(h.sequence(prefilling)->is_decoding());
  ASSERT_EQ(h.sequence(waiting)->state, SequenceState::kWaiting);
  for (const RequestNumber id : {waiting, prefilling, decoding}) {
    const int64_t used = h.core.scheduler().state().allocator->used_bytes();
    h.core.Cancel({.number = id});
    EXPECT_EQ(h.sequence(id), nullptr);
    if (id != waiting) {
      EXPECT_LT(h.core.scheduler().state().allocator->used_bytes(), used);
    }
    h.Step();
    EXPECT_TRUE(h.seen(id).finished);
    EXPECT_EQ(h.seen(id).status.code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(h.seen(id).endings.size(), 1u);
  }
  EXPECT_TRUE(h.core.idle());
  EXPECT_EQ(h.core.scheduler().state().allocator->used_bytes(), 0);
  EXPECT_EQ(h.observer.finishes.size(), 3u);
  EXPECT_EQ(h.observer.finishes[0].ttft_seconds, -1);
}

TEST(EngineCore, CancellingTwiceOrTooLateDoesNothing) {
  Harness h(Small());
  const auto id = h.Submit(Harness::Request(60, 3, 1));
  h.Run();
  h.core.Cancel({.number = id});
  h.core.Cancel({.number = 4711});
  h.Step();
  EXPECT_EQ(h.seen(id).status, absl::OkStatus());
}

TEST(EngineCore, EndsRequestsAtTheirDeadline) {
  EngineOptions options;
  options.max_running_sequences = 1;
  Harness h(Small(), options);
  GenerationRequest running = Harness::Request(60, 500, 1), waiting = Harness::Request(60, 500, 2);
  running.deadline = h.clock.Now() + absl::Milliseconds(100);
  waiting.deadline = h.clock.Now() + absl::Milliseconds(50);
  const auto a = h.Submit(running), b = h.Submit(waiting);
  h.Run();
  for (const RequestNumber id : {a, b}) {
    EXPECT_EQ(h.seen(id).status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_EQ(h.seen(id).endings[0].reason, FinishReason::kDeadline);
    EXPECT_LE(h.seen(id).finished_at, *h.seen(id).request.deadline + absl::Milliseconds(20));
  }
  EXPECT_FALSE(h.seen(a).tokens[0].empty());
  EXPECT_TRUE(h.seen(b).tokens[0].empty());
}

TEST(EngineCore, AFailedStepEndsItsRequestsOnly) {
  EngineOptions options;
  options.max_running_sequences = 1;
  Harness h(Small(), options);
  const auto failing = h.Submit(Harness::Request(60, 100, 1));
  const auto waiting = h.Submit(Harness::Request(60, 10, 2));
  for (int i = 0; i < 5; ++i) h.Step();
  h.executor.FailNext();
  h.Run();
  EXPECT_EQ(h.seen(failing).status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(ToStd(h.seen(failing).status.message())), HasSubstr("e-1"));
  EXPECT_THAT(std::string(ToStd(h.seen(failing).status.message())), testing::Not(HasSubstr("injected")));
  EXPECT_EQ(h.seen(failing).endings[0].reason, FinishReason::kError);
  h.ExpectNaive(waiting);
  EXPECT_EQ(h.core.failure(), absl::OkStatus());
}

TEST(EngineCore, ABrokenDeviceEndsEverything) {
  Harness h(Small());
  const auto a = h.Submit(Harness::Request(60, 100, 1));
  for (int i = 0; i < 3; ++i) h.Step();
  GenerationRequest later = Harness::Request(60, 100, 2);
  h.executor.Break();
  h.Step();
  EXPECT_EQ(h.seen(a).status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(h.core.failure().code(), absl::StatusCode::kUnavailable);
  const auto b = h.Submit(later);
  h.Step();
  EXPECT_EQ(h.seen(b).status.code(), absl::StatusCode::kUnavailable);
}

TEST(EngineCore, InvalidLogitsEndOneRequest) {
  Harness h(Small());
  const auto bad = h.Submit(Harness::Request(60, 50, 1));
  const auto good = h.Submit(Harness::Request(60, 50, 2));
  for (int i = 0; i < 5; ++i) h.Step();
  h.executor.InvalidateNextLogits();
  h.Run();
  EXPECT_EQ(h.seen(bad).status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(h.observer.invalid_logits, 1);
  h.ExpectNaive(good);
}

// Every single allocation of a scenario fails once: the text stays the same and nothing leaks.
TEST(EngineCore, SurvivesAFailureOfEveryAllocation) {
  int64_t allocations = 0;
  for (int64_t n = 0;; ++n) {
    SCOPED_TRACE(n);
    EngineOptions options;
    options.reserve_tokens = 16;
    Harness h(Small(24), options);
    h.core.scheduler().allocator().FailAllocationAfter(n);
    std::vector<RequestNumber> ids;
    for (uint64_t i = 0; i < 4; ++i) ids.push_back(h.Submit(Harness::Request(150, 200, 1 + i % 2)));
    h.Run();
    for (const RequestNumber id : ids) h.ExpectNaive(id);
    if (testing::Test::HasFailure()) break;
    // The counter is used up where all allocations passed.
    if (h.core.scheduler().allocator().FailurePending()) {
      allocations = n;
      break;
    }
  }
  EXPECT_GT(allocations, 40);
}

TEST(EngineCore, HoldsASlowReaderAndNobodyElse) {
  EngineOptions options;
  options.max_output_queue_bytes = 4000;
  options.slow_client_timeout = absl::Seconds(5);
  Harness h(Small(), options);
  const auto slow = h.Submit(Harness::Request(60, 400, 1));
  const auto fast = h.Submit(Harness::Request(60, 400, 2));
  h.seen(slow).reads = false;
  h.RunUntilFinished(fast);
  h.ExpectNaive(fast);
  ASSERT_NE(h.sequence(slow), nullptr);
  EXPECT_TRUE(h.sequence(slow)->stalled);
  EXPECT_LT(h.sequence(slow)->num_generated(), 200);
  EXPECT_LE(h.seen(slow).output->bytes(), 4000 + 1000);
  // It reads again and misses nothing.
  h.seen(slow).reads = true;
  h.Run();
  h.ExpectNaive(slow);
  EXPECT_GE(h.observer.stalls, 1);
}

TEST(EngineCore, EndsAReaderThatStaysAway) {
  EngineOptions options;
  options.max_output_queue_bytes = 4000;
  options.slow_client_timeout = absl::Seconds(5);
  Harness h(Small(), options);
  const auto slow = h.Submit(Harness::Request(60, 400, 1));
  h.seen(slow).reads = false;
  const absl::Time start = h.clock.Now();
  h.Run();
  h.seen(slow).reads = true;
  h.Step();
  EXPECT_EQ(h.seen(slow).status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(h.observer.finishes[0].abort, AbortCause::kSlowClient);
  EXPECT_GE(h.clock.Now() - start, absl::Seconds(5));
  EXPECT_LE(h.clock.Now() - start, absl::Seconds(7));
}

TEST(EngineCore, ScoresAPromptWithoutGenerating) {
  Harness h(Small());
  GenerationRequest r = Harness::Request(200, 0, 1);
  r.num_prompt_logprobs = 2;
  h.Submit(Harness::Request(200, 5, 1));  // the prefix is there, and must not be used
  h.Run();
  const auto id = h.Submit(r);
  h.Run();
  const Seen& s = h.seen(id);
  ASSERT_EQ(s.prompt_scores.size(), 200u);
  EXPECT_TRUE(s.prompt_scores[0].top.empty());
  for (size_t i = 1; i < 200; ++i) {
    EXPECT_EQ(s.prompt_scores[i].token, r.prompt[i]);
    EXPECT_EQ(s.prompt_scores[i].top.size(), 2u);
    EXPECT_LT(s.prompt_scores[i].logprob, 0);
  }
  EXPECT_EQ(s.usage.generated_tokens, 0);
  EXPECT_EQ(s.endings[0].reason, FinishReason::kLength);
}

TEST(EngineCore, EmbeddingsDoNotDependOnChunks) {
  std::vector<float> expected;
  for (const int32_t chunk : {64, 128, 512}) {
    FakeExecutorOptions e = Small();
    e.max_step_tokens = chunk;
    Harness h(e);
    GenerationRequest r = Harness::Request(500, 0, 1);
    r.kind = RequestKind::kEmbed;
    const auto id = h.Submit(r);
    h.Submit(Harness::Request(100, 20, 2));
    h.Run();
    const Seen& s = h.seen(id);
    ASSERT_EQ(s.vector, NaiveEmbedding(r, s.root_key, 0, 4));
    if (expected.empty()) expected = s.vector;
    EXPECT_EQ(s.vector, expected);
  }
}

FakeExecutorOptions SmallEncoder() {
  FakeExecutorOptions e = Small();
  e.groups = {{.name = "full", .layers = {0}, .num_kv_heads = 1, .head_dim = 8, .page_bytes = 1000}};
  e.kv_budget_bytes = 64'000;
  e.max_context = 512;
  e.max_step_tokens = 512;
  e.chunk_alignment = 512;
  e.causal = false;
  e.num_labels = 5;
  return e;
}

TEST(EngineCore, EncodersTakeWholeTextsAndManyInOneStep) {
  Harness h(SmallEncoder());
  std::vector<RequestNumber> ids;
  int64_t tokens = 0;
  for (uint64_t i = 0; i < 40; ++i) {
    const auto length = static_cast<int32_t>(1 + i * 13 % 512);
    GenerationRequest r = Harness::Request(length, 0, i);
    r.kind = i % 2 == 0 ? RequestKind::kEmbed : RequestKind::kClassify;
    tokens += length;
    ids.push_back(h.Submit(r));
  }
  int64_t most_runs = 0;
  while (!h.core.idle()) {
    ASSERT_TRUE(h.Step());
    const StepPlan& plan = h.core.last_plan();
    most_runs = std::max(most_runs, std::ssize(plan.runs));
    int64_t in_step = 0;
    for (const PlannedRun& run : plan.runs) {
      EXPECT_EQ(run.first_position, 0);
      EXPECT_EQ(run.num_logits, 0);
      in_step += run.num_tokens;
    }
    EXPECT_LE(in_step, 512);
  }
  EXPECT_GT(most_runs, 3);
  int64_t computed = 0;
  for (const StepReport& step : h.observer.steps) computed += step.prefill_tokens;
  EXPECT_EQ(computed, tokens);
  for (size_t i = 0; i < ids.size(); ++i) {
    const Seen& s = h.seen(ids[i]);
    EXPECT_TRUE(s.status.ok()) << s.status;
    EXPECT_EQ(s.usage.cached_tokens, 0);
    const int64_t length = std::ssize(s.request.prompt);
    EXPECT_EQ(s.usage.kv_tokens_total, length * length);
    std::vector<float> expected = NaiveEmbedding(s.request, s.root_key, 0, 4);
    if (i % 2 == 1) expected.insert(expected.begin(), -1.0f);
    EXPECT_EQ(s.vector, expected);
  }
  EXPECT_EQ(h.used_pages(0), 0);
}

TEST(EngineCore, PoolsAsTheModelSays) {
  FakeExecutorOptions e = SmallEncoder();
  for (const model::Pooling pooling :
       {model::Pooling::kMean, model::Pooling::kFirst, model::Pooling::kLast}) {
    e.classify_pooling = pooling;
    Harness h(e);
    GenerationRequest r = Harness::Request(100, 0, 1);
    r.kind = RequestKind::kClassify;
    const auto id = h.Submit(r);
    h.Run();
    const Seen& s = h.seen(id);
    uint64_t chain = FakeExecutor::ChainStart(s.root_key, 0);
    const size_t count = pooling == model::Pooling::kFirst ? 1 : r.prompt.size();
    for (size_t i = 0; i < count; ++i) chain = FakeExecutor::Chain(chain, r.prompt[i]);
    std::vector<float> expected = {-1.0f};
    for (int32_t d = 0; d < 4; ++d) expected.push_back(FakeExecutor::Hidden(chain, d));
    if (pooling == model::Pooling::kMean) {
      expected = NaiveEmbedding(r, s.root_key, 0, 4);
      expected.insert(expected.begin(), -1.0f);
    }
    EXPECT_EQ(s.vector, expected);
  }
}

TEST(EngineCore, RefusesTasksThatTheModelDoesNotDo) {
  Harness encoder(SmallEncoder());
  EXPECT_THAT(encoder.Refusal(Harness::Request(10, 5, 1)).ToString(), HasSubstr("generates no text"));
  Harness decoder(Small());
  GenerationRequest r = Harness::Request(10, 0, 1);
  r.kind = RequestKind::kClassify;
  EXPECT_THAT(decoder.Refusal(r).ToString(), HasSubstr("no classifier"));
}

TEST(EngineCore, ReportsProgressOfLongPrompts) {
  Harness h(Small());
  GenerationRequest r = Harness::Request(600, 2, 1);
  r.progress_interval_tokens = 200;
  const auto id = h.Submit(r);
  h.Run();
  EXPECT_EQ(h.seen(id).progress, (std::vector<int32_t>{256, 512, 600}));
}

TEST(EngineCore, CountsWhatARequestUsed) {
  Harness h(Small());
  const auto id = h.Submit(Harness::Request(200, 10, 1));
  h.Run();
  const RequestUsage& u = h.seen(id).usage;
  EXPECT_EQ(u.prompt_tokens, 200);
  EXPECT_EQ(u.generated_tokens, 10);
  // 209 positions were computed: the last token never is.
  EXPECT_EQ(u.kv_tokens_total, 209 * 210 / 2);
  double attended = 0;
  for (int64_t p = 0; p < 209; ++p) {
    attended += h.executor.AttendedKeys(p, model::NumericsClass::kPrompt);
  }
  EXPECT_EQ(u.kv_tokens_attended, static_cast<int64_t>(attended + 0.5));
  EXPECT_LT(u.kv_tokens_attended, u.kv_tokens_total);
  EXPECT_EQ(u.kv_bytes_peak, 4000 + 4000);
  EXPECT_GT(u.prefill_seconds, 0);
  EXPECT_GT(u.decode_seconds, 0);
  EXPECT_EQ(u.queue_seconds, 0);
  ASSERT_EQ(h.observer.finishes.size(), 1u);
  EXPECT_GT(h.observer.finishes[0].ttft_seconds, 0);
}

TEST(EngineCore, RefusesBrokenRequests) {
  Harness h(Small());
  const auto refused = [&](auto change, const char* part) {
    GenerationRequest r = Harness::Request(10, 10, 1);
    change(r);
    const absl::Status status = h.Refusal(r);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << part;
    EXPECT_THAT(std::string(ToStd(status.message())), HasSubstr(part));
  };
  using R = GenerationRequest;
  refused([](R& r) { r.prompt.clear(); }, "no tokens");
  refused([](R& r) { r.prompt[3] = 48; }, "48");
  refused([](R& r) { r.prompt[3] = -1; }, "-1");
  refused([](R& r) { r.num_choices = 0; }, "n is 0");
  refused([](R& r) { r.num_choices = 9; }, "n is 9");
  refused([](R& r) { r.max_tokens = -1; }, "max_tokens");
  refused([](R& r) { r.min_tokens = 11; }, "min_tokens");
  refused([](R& r) { r.sampling.temperature = std::nanf(""); }, "finite");
  refused([](R& r) { r.sampling.top_k = -1; }, "top_k");
  refused([](R& r) { r.kind = RequestKind::kEmbed; }, "embedding");
}

TEST(EngineCore, GivesEveryChoiceAnEnding) {
  Harness h(Small());
  GenerationRequest r = Harness::Request(100, 100, 1);
  r.num_choices = 3;
  r.sampling.temperature = 1;
  r.sampling.seed = 3;
  const auto id = h.Submit(r);
  for (int i = 0; i < 6; ++i) h.Step();
  h.core.Cancel({.number = id});
  h.Step();
  EXPECT_EQ(h.seen(id).endings.size(), 3u);
  const auto unborn = h.Submit(r);
  h.core.Cancel({.number = unborn});
  h.Step();
  EXPECT_EQ(h.seen(unborn).endings.size(), 3u);
}

}  // namespace
}  // namespace longstride::engine

// Scheduling seen from outside, on a virtual clock: who waits how long, and who holds how much.
#include <algorithm>

#include "gmock/gmock.h"
#include "tests/engine/harness.h"

namespace longstride::engine {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

// Like Gemma 3 270M: a few full layers, most of them with a window of 512.
FakeExecutorOptions GemmaLike() {
  FakeExecutorOptions e;
  e.groups = {MakeGroup("full", {}, 3 * 65536), MakeGroup("window512", {.window = 512}, 15 * 65536)};
  e.kv_budget_bytes = kGiB;
  e.max_context = 32768;
  e.max_step_tokens = 512;
  e.seconds_per_step = 8e-3;
  e.seconds_per_token = 4e-4;
  e.seconds_per_key = 6e-8;
  return e;
}

FakeExecutorOptions Small(int64_t pages, std::vector<model::Retention> retentions = {{}}) {
  FakeExecutorOptions e;
  for (size_t i = 0; i < retentions.size(); ++i) {
    e.groups.push_back(MakeGroup(StrCat("g", i), retentions[i], 1000));
  }
  e.kv_budget_bytes = pages * 1000;
  e.max_context = 100'000;
  e.max_step_tokens = 128;
  return e;
}

std::vector<double> Gaps(const Seen& seen, absl::Time from) {
  std::vector<double> gaps;
  for (size_t i = 1; i < seen.token_times.size(); ++i) {
    if (seen.token_times[i] < from) continue;
    gaps.push_back(absl::ToDoubleSeconds(seen.token_times[i] - seen.token_times[i - 1]));
  }
  std::sort(gaps.begin(), gaps.end());
  return gaps;
}

TEST(Scheduler, KeepsTheInterTokenBoundWhileALongPromptPrefills) {
  // A prompt of 30K takes 1.5 times longer per chunk at its end than at its beginning.
  double alone = 0;
  {
    Harness h(GemmaLike());
    const auto id = h.Submit(Harness::Request(30'000, 1));
    h.Run();
    alone = absl::ToDoubleSeconds(h.seen(id).finished_at - h.seen(id).submitted_at);
  }
  EngineOptions options;
  options.inter_token_bound = absl::Milliseconds(150);
  options.prefix_cache = false;
  Harness h(GemmaLike(), options);
  std::vector<RequestNumber> streams;
  for (uint64_t i = 0; i < 4; ++i) streams.push_back(h.Submit(Harness::Request(200, 2000, 10 + i)));
  for (int i = 0; i < 50; ++i) h.Step();
  const auto long_one = h.Submit(Harness::Request(30'000, 1));
  const absl::Time start = h.clock.Now();
  h.RunUntilFinished(long_one);
  for (const RequestNumber id : streams) {
    const std::vector<double> gaps = Gaps(h.seen(id), start);
    ASSERT_GT(gaps.size(), 20u);
    EXPECT_LE(gaps[gaps.size() * 99 / 100], 0.150 * 1.25);
    // And it is used: the long prompt is not starved to keep it.
    EXPECT_GE(gaps[gaps.size() / 2], 0.150 * 0.6);
  }
  const double together = absl::ToDoubleSeconds(h.seen(long_one).finished_at - start);
  EXPECT_LE(together, alone * 1.25);
}

TEST(Scheduler, UsesWholeStepsWhereNothingDecodes) {
  Harness h(GemmaLike());
  h.Submit(Harness::Request(8192, 1));
  h.Run();
  EXPECT_EQ(h.executor.steps(), 8192 / 512);
}

TEST(Scheduler, ALongPromptDoesNotStopAShortOne) {
  Harness h(GemmaLike());
  const auto long_one = h.Submit(Harness::Request(30'000, 4));
  for (int i = 0; i < 5; ++i) h.Step();
  const auto short_one = h.Submit(Harness::Request(300, 4, 2));
  h.RunUntilFinished(short_one);
  EXPECT_FALSE(h.seen(long_one).finished);
  // One step that was running, one turn of the long one, its own, and three decodes.
  EXPECT_LE(h.seen(short_one).finished_at - h.seen(short_one).submitted_at, absl::Seconds(2));
  h.Run();
}

TEST(Scheduler, ShortPromptsDoNotStarveALongOne) {
  Harness h(GemmaLike());
  const auto long_one = h.Submit(Harness::Request(8192, 1));
  uint64_t next = 2;
  int steps = 0;
  while (!h.seen(long_one).finished && steps++ < 2000) {
    // There is always a short prompt waiting.
    if (h.core.num_waiting() < 4) h.Submit(Harness::Request(400, 1, next++));
    h.Step();
  }
  // Every fourth step belongs to the oldest.
  EXPECT_LE(steps, 16 * 4 + 8);
  h.Run();
}

TEST(Scheduler, ServesClientsInTurn) {
  EngineOptions options;
  options.max_running_sequences = 2;
  options.prefix_cache = false;
  Harness h(Small(1000), options);
  std::vector<RequestNumber> flood, few;
  for (uint64_t i = 0; i < 40; ++i) {
    GenerationRequest r = Harness::Request(100, 20, 100 + i);
    r.client = "flood";
    flood.push_back(h.Submit(r));
  }
  for (int i = 0; i < 40; ++i) h.Step();
  for (uint64_t i = 0; i < 5; ++i) {
    GenerationRequest r = Harness::Request(100, 20, 200 + i);
    r.client = "few";
    few.push_back(h.Submit(r));
  }
  const auto finished_of = [&](const std::vector<RequestNumber>& ids) {
    return std::count_if(ids.begin(), ids.end(), [&](RequestNumber id) { return h.seen(id).finished; });
  };
  const auto before = finished_of(flood);
  h.RunUntilFinished(few.back());
  // While the five were served, the other client got about as much, not everything before them.
  EXPECT_LE(finished_of(flood) - before, 9);
  EXPECT_GE(finished_of(flood) - before, 2);
  h.Run();
}

TEST(Scheduler, WeighsFairnessByAttendedKeys) {
  EngineOptions options;
  options.max_running_sequences = 1;
  options.prefix_cache = false;
  Harness h(GemmaLike(), options);
  std::vector<RequestNumber> longs, shorts;
  for (uint64_t i = 0; i < 6; ++i) {
    GenerationRequest r = Harness::Request(20'000, 1, 10 + i);
    r.client = "long";
    longs.push_back(h.Submit(r));
  }
  for (uint64_t i = 0; i < 40; ++i) {
    GenerationRequest r = Harness::Request(500, 1, 100 + i);
    r.client = "short";
    shorts.push_back(h.Submit(r));
  }
  h.RunUntilFinished(longs[1]);
  // One long prompt is worth 40 short ones in tokens, and more in keys.
  for (const RequestNumber id : shorts) EXPECT_TRUE(h.seen(id).finished);
  h.Run();
}

TEST(Scheduler, AdmitsLowerPrioritiesFirst) {
  EngineOptions options;
  options.max_running_sequences = 1;
  Harness h(Small(1000), options);
  const auto running = h.Submit(Harness::Request(50, 30, 1));
  h.Step();
  GenerationRequest low = Harness::Request(50, 5, 2), high = Harness::Request(50, 5, 3);
  low.priority = 1;
  high.priority = -1;
  const auto low_id = h.Submit(low), high_id = h.Submit(high);
  h.Run();
  EXPECT_LT(h.seen(running).finished_at, h.seen(high_id).finished_at);
  EXPECT_LT(h.seen(high_id).finished_at, h.seen(low_id).finished_at);
}

TEST(Scheduler, WaitingIsWorthPriority) {
  EngineOptions options;
  options.max_running_sequences = 1;
  options.priority_ageing = absl::Milliseconds(200);
  Harness h(Small(1000), options);
  GenerationRequest low = Harness::Request(50, 5, 2);
  low.priority = 3;
  h.Submit(Harness::Request(50, 30, 1));
  h.Step();
  const auto low_id = h.Submit(low);
  int steps = 0;
  for (uint64_t i = 10; !h.seen(low_id).finished && steps < 5000; ++steps) {
    if (h.core.num_waiting() < 3) h.Submit(Harness::Request(50, 5, i++));
    h.Step();
  }
  EXPECT_LT(steps, 5000);  // though there was always one of priority 0
  h.Run();
}

TEST(Scheduler, ReservesSoThatNobodyIsPreempted) {
  EngineOptions options;
  options.reserve_tokens = 400;
  Harness h(Small(30, {{}, {.window = 100}}), options);
  std::vector<RequestNumber> ids;
  for (uint64_t i = 0; i < 12; ++i) ids.push_back(h.Submit(Harness::Request(150, 400, 1 + i)));
  h.Run();
  EXPECT_EQ(h.observer.preemptions, 0);
  for (const RequestNumber id : ids) h.ExpectNaive(id);
}

TEST(Scheduler, PreemptsAndResumesExactly) {
  EngineOptions options;
  options.reserve_tokens = 16;
  Harness h(Small(30, {{}, {.window = 100}}), options);
  std::vector<RequestNumber> ids;
  for (uint64_t i = 0; i < 6; ++i) ids.push_back(h.Submit(Harness::Request(150, 400, 1 + i)));
  h.Run();
  EXPECT_GT(h.observer.preemptions, 0);
  EXPECT_EQ(h.seen(ids[0]).usage.preemptions, 0);  // the oldest is never preempted
  for (const RequestNumber id : ids) {
    h.ExpectNaive(id);
    EXPECT_LE(h.seen(id).usage.preemptions, 4);
  }
}

TEST(Scheduler, PreemptsTheLowestPriorityThenTheCheapest) {
  EngineOptions options;
  options.reserve_tokens = 0;
  options.prefix_cache = false;
  Harness h(Small(20), options);
  // 4 + 7 + 2 + 4 pages; growth decides.
  const auto first = h.Submit(Harness::Request(250, 600, 1));
  const auto large = h.Submit(Harness::Request(440, 300, 2));
  const auto small = h.Submit(Harness::Request(120, 300, 3));
  GenerationRequest low = Harness::Request(250, 300, 4);
  low.priority = 1;
  const auto unimportant = h.Submit(low);
  std::vector<RequestNumber> order;
  for (int i = 0; i < 3000 && order.size() < 2; ++i) {
    h.Step();
    for (const SequenceId id : h.core.last_plan().preempt) order.push_back(id / 256);
  }
  ASSERT_EQ(order.size(), 2u);
  EXPECT_EQ(order[0], unimportant);
  EXPECT_EQ(order[1], small);
  h.Run();
  for (const RequestNumber id : {first, large, small, unimportant}) h.ExpectNaive(id);
}

TEST(Scheduler, AResumedRequestHasRoomForAllItHasAndTheReserve) {
  EngineOptions options;
  options.reserve_tokens = 64;
  options.prefix_cache = false;
  Harness h(Small(24), options);
  for (uint64_t i = 0; i < 5; ++i) h.Submit(Harness::Request(200, 500, 1 + i));
  std::map<SequenceId, int32_t> tokens_at_resume;
  int resumes = 0;
  while (!h.core.idle()) {
    h.Step();
    for (const Admission& admission : h.core.last_plan().admit) {
      const Sequence* s = h.core.scheduler().Find(admission.id);
      if (s == nullptr || s->preemptions == 0) continue;
      ++resumes;
      tokens_at_resume[admission.id] = s->num_tokens();
    }
    for (const SequenceId id : h.core.last_plan().preempt) {
      const Sequence* s = h.core.scheduler().Find(id);
      if (s == nullptr || !tokens_at_resume.contains(id)) continue;
      // No thrash: it got on by about the reserve before it was preempted again.
      EXPECT_GE(s->num_tokens() - tokens_at_resume[id], 64 - kernels::kPageTokens);
    }
  }
  EXPECT_GT(resumes, 0);
}

TEST(Scheduler, RefusesWhatCanNeverRunWithBothNumbers) {
  FakeExecutorOptions e = Small(10);
  e.max_context = 2000;
  Harness h(e);
  const absl::Status context = h.Refusal(Harness::Request(1500, 600));
  EXPECT_EQ(context.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ToStd(context.message())), HasSubstr("2100"));
  EXPECT_THAT(std::string(ToStd(context.message())), HasSubstr("2000"));
  const absl::Status pool = h.Refusal(Harness::Request(700, 100));
  EXPECT_EQ(pool.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ToStd(pool.message())), HasSubstr("13000"));
  EXPECT_THAT(std::string(ToStd(pool.message())), HasSubstr("10000"));
  EXPECT_EQ(h.core.max_request_tokens(), 640);
  const auto id = h.Submit(Harness::Request(540, 100));
  h.Run();
  h.ExpectNaive(id);
}

TEST(Scheduler, CountsChoicesBeforeItRefuses) {
  Harness h(Small(10));
  GenerationRequest r = Harness::Request(130, 150, 1);
  r.num_choices = 4;
  EXPECT_EQ(h.Refusal(r).code(), absl::StatusCode::kInvalidArgument);
  r.num_choices = 2;
  EXPECT_EQ(h.Refusal(r), absl::OkStatus());
}

TEST(Scheduler, WindowedGroupsHoldTheWindowAndOneChunk) {
  Harness h(GemmaLike());
  h.Submit(Harness::Request(30'000, 200));
  int64_t most_prefill = 0, most_decode = 0;
  while (!h.core.idle()) {
    h.Step();
    const bool decoding = !h.core.last_plan().runs.empty() && h.core.last_plan().runs[0].decode;
    int64_t& most = decoding ? most_decode : most_prefill;
    for (const StepReport& report : h.observer.steps) most = std::max(most, report.groups[1].used);
    h.observer.steps.clear();
  }
  EXPECT_LE(most_prefill * 64, 512 + 512);
  EXPECT_LE(most_decode * 64, 512 + 64);
  EXPECT_GT(h.observer.freed[PageFreeCause::kWindow], 0);
}

TEST(Scheduler, ReusesALongSharedPrefixOfAWindowedModel) {
  Harness h(GemmaLike());
  GenerationRequest first = Harness::Request(25'000, 4, 1);
  GenerationRequest second = first;
  for (size_t i = 20'000; i < second.prompt.size(); ++i) second.prompt[i] = 3;
  h.Submit(first);
  h.Run();
  const StepReport& last = h.observer.steps.back();
  EXPECT_GT(last.groups[1].snapshot, 0);
  EXPECT_EQ(last.groups[1].snapshot, last.groups[1].cached);
  const auto id = h.Submit(second);
  h.Run();
  EXPECT_GE(h.seen(id).usage.cached_tokens, 18'000);
  EXPECT_LE(h.seen(id).usage.cached_tokens, 20'000);
  h.ExpectNaive(id);
}

TEST(Scheduler, TheSamePromptAgainComputesOneTokenToOnePage) {
  for (const int32_t length : {1, 63, 64, 65, 128, 700}) {
    Harness h(Small(100, {{}, {.window = 100}}));
    h.Submit(Harness::Request(length, 3, 1));
    h.Run();
    const auto id = h.Submit(Harness::Request(length, 3, 1));
    h.Run();
    EXPECT_EQ(h.seen(id).usage.cached_tokens, (length - 1) / 64 * 64);
    h.ExpectNaive(id);
  }
}

TEST(Scheduler, AConversationsNextTurnFindsTheAnswer) {
  for (const bool share : {true, false}) {
    EngineOptions options;
    options.share_generated_pages = share;
    Harness h(Small(100, {{}, {.window = 100}}), options);
    const auto first = h.Submit(Harness::Request(200, 300, 1));
    h.Run();
    GenerationRequest next = Harness::Request(200, 10, 1);
    next.prompt.insert(next.prompt.end(), h.seen(first).tokens[0].begin(),
                       h.seen(first).tokens[0].end());
    next.prompt.insert(next.prompt.end(), 30, 5);
    const auto second = h.Submit(next);
    h.Run();
    h.ExpectNaive(second);
    if (share) {
      // All that was computed, in whole pages: the last token sampled never was.
      EXPECT_EQ(h.seen(second).usage.cached_tokens, 499 / 64 * 64);
      EXPECT_GT(h.observer.generated_hits, 0);
    } else {
      EXPECT_EQ(h.seen(second).usage.cached_tokens, 192);
      EXPECT_EQ(h.observer.generated_hits, 0);
    }
  }
}

TEST(Scheduler, DoesNotSharePrefixesBetweenSalts) {
  Harness h(Small(100));
  GenerationRequest r = Harness::Request(300, 3, 1);
  r.cache_salt = "a";
  h.Submit(r);
  h.Run();
  r.cache_salt = "b";
  const auto other = h.Submit(r);
  h.Run();
  r.cache_salt = "a";
  const auto same = h.Submit(r);
  h.Run();
  EXPECT_EQ(h.seen(other).usage.cached_tokens, 0);
  EXPECT_EQ(h.seen(same).usage.cached_tokens, 256);
}

TEST(Scheduler, FixesTheRopeVariantByTheWholeLength) {
  FakeExecutorOptions e = Small(100);
  e.variant_lengths = {400};
  Harness h(e);
  h.Submit(Harness::Request(300, 3, 1));
  h.Run();
  const auto longer = h.Submit(Harness::Request(300, 200, 1));
  EXPECT_EQ(h.sequence(longer)->rope_variant, 1);
  h.Run();
  EXPECT_EQ(h.seen(longer).usage.cached_tokens, 0);  // other keys
}

TEST(Scheduler, FixesTheRopeVariantByThePromptWhereThatAloneCounts) {
  FakeExecutorOptions e = Small(100);
  e.variant_lengths = {250, 400};
  e.variants_by_prompt = true;
  Harness h(e);
  const auto shorter = h.Submit(Harness::Request(250, 200, 1));
  EXPECT_EQ(h.sequence(shorter)->rope_variant, 0);
  const auto longer = h.Submit(Harness::Request(300, 200, 1));
  EXPECT_EQ(h.sequence(longer)->rope_variant, 1);
  h.Run();
}

TEST(Scheduler, ChoicesShareThePromptsPages) {
  Harness h(Small(100));
  GenerationRequest r = Harness::Request(64 * 10 + 20, 40, 1);
  r.num_choices = 4;
  r.sampling.temperature = 1;
  r.sampling.seed = 9;
  const auto id = h.Submit(r);
  while (h.sequence(id, 3) == nullptr) h.Step();
  h.Step();
  EXPECT_EQ(h.used_pages(0), 10 + 4);
  h.Run();
  h.ExpectNaive(id);
  EXPECT_NE(h.seen(id).text[0], h.seen(id).text[1]);
  EXPECT_EQ(h.seen(id).usage.generated_tokens, 160);
  EXPECT_EQ(h.seen(id).usage.kv_bytes_peak, (10 + 4) * 1000);
}

TEST(Scheduler, BoundsRowsOfLogits) {
  FakeExecutorOptions e = Small(100);
  EngineOptions options;
  options.max_step_logits = 20;
  options.max_running_sequences = 4;
  Harness h(e, options);
  GenerationRequest r = Harness::Request(300, 2, 1);
  r.num_prompt_logprobs = 1;
  const auto id = h.Submit(r);
  h.Submit(Harness::Request(100, 30, 2));
  int32_t most = 0;
  while (!h.core.idle()) {
    h.Step();
    int32_t rows = 0;
    for (const PlannedRun& run : h.core.last_plan().runs) rows += run.num_logits;
    most = std::max(most, rows);
  }
  EXPECT_EQ(most, 20);
  EXPECT_EQ(h.seen(id).prompt_scores.size(), 300u);
}

TEST(Scheduler, AWaitingGiantIsPassedABoundedNumberOfTimes) {
  EngineOptions options;
  options.max_bypasses = 3;
  options.reserve_tokens = 1000;
  options.prefix_cache = false;
  Harness h(Small(20), options);
  h.Submit(Harness::Request(100, 150, 1));
  h.Step();
  const auto giant = h.Submit(Harness::Request(1000, 200, 2));  // 19 pages of 20
  std::vector<RequestNumber> small;
  for (uint64_t i = 0; i < 10; ++i) small.push_back(h.Submit(Harness::Request(60, 100, 10 + i)));
  h.RunUntilFinished(giant);
  const auto before = std::count_if(small.begin(), small.end(),
                                    [&](RequestNumber id) { return h.seen(id).finished; });
  EXPECT_EQ(before, 3);
  h.Run();
}

}  // namespace
}  // namespace longstride::engine

// LONGSTRIDE_SIM_SEED replays one seed; LONGSTRIDE_SIM_SEEDS and LONGSTRIDE_SIM_STEPS widen the run.
#include "tests/engine/simulation.h"

#include <cstdlib>
#include <iostream>

#include "gtest/gtest.h"

namespace longstride::engine {
namespace {

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoll(value, nullptr, 10);
}

void ExpectClean(uint64_t seed, const SimulationResult& result) {
  for (const std::string& error : result.errors) {
    ADD_FAILURE() << "seed " << seed << " (LONGSTRIDE_SIM_SEED=" << seed << "): " << error
                  << "\n  " << result.config;
  }
}

TEST(EngineSimulation, KeepsItsPromisesUnderRandomTraffic) {
  const int64_t steps = FromEnvironment("LONGSTRIDE_SIM_STEPS", 1000);
  const int64_t first = FromEnvironment("LONGSTRIDE_SIM_SEED", 0);
  const int64_t seeds = first > 0 ? 1 : FromEnvironment("LONGSTRIDE_SIM_SEEDS", 120);
  SimulationResult all;
  for (int64_t i = 0; i < seeds; ++i) {
    const auto seed = static_cast<uint64_t>(first > 0 ? first : i + 1);
    const SimulationResult result = Simulate(seed, steps);
    ExpectClean(seed, result);
    if (first > 0) std::cout << result.config << "\n";
    all.steps += result.steps;
    all.finished += result.finished;
    all.completed += result.completed;
    all.preemptions += result.preemptions;
    all.most_preemptions = std::max(all.most_preemptions, result.most_preemptions);
    all.cached_tokens += result.cached_tokens;
    all.generated_hits += result.generated_hits;
    all.evicted_pages += result.evicted_pages;
    all.window_pages += result.window_pages;
    all.bytes_to_host += result.bytes_to_host;
    all.bytes_from_host += result.bytes_from_host;
    all.aborted += result.aborted;
    all.stalled += result.stalled;
    all.faults += result.faults;
    all.forked += result.forked;
    all.positions_checked += result.positions_checked;
    if (HasFailure() && first == 0) break;
  }
  std::cout << all.steps << " steps, " << all.finished << " requests, " << all.completed
            << " whole, " << all.preemptions << " preemptions (at most " << all.most_preemptions
            << " of one), " << all.cached_tokens << " cached tokens, " << all.generated_hits
            << " of them generated, " << all.evicted_pages << " pages evicted, "
            << all.window_pages << " left by windows, " << all.aborted << " cancelled, "
            << all.stalled << " stalls, " << all.faults << " faults, " << all.forked
            << " with choices, " << all.positions_checked << " positions checked\n";
  if (first > 0) return;
  // The traffic really went everywhere.
  EXPECT_GE(all.steps, 100'000);
  EXPECT_GT(all.completed, 1000);
  EXPECT_GT(all.preemptions, 100);
  EXPECT_GT(all.cached_tokens, 10'000);
  EXPECT_GT(all.generated_hits, 0);
  EXPECT_GT(all.evicted_pages, 100);
  EXPECT_GT(all.window_pages, 100);
  EXPECT_GT(all.bytes_to_host, 1'000'000);
  EXPECT_GT(all.bytes_from_host, 1'000'000);
  EXPECT_GT(all.aborted, 100);
  EXPECT_GT(all.stalled, 10);
  EXPECT_GT(all.faults, 50);
  EXPECT_GT(all.forked, 50);
}

TEST(EngineSimulation, GivesTheSameTraceForTheSameSeed) {
  for (const uint64_t seed : {3, 11, 42}) {
    const SimulationResult a = Simulate(seed, 300), b = Simulate(seed, 300);
    EXPECT_EQ(a.trace, b.trace) << "seed " << seed;
    EXPECT_NE(a.trace, Simulate(seed + 1000, 300).trace);
  }
}

}  // namespace
}  // namespace longstride::engine

// Random traffic against the engine's core on a virtual clock, checked at every step against a model
// that serves one request at a time with unlimited memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longstride::engine {

struct SimulationResult {
  int64_t steps = 0;
  uint64_t trace = 0;  // hash of every plan and every event
  int64_t finished = 0;
  int64_t completed = 0;  // with the naive model's text
  int64_t preemptions = 0;
  int32_t most_preemptions = 0;  // of one request
  int64_t cached_tokens = 0;
  int64_t generated_hits = 0;
  int64_t evicted_pages = 0;
  int64_t bytes_to_host = 0;
  int64_t bytes_from_host = 0;
  int64_t window_pages = 0;
  int64_t aborted = 0;
  int64_t stalled = 0;
  int64_t faults = 0;
  int64_t forked = 0;
  int64_t positions_checked = 0;
  std::string config;
  std::vector<std::string> errors;
};

SimulationResult Simulate(uint64_t seed, int64_t steps);

}  // namespace longstride::engine

// The load that `bench` puts on a server, and what it measures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "server/cli/http_client.h"

namespace longstride::cli {

struct TokenRange {
  int64_t min = 0;
  int64_t max = 0;  // inclusive
};

struct BenchPlan {
  ServerUrl url;
  std::string authorization;
  int64_t requests = 32;
  int64_t concurrency = 4;  // closed loop: so many at a time
  double rate = 0;          // open loop where above 0: arrivals a second, exponential gaps
  TokenRange prompt_tokens{512, 512};
  TokenRange output_tokens{128, 128};
  int64_t shared_prefix = 0;  // tokens that all prompts begin with
  uint64_t seed = 1;
};

struct BenchSample {
  bool ok = false;
  std::string error;
  double ttft = 0;                // seconds
  double total = 0;               // seconds
  std::vector<double> intervals;  // seconds between pieces of the answer
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t output_tokens = 0;
};

struct BenchOutcome {
  std::string model;
  double wall_seconds = 0;
  std::vector<BenchSample> samples;
};

// Sends random prompts made of the model's own tokens. UNAVAILABLE: the server cannot be reached or
// is not ready; single requests that fail are samples with an error.
absl::StatusOr<BenchOutcome> RunBench(const BenchPlan& plan);

std::string BenchText(const BenchPlan& plan, const BenchOutcome& outcome);
std::string BenchJson(const BenchPlan& plan, const BenchOutcome& outcome);

}  // namespace longstride::cli

#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "config/nearest_name.h"
#include "server/cli/bench_load.h"
#include "server/cli/commands.h"

namespace longstride::cli {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMaxRequests = 100000;
constexpr int64_t kMaxOpenRequests = 4096;  // one thread each
constexpr int64_t kMaxTokens = int64_t{1} << 24;

struct Distribution {
  double mean = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double max = 0;
};

// Nearest-rank percentiles.
Distribution Summarise(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto rank = [&](double p) {
    const auto index = static_cast<size_t>(std::ceil(p * static_cast<double>(values.size())));
    return values[std::max<size_t>(index, 1) - 1];
  };
  double sum = 0;
  for (const double value : values) sum += value;
  return {.mean = sum / static_cast<double>(values.size()),
          .p50 = rank(0.5),
          .p90 = rank(0.9),
          .p99 = rank(0.99),
          .max = values.back()};
}

struct Summary {
  int64_t failed = 0;
  std::string first_error;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t output_tokens = 0;
  Distribution ttft, interval, total;
};

Summary SummariseAll(const BenchOutcome& outcome) {
  Summary summary;
  std::vector<double> ttft, intervals, total;
  for (const BenchSample& sample : outcome.samples) {
    if (!sample.ok) {
      if (summary.failed++ == 0) summary.first_error = sample.error;
      continue;
    }
    summary.prompt_tokens += sample.prompt_tokens;
    summary.cached_tokens += sample.cached_tokens;
    summary.output_tokens += sample.output_tokens;
    ttft.push_back(sample.ttft);
    total.push_back(sample.total);
    intervals.insert(intervals.end(), sample.intervals.begin(), sample.intervals.end());
  }
  summary.ttft = Summarise(std::move(ttft));
  summary.interval = Summarise(std::move(intervals));
  summary.total = Summarise(std::move(total));
  return summary;
}

// "512" or "100-2000".
absl::StatusOr<TokenRange> ReadRange(const Invocation& invocation, const std::string& flag,
                                     TokenRange fallback) {
  if (!invocation.Has(flag)) return fallback;
  const std::string text = invocation.Text(flag, "");
  const size_t dash = text.find('-');
  TokenRange range;
  const bool parsed =
      absl::SimpleAtoi(text.substr(0, dash), &range.min) &&
      (dash == std::string::npos ? (range.max = range.min, true)
                                 : absl::SimpleAtoi(text.substr(dash + 1), &range.max));
  if (!parsed || range.min < 1 || range.max < range.min || range.max > kMaxTokens) {
    return absl::InvalidArgumentError(
        StrCat(flag, ": got ", Quoted(text), "; allowed is a number or a range such as 100-2000."));
  }
  return range;
}

absl::StatusOr<BenchPlan> ReadPlan(const Invocation& invocation) {
  BenchPlan plan;
  ASSIGN_OR_RETURN(plan.url, ServerUrl::Parse(invocation.Text("--url", "http://127.0.0.1:8000")));
  ASSIGN_OR_RETURN(plan.requests, invocation.Int("--requests", plan.requests, 1, kMaxRequests));
  ASSIGN_OR_RETURN(plan.concurrency, invocation.Int("--concurrency", plan.concurrency, 1, 4096));
  ASSIGN_OR_RETURN(plan.rate, invocation.Number("--rate", 0, 0.001, 100000));
  ASSIGN_OR_RETURN(plan.prompt_tokens,
                   ReadRange(invocation, "--prompt-tokens", plan.prompt_tokens));
  ASSIGN_OR_RETURN(plan.output_tokens,
                   ReadRange(invocation, "--output-tokens", plan.output_tokens));
  ASSIGN_OR_RETURN(plan.shared_prefix, invocation.Int("--shared-prefix", 0, 0, kMaxTokens));
  ASSIGN_OR_RETURN(const int64_t seed, invocation.Int("--seed", 1, 0, INT64_MAX));
  plan.seed = static_cast<uint64_t>(seed);
  if (plan.rate > 0 && invocation.Has("--concurrency")) {
    return absl::InvalidArgumentError(
        "--rate (open loop) and --concurrency (closed loop) exclude each other; keep one.");
  }
  if (plan.rate > 0 && plan.requests > kMaxOpenRequests) {
    return absl::InvalidArgumentError(
        StrCat("--requests: got ", plan.requests, "; with --rate at most ", kMaxOpenRequests, "."));
  }
  if (invocation.Has("--key-file")) {
    ASSIGN_OR_RETURN(const std::string key,
                     ReadTextFile(invocation.Text("--key-file", ""), "The key file", 4096));
    plan.authorization = StrCat("Bearer ", std::string(absl::StripAsciiWhitespace(key)));
  }
  return plan;
}

ordered_json Milliseconds(const Distribution& d) {
  return {{"mean", d.mean * 1e3},
          {"p50", d.p50 * 1e3},
          {"p90", d.p90 * 1e3},
          {"p99", d.p99 * 1e3},
          {"max", d.max * 1e3}};
}

std::string Line(const char* name, const Distribution& d) {
  return absl::StrFormat("%-22s %9.1f %9.1f %9.1f %9.1f %9.1f\n", name, d.mean * 1e3, d.p50 * 1e3,
                         d.p90 * 1e3, d.p99 * 1e3, d.max * 1e3);
}

absl::StatusOr<int> Bench(const Invocation& invocation) {
  ASSIGN_OR_RETURN(const BenchPlan plan, ReadPlan(invocation));
  ASSIGN_OR_RETURN(const BenchOutcome outcome, RunBench(plan));
  std::cout << (invocation.Has("--json") ? BenchJson(plan, outcome) : BenchText(plan, outcome));
  const bool any = std::any_of(outcome.samples.begin(), outcome.samples.end(),
                               [](const BenchSample& sample) { return sample.ok; });
  return any ? kExitOk : kExitFailed;
}

}  // namespace

std::string BenchText(const BenchPlan& plan, const BenchOutcome& outcome) {
  const Summary summary = SummariseAll(outcome);
  const auto ok = static_cast<int64_t>(outcome.samples.size()) - summary.failed;
  std::string out =
      plan.rate > 0
          ? absl::StrFormat("%s, open loop, %.3g requests/s\n", outcome.model, plan.rate)
          : absl::StrFormat("%s, closed loop, %d at a time\n", outcome.model, plan.concurrency);
  absl::StrAppendFormat(&out, "%d of %d requests answered in %.2f s\n", ok, outcome.samples.size(),
                        outcome.wall_seconds);
  if (summary.failed > 0) StrAppend(&out, "first failure: ", summary.first_error, "\n");
  absl::StrAppendFormat(&out, "prompt tokens   %9d (%d from the prefix cache), %.0f/s\n",
                        summary.prompt_tokens, summary.cached_tokens,
                        static_cast<double>(summary.prompt_tokens) / outcome.wall_seconds);
  absl::StrAppendFormat(&out, "output tokens   %9d, %.1f/s\n\n", summary.output_tokens,
                        static_cast<double>(summary.output_tokens) / outcome.wall_seconds);
  absl::StrAppendFormat(&out, "%-22s %9s %9s %9s %9s %9s\n", "milliseconds", "mean", "p50", "p90",
                        "p99", "max");
  return out + Line("time to first token", summary.ttft) +
         Line("between tokens", summary.interval) + Line("whole request", summary.total);
}

std::string BenchJson(const BenchPlan& plan, const BenchOutcome& outcome) {
  const Summary summary = SummariseAll(outcome);
  ordered_json out;
  out["model"] = outcome.model;
  out["loop"] = plan.rate > 0 ? "open" : "closed";
  if (plan.rate > 0) {
    out["rate"] = plan.rate;
  } else {
    out["concurrency"] = plan.concurrency;
  }
  out["seed"] = plan.seed;
  out["requests"] = outcome.samples.size();
  out["failed"] = summary.failed;
  if (summary.failed > 0) out["first_error"] = summary.first_error;
  out["wall_seconds"] = outcome.wall_seconds;
  out["prompt_tokens"] = summary.prompt_tokens;
  out["cached_tokens"] = summary.cached_tokens;
  out["output_tokens"] = summary.output_tokens;
  out["output_tokens_per_second"] =
      static_cast<double>(summary.output_tokens) / outcome.wall_seconds;
  out["ttft_ms"] = Milliseconds(summary.ttft);
  out["itl_ms"] = Milliseconds(summary.interval);
  out["e2e_ms"] = Milliseconds(summary.total);
  return out.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

Command BenchCommand() {
  return {.name = "bench",
          .arguments = "",
          .summary = "measures latency and throughput of a running server",
          .flags = {{"--url", "URL", "The server (default: http://127.0.0.1:8000)."},
                    {"--requests", "N", "Requests in all (default: 32)."},
                    {"--concurrency", "N", "Closed loop: so many at a time (default: 4)."},
                    {"--rate", "R", "Open loop: so many arrivals a second, at random times."},
                    {"--prompt-tokens", "N[-M]", "Length of the prompts (default: 512)."},
                    {"--output-tokens", "N[-M]", "Length of the answers (default: 128)."},
                    {"--shared-prefix", "N", "Tokens that all prompts begin with (default: 0)."},
                    {"--seed", "N", "Of lengths, prompts and arrivals (default: 1)."},
                    {"--key-file", "FILE", "File with the API key to send."},
                    {"--json", "", "Print one JSON object."}},
          .takes_options = false,
          .run = &Bench};
}

}  // namespace longstride::cli

#include "server/cli/bench_load.h"

#include <atomic>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "server/cli/command.h"

namespace longstride::cli {
namespace {

using nlohmann::json;
using SteadyClock = std::chrono::steady_clock;

// Plain words: their tokens are ordinary ones in every vocabulary.
constexpr char kWords[] =
    "the river runs past an old stone bridge where children count boats and the baker opens his "
    "shop "
    "before dawn while rain falls on green hills and people read long letters about winter markets "
    "and distant cities under a quiet grey sky";

double Since(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

absl::Status ServerSaid(const HttpAnswer& answer) {
  const json body = json::parse(answer.body, nullptr, /*allow_exceptions=*/false);
  std::string message;
  if (body.is_object() && body.contains("error") && body["error"].is_object()) {
    message = body["error"].value("message", "");
  }
  return WithExit(absl::UnavailableError(StrCat("The server answered ", answer.status,
                                                message.empty() ? "" : ": ", message,
                                                message.empty() ? "." : "")),
                  kExitAddress);
}

absl::StatusOr<json> Ask(HttpCall call) {
  ASSIGN_OR_RETURN(const HttpAnswer answer, Fetch(call));
  if (answer.status != 200) return ServerSaid(answer);
  json body = json::parse(answer.body, nullptr, /*allow_exceptions=*/false);
  if (body.is_discarded()) {
    return absl::UnavailableError(StrCat("The server's answer to ", call.path, " is not JSON."));
  }
  return body;
}

struct Job {
  std::string body;
  double start = 0;  // seconds after the begin, in an open loop
};

std::vector<Job> MakeJobs(const BenchPlan& plan, const std::string& model,
                          const std::vector<int64_t>& tokens) {
  std::mt19937_64 random(plan.seed);
  const auto pick = [&](const TokenRange& range) {
    return std::uniform_int_distribution<int64_t>(range.min, range.max)(random);
  };
  const auto any_token = [&] { return tokens[random() % tokens.size()]; };
  std::vector<int64_t> shared;
  while (static_cast<int64_t>(shared.size()) < plan.shared_prefix) shared.push_back(any_token());
  std::exponential_distribution<double> gap(plan.rate > 0 ? plan.rate : 1);
  double start = 0;
  std::vector<Job> jobs;
  for (int64_t i = 0; i < plan.requests; ++i) {
    const auto length = static_cast<size_t>(pick(plan.prompt_tokens));
    std::vector<int64_t> prompt(
        shared.begin(), shared.begin() + static_cast<int64_t>(std::min(length, shared.size())));
    while (prompt.size() < length) prompt.push_back(any_token());
    const json body = {{"model", model},
                       {"prompt", prompt},
                       {"max_tokens", pick(plan.output_tokens)},
                       {"ignore_eos", true},
                       {"temperature", 0.8},
                       {"seed", static_cast<int64_t>(random() >> 2)},
                       {"stream", true},
                       {"stream_options", {{"include_usage", true}}}};
    if (plan.rate > 0) start += gap(random);
    jobs.push_back({body.dump(), start});
  }
  return jobs;
}

// Follows one stream of events.
class StreamReader {
 public:
  explicit StreamReader(BenchSample* sample) : sample_(sample), start_(SteadyClock::now()) {}

  void Push(std::string_view piece) {
    buffer_ += piece;
    for (size_t end; (end = buffer_.find('\n')) != std::string::npos; buffer_.erase(0, end + 1)) {
      if (buffer_.rfind("data: ", 0) == 0) Event(buffer_.substr(6, end - 6));
    }
  }
  void Finish() {
    sample_->total = Since(start_);
    if (sample_->error.empty() && !done_) sample_->error = "the stream ended without [DONE]";
    if (sample_->error.empty() && first_ < 0) sample_->error = "no token came";
    sample_->ok = sample_->error.empty();
  }

 private:
  void Event(const std::string& text) {
    if (text == "[DONE]" || text == "[DONE]\r") {
      done_ = true;
      return;
    }
    const json event = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!event.is_object()) return;
    if (event.contains("error")) {
      sample_->error =
          event["error"].is_object() ? event["error"].value("message", "error") : "error";
      return;
    }
    if (event.contains("usage") && event["usage"].is_object()) TakeUsage(event["usage"]);
    if (!event.contains("choices") || !event["choices"].is_array() || event["choices"].empty()) {
      return;
    }
    const json& choice = event["choices"][0];
    const bool has_text = choice.is_object() && choice.contains("text") &&
                          choice["text"].is_string() &&
                          !choice["text"].get_ref<const std::string&>().empty();
    if (!has_text) return;
    const double now = Since(start_);
    if (first_ < 0) {
      first_ = sample_->ttft = now;
    } else {
      sample_->intervals.push_back(now - last_);
    }
    last_ = now;
  }
  void TakeUsage(const json& usage) {
    sample_->prompt_tokens = usage.value("prompt_tokens", int64_t{0});
    sample_->output_tokens = usage.value("completion_tokens", int64_t{0});
    if (usage.contains("prompt_tokens_details") && usage["prompt_tokens_details"].is_object()) {
      sample_->cached_tokens = usage["prompt_tokens_details"].value("cached_tokens", int64_t{0});
    }
  }

  BenchSample* const sample_;
  const SteadyClock::time_point start_;
  std::string buffer_;
  double first_ = -1;
  double last_ = 0;
  bool done_ = false;
};

void RunJob(const BenchPlan& plan, const Job& job, BenchSample* sample) {
  HttpCall call{.url = plan.url, .method = "POST", .path = "/v1/completions", .body = job.body};
  call.authorization = plan.authorization;
  StreamReader reader(sample);
  const auto answer = Fetch(call, [&](std::string_view piece) { reader.Push(piece); });
  if (!answer.ok()) {
    sample->error = std::string(answer.status().message());
  } else if (answer->status != 200) {
    sample->error = std::string(ServerSaid(*answer).message());
  }
  reader.Finish();
}

}  // namespace

absl::StatusOr<BenchOutcome> RunBench(const BenchPlan& plan) {
  HttpCall call{.url = plan.url, .method = "GET", .path = "/v1/models", .body = ""};
  call.authorization = plan.authorization;
  ASSIGN_OR_RETURN(const json models, Ask(call));
  if (!models.contains("data") || !models["data"].is_array() || models["data"].empty()) {
    return absl::UnavailableError("The server lists no model.");
  }
  BenchOutcome outcome;
  outcome.model = models["data"][0].value("id", "");
  call.method = "POST";
  call.path = "/tokenize";
  call.body = json{{"model", outcome.model}, {"prompt", kWords}}.dump();
  ASSIGN_OR_RETURN(const json tokenized, Ask(call));
  std::vector<int64_t> tokens;
  for (const json& token : tokenized.value("tokens", json::array())) {
    if (token.is_number_integer()) tokens.push_back(token.get<int64_t>());
  }
  if (tokens.size() < 10) return absl::UnavailableError("The server's tokenizer gave no tokens.");
  tokens.erase(tokens.begin());  // what begins a text, where there is such a token

  const std::vector<Job> jobs = MakeJobs(plan, outcome.model, tokens);
  outcome.samples.resize(jobs.size());
  std::atomic<size_t> next{0};
  const SteadyClock::time_point begin = SteadyClock::now();
  // An open loop never waits for answers: one thread a request. A closed loop has a fixed number.
  const bool open = plan.rate > 0;
  const size_t num_threads =
      open ? jobs.size() : std::min<size_t>(jobs.size(), static_cast<size_t>(plan.concurrency));
  std::vector<std::thread> threads;
  for (size_t t = 0; t < num_threads; ++t) {
    threads.emplace_back([&] {
      for (size_t i; (i = next.fetch_add(1)) < jobs.size();) {
        if (open) {
          std::this_thread::sleep_until(begin + std::chrono::duration_cast<SteadyClock::duration>(
                                                    std::chrono::duration<double>(jobs[i].start)));
        }
        RunJob(plan, jobs[i], &outcome.samples[i]);
        if (open) return;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  outcome.wall_seconds = Since(begin);
  return outcome;
}

}  // namespace longstride::cli

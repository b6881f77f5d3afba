// `longstride generate`: one answer on the terminal, from an engine in this process.
#include <unistd.h>

#include <condition_variable>
#include <iostream>
#include <mutex>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "config/base/logging.h"
#include "server/cli/commands.h"
#include "server/cli/prompt_source.h"
#include "server/cli/runtime.h"
#include "server/cli/to_options.h"
#include "server/frontend/inference_service.h"

namespace longstride::cli {
namespace {

constexpr int32_t kBarFromTokens = 2048;  // shorter prompts are over before a bar helps
constexpr int kBarWidth = 30;

// Lets the thread that drains wait for the engine.
class Wakeup {
 public:
  void Notify() {
    const std::lock_guard lock(mutex_);
    pending_ = true;
    condition_.notify_one();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    condition_.wait(lock, [&] { return pending_; });
    pending_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool pending_ = false;
};

class ProgressBar {
 public:
  explicit ProgressBar(int32_t total)
      : total_(total), shown_(total >= kBarFromTokens && isatty(STDERR_FILENO) != 0) {}

  void Update(int32_t done) {
    if (!shown_) return;
    const int filled = static_cast<int>(int64_t{kBarWidth} * done / total_);
    std::cerr << absl::StrFormat("\rprompt [%s%s] %d/%d", std::string(filled, '#'),
                                 std::string(kBarWidth - filled, ' '), done, total_)
              << std::flush;
  }
  void Clear() {
    if (shown_) std::cerr << "\r\x1b[K" << std::flush;
    shown_ = false;
  }

 private:
  const int32_t total_;
  bool shown_;
};

// Floats and integers that a request takes as they are given; the service checks their ranges.
absl::StatusOr<frontend::GenerationFields> ReadFields(const Invocation& invocation) {
  frontend::GenerationFields fields;
  constexpr double kHuge = 1e300;
  for (const auto& [flag, field] :
       {std::pair{"--temperature", &fields.temperature}, std::pair{"--top-p", &fields.top_p},
        std::pair{"--min-p", &fields.min_p},
        std::pair{"--repetition-penalty", &fields.repetition_penalty}}) {
    if (!invocation.Has(flag)) continue;
    ASSIGN_OR_RETURN(*field, invocation.Number(flag, 0, -kHuge, kHuge));
  }
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  for (const auto& [flag, field] :
       {std::pair{"--max-tokens", &fields.max_tokens}, std::pair{"--top-k", &fields.top_k},
        std::pair{"--seed", &fields.seed}}) {
    if (!invocation.Has(flag)) continue;
    ASSIGN_OR_RETURN(*field, invocation.Int(flag, 0, -kMax, kMax));
  }
  fields.progress = true;
  return fields;
}

absl::StatusOr<std::unique_ptr<frontend::Generation>> Submit(const Invocation& invocation,
                                                             const std::string& prompt, bool chat,
                                                             frontend::InferenceService* service,
                                                             Wakeup* wakeup) {
  ASSIGN_OR_RETURN(const frontend::GenerationFields fields, ReadFields(invocation));
  const auto notify = [wakeup] { wakeup->Notify(); };
  frontend::CallContext context;
  context.request_id = "generate";
  if (!chat) {
    frontend::CompletionRequest request;
    request.prompts.resize(1);
    request.prompts[0].text = prompt;
    request.fields = fields;
    if (!fields.max_tokens.has_value()) request.fields.max_tokens = 256;
    return service->Complete(std::move(request), context, notify);
  }
  frontend::ChatRequest request;
  const auto add = [&request](const char* role, const std::string& content) {
    request.messages.emplace_back();
    request.messages.back().role = role;
    request.messages.back().content = content;
  };
  if (invocation.Has("--system")) add("system", invocation.Text("--system", ""));
  add("user", prompt);
  request.fields = fields;
  return service->Chat(std::move(request), context, notify);
}

// Prints the answer as it comes; the last event's status.
absl::Status Print(frontend::Generation* generation, Wakeup* wakeup, engine::RequestUsage* usage) {
  ProgressBar bar(generation->info().prompt_lengths.front());
  absl::Status status;
  std::vector<frontend::GenerationEvent> events;
  for (bool more = true; more;) {
    wakeup->Wait();
    events.clear();
    more = generation->Drain(&events);
    for (const frontend::GenerationEvent& event : events) {
      switch (event.kind) {
        case frontend::GenerationEvent::Kind::kProgress:
          bar.Update(event.processed_tokens);
          break;
        case frontend::GenerationEvent::Kind::kDelta:
        case frontend::GenerationEvent::Kind::kChoiceFinished:
          bar.Clear();
          std::cout << event.text.reasoning << event.text.content << std::flush;
          break;
        case frontend::GenerationEvent::Kind::kFinished:
          bar.Clear();
          status = event.status;
          *usage = event.usage;
          break;
        default:
          break;
      }
    }
  }
  return status;
}

void PrintSpeed(const engine::RequestUsage& usage) {
  const auto rate = [](double tokens, double seconds) {
    return seconds > 0 ? tokens / seconds : 0;
  };
  const int32_t computed = usage.prompt_tokens - usage.cached_tokens;
  std::cerr << absl::StrFormat(
      "prompt: %d tokens in %.2f s (%.0f tokens/s); answer: %d tokens in %.2f s (%.1f tokens/s)\n",
      usage.prompt_tokens, usage.prefill_seconds, rate(computed, usage.prefill_seconds),
      usage.generated_tokens, usage.decode_seconds,
      rate(usage.generated_tokens - 1, usage.decode_seconds));
  if (usage.kv_tokens_total > 0) {
    std::cerr << absl::StrFormat("attention: %.1f%% of the keys that dense attention would read\n",
                                 100.0 * static_cast<double>(usage.kv_tokens_attended) /
                                     static_cast<double>(usage.kv_tokens_total));
  }
}

absl::StatusOr<int> Generate(const Invocation& invocation) {
  const ServerConfig& config = invocation.config();
  RETURN_IF_ERROR(ToModelOptions(config).status());
  ASSIGN_OR_RETURN(const std::string prompt, ReadPrompt(invocation));
  // The terminal is for the answer: only what is wrong is logged, unless asked for.
  const bool chosen = invocation.loaded.sources.at("log.level") != "default";
  InitLogging(chosen ? ToLogLevel(config) : LogLevel::kWarning, ToLogFormat(config));
  metrics::Metrics metrics({.gateway_aliases = false}, Clock::Real());
  frontend::InferenceService service(ToServiceOptions(config), Clock::Real(), &metrics);
  ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime,
                   Runtime::Start(config, &metrics, Clock::Real()));
  service.SetModel(frontend::DescribeModel(runtime->model()), &runtime->engine());

  const bool chat = !invocation.Has("--raw") && runtime->model().chat_template() != nullptr;
  if (!chat && invocation.Has("--system")) {
    return absl::InvalidArgumentError(
        "--system needs a chat, but --raw is given or the model has no chat template.");
  }
  Wakeup wakeup;
  engine::RequestUsage usage;
  absl::Status status;
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<frontend::Generation> generation,
                     Submit(invocation, prompt, chat, &service, &wakeup));
    status = Print(generation.get(), &wakeup, &usage);
  }
  service.Stop();
  std::cout << std::endl;
  RETURN_IF_ERROR(status);
  PrintSpeed(usage);
  return kExitOk;
}

}  // namespace

Command GenerateCommand() {
  return {.name = "generate",
          .arguments = "MODEL [PROMPT]",
          .summary = "answers one prompt on the terminal",
          .flags = {{"--file", "FILE", "Read the prompt from a file; - is standard input."},
                    {"--raw", "", "Continue the text; do not put it into the chat template."},
                    {"--system", "TEXT", "System message of the chat."},
                    {"--max-tokens", "N",
                     "Longest answer (default: 256, or what the context has "
                     "room for in a chat)."},
                    {"--temperature", "X", "Sampling temperature; 0 is greedy."},
                    {"--top-k", "N", "Sample from the N likeliest tokens."},
                    {"--top-p", "X", "Sample from the likeliest tokens that make up X."},
                    {"--min-p", "X", "Leave out tokens less likely than X times the likeliest."},
                    {"--repetition-penalty", "X", "Above 1 discourages repetition."},
                    {"--seed", "N", "Makes sampling repeatable."}},
          .first_is_model = true,
          .max_plain = 1,
          .run = &Generate};
}

}  // namespace longstride::cli

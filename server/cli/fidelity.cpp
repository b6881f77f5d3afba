// `longstride fidelity`: what a plan does to a model's answers, measured against the checkpoint's
// own plan on real text.
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "config/nearest_name.h"
#include "model/sparsity/hash.h"
#include "server/cli/commands.h"
#include "server/cli/data_files.h"
#include "server/cli/fidelity_run.h"
#include "server/cli/to_options.h"

namespace longstride::cli {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 24;
constexpr int32_t kLeastWindow = 128;

absl::Status ReadPlans(const Invocation& invocation, FidelityQuestion* question) {
  const ServerConfig& config = invocation.config();
  if (!config.sparsity.plan.empty() || !config.sparsity.profile.empty()) {
    return absl::InvalidArgumentError(
        "The baseline is the checkpoint's own plan; name the plan to judge with --plan instead of "
        "--sparsity-plan or --sparsity-profile.");
  }
  if (invocation.Has("--plan") == invocation.Has("--target")) {
    return absl::InvalidArgumentError(
        "Give either --plan, to judge a plan, or --target, to have one searched.");
  }
  if (invocation.Has("--plan")) {
    ASSIGN_OR_RETURN(question->plan, ReadPlan(invocation.Text("--plan", "")));
  } else {
    question->target_text = invocation.Text("--target", "");
    ASSIGN_OR_RETURN(question->target, model::fidelity::Target::Parse(question->target_text));
  }
  if (!invocation.Has("--write-plan")) return absl::OkStatus();
  if (!invocation.Has("--target")) {
    return absl::InvalidArgumentError(
        "--write-plan writes the plan that --target finds; give one.");
  }
  if (!invocation.Has("--json")) {
    return absl::InvalidArgumentError(
        "--write-plan puts the digest of the JSON report into the plan; give --json FILE, too.");
  }
  return absl::OkStatus();
}

absl::Status ReadLengths(const Invocation& invocation, FidelityQuestion* question) {
  ASSIGN_OR_RETURN(const int64_t window, invocation.Int("--window-tokens", question->window_tokens,
                                                        kLeastWindow, kMaxTokens));
  question->window_tokens = static_cast<int32_t>(window);
  ASSIGN_OR_RETURN(
      question->max_tokens,
      invocation.Int("--max-tokens", std::max(question->max_tokens, 8 * window), 1, kMaxTokens));
  ASSIGN_OR_RETURN(const int64_t contexts, invocation.Int("--task-contexts", 4, 1, 1000));
  question->task_contexts = static_cast<int32_t>(contexts);
  ASSIGN_OR_RETURN(const int64_t rows, invocation.Int("--mass-rows", 8, 1, 4096));
  question->rows_per_window = static_cast<int32_t>(rows);
  ASSIGN_OR_RETURN(const int64_t seed, invocation.Int("--seed", 1, 0, int64_t{1} << 40));
  question->seed = static_cast<uint64_t>(seed);
  question->tasks = !invocation.Has("--no-tasks");
  question->generated = invocation.Has("--generated");
  if (!invocation.Has("--task-lengths")) return absl::OkStatus();
  const std::string text = invocation.Text("--task-lengths", "");
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    int32_t length = 0;
    if (!absl::SimpleAtoi(part, &length) || length < 1) {
      return absl::InvalidArgumentError(
          StrCat("--task-lengths: got ", Quoted(text),
                 "; allowed are whole numbers with commas between them, as in 1024,4096."));
    }
    question->task_lengths.push_back(length);
  }
  return absl::OkStatus();
}

// The command again, with files named as the report names them.
std::string CommandLine(const Invocation& invocation) {
  std::string out = StrCat("longstride fidelity ", BaseName(invocation.config().model));
  for (const auto& [flag, value] : invocation.own) {
    if (flag == "--data") continue;
    const bool is_switch = flag == "--no-tasks" || flag == "--generated";
    const bool is_file = flag == "--json" || flag == "--html" || flag == "--plan" ||
                         flag == "--write-plan" || flag == "--scale-model";
    StrAppend(&out, " ", flag);
    if (!is_switch) StrAppend(&out, " ", is_file ? BaseName(value) : value);
  }
  StrAppend(&out, " --data ", BaseName(invocation.Text("--data", "")));
  for (const std::string& file : invocation.plain) StrAppend(&out, " ", BaseName(file));
  return out;
}

absl::StatusOr<int> Fidelity(const Invocation& invocation) {
  RETURN_IF_ERROR(ToModelOptions(invocation.config()).status());
  FidelityQuestion question;
  RETURN_IF_ERROR(ReadPlans(invocation, &question));
  RETURN_IF_ERROR(ReadLengths(invocation, &question));
  ASSIGN_OR_RETURN(question.data, ReadData(invocation));
  RETURN_IF_ERROR(CheckWritable(invocation, {"--json", "--html", "--write-plan"}));
  question.scale_model = invocation.Text("--scale-model", "");
  LogWarningsOnly(invocation);
  ASSIGN_OR_RETURN(FidelityReport report, RunFidelity(invocation.config(), question));
  report.date = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
  report.command = CommandLine(invocation);
  const bool writes_plan = invocation.Has("--write-plan");
  if (writes_plan) report.search->written = BaseName(invocation.Text("--write-plan", ""));
  const std::string json = FidelityJson(report);
  if (invocation.Has("--json")) RETURN_IF_ERROR(WriteFile(invocation.Text("--json", ""), json));
  if (invocation.Has("--html")) {
    RETURN_IF_ERROR(WriteFile(invocation.Text("--html", ""), FidelityHtml(report)));
  }
  if (writes_plan) {
    auto plan = nlohmann::ordered_json::parse(report.plan.text, nullptr, false);
    plan["fidelity_report"] = StrCat("sha256:", model::Sha256Hex(json));
    RETURN_IF_ERROR(WriteFile(invocation.Text("--write-plan", ""), plan.dump(2) + "\n"));
  }
  std::cout << FidelityText(report);
  return kExitOk;
}

}  // namespace

Command FidelityCommand() {
  return {
      .name = "fidelity",
      .arguments = "MODEL --data FILE [FILE...] (--plan PLAN | --target CONDITIONS)",
      .summary = "measures what a sparsity plan does to a model's answers, or searches one",
      .flags =
          {{"--plan", "PLAN",
            "A plan file or a built-in profile, compared with the checkpoint's own."},
           {"--target", "CONDITIONS",
            "Search the cheapest plan that keeps these, as in \"kl<=0.02,top1>=0.98\"; also "
            "ppl<=RATIO."},
           {"--write-plan", "FILE", "Write the plan found, with the JSON report's digest in it."},
           {"--data", "FILE", "Text to measure on; further files may follow."},
           {"--json", "FILE", "Write the report as JSON (docs/fidelity_report.schema.json)."},
           {"--html", "FILE", "Write the report as one page."},
           {"--window-tokens", "N",
            "Length of the sequences the text is cut into (default: 2048)."},
           {"--max-tokens", "N",
            "Text to compute per plan (default: 16384, or eight windows if that is more)."},
           {"--scale-model", "FILE",
            "Another quantisation of the same model, to put the divergence on a scale."},
           {"--task-lengths", "N,N",
            "Lengths of the tasks' contexts (default: half a window and a window)."},
           {"--task-contexts", "N", "Contexts per task and length (default: 4)."},
           {"--generated", "",
            "Give the plan the text as tokens that it generated, not as a prompt; with --target "
            "the search tries quest too."},
           {"--no-tasks", "", "Leave the tasks out."},
           {"--mass-rows", "N",
            "Queries per window and head whose attention mass is measured (default: 8)."},
           {"--seed", "N", "Of samples, tasks and intervals (default: 1)."}},
      .first_is_model = true,
      .max_plain = kMaxDataFiles,
      .run = &Fidelity};
}

}  // namespace longstride::cli

#include <fstream>
#include <iostream>

#include "config/base/logging.h"
#include "config/profiles.h"
#include "server/cli/commands.h"
#include "server/cli/inspect_card.h"
#include "server/cli/inspect_report.h"
#include "server/cli/plan_picture.h"
#include "server/cli/runtime.h"
#include "server/cli/to_options.h"

namespace longstride::cli {
namespace {

constexpr int32_t kCalibrationTokens = 4096;

// The configuration with --plan in the place of the two options that name a plan.
absl::StatusOr<ServerConfig> WithPlan(const Invocation& invocation) {
  ServerConfig config = invocation.config();
  if (!invocation.Has("--plan")) return config;
  if (!config.sparsity.plan.empty() || !config.sparsity.profile.empty()) {
    return absl::InvalidArgumentError(
        "The plan is given twice, by --plan and by --sparsity-plan or --sparsity-profile; keep "
        "one.");
  }
  const std::string plan = invocation.Text("--plan", "");
  (FindProfile(plan).ok() ? config.sparsity.profile : config.sparsity.plan) = plan;
  return config;
}

absl::Status Draw(const model::SparsityPlan& plan, const InspectReport& report,
                  const std::string& path) {
  std::ofstream out(path, std::ios::binary);
  out << PlanPicture(plan, report.question.context);
  out.close();
  if (out) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("--svg: the file ", path, " cannot be written; check its folder and the space left."));
}

// Loads the weights and measures; the model's own cache is not used.
absl::Status Measure(ServerConfig config, InspectReport* report) {
  if (!report->causal) {
    return absl::InvalidArgumentError(
        "--calibrate measures how fast text is generated, and this model is an encoder; leave it "
        "out.");
  }
  config.kv.memory = int64_t{256} << 20;
  ASSIGN_OR_RETURN(const std::unique_ptr<model::Model> model, LoadModel(config));
  ASSIGN_OR_RETURN(report->rates,
                   Calibrate(model.get(), std::min(kCalibrationTokens, model->max_context())));
  report->prediction =
      Predict(model->spec(), model->plan(), *report->rates, report->question.context);
  return absl::OkStatus();
}

// What would run the model; where `auto` took the CPU, why no GPU.
absl::StatusOr<std::string> DescribeDevice(const ServerConfig& config) {
  ASSIGN_OR_RETURN(const model::ModelOptions options, ToModelOptions(config));
  const auto backend = kernels::MakeBackend(options.backend, options.backend_options);
  if (!backend.ok()) return WithExit(backend.status(), kExitUsage);
  const absl::Status cuda = ChooseDevice(config).cuda;
  return StrCat((*backend)->Describe(),
                cuda.ok() ? "" : StrCat("; no CUDA: ", ToStd(cuda.message())));
}

absl::StatusOr<int> Inspect(const Invocation& invocation) {
  if (invocation.Has("--card") && invocation.Has("--json")) {
    return absl::InvalidArgumentError("--card and --json print different things; keep one.");
  }
  if (invocation.Has("--fidelity-report") && !invocation.Has("--card")) {
    return absl::InvalidArgumentError("--fidelity-report is for the card; add --card.");
  }
  InspectQuestion question;
  ASSIGN_OR_RETURN(question.context, invocation.Int("--context", 0, 1, int64_t{1} << 24));
  ASSIGN_OR_RETURN(question.concurrency, invocation.Int("--concurrency", 1, 1, 1000000));
  ASSIGN_OR_RETURN(const ServerConfig config, WithPlan(invocation));
  model::SparsityPlan plan;
  ASSIGN_OR_RETURN(InspectReport report, InspectModel(config, question, &plan));
  ASSIGN_OR_RETURN(report.device, DescribeDevice(config));
  if (invocation.Has("--svg")) RETURN_IF_ERROR(Draw(plan, report, invocation.Text("--svg", "")));
  if (invocation.Has("--calibrate")) {
    InitLogging(LogLevel::kWarning, ToLogFormat(config));
    RETURN_IF_ERROR(Measure(config, &report));
  }
  if (invocation.Has("--card")) {
    ASSIGN_OR_RETURN(const std::string card,
                     InspectCard(report, invocation.Text("--fidelity-report", "")));
    std::cout << card;
    return kExitOk;
  }
  std::cout << (invocation.Has("--json") ? InspectJson(report) : InspectText(report));
  return kExitOk;
}

}  // namespace

Command InspectCommand() {
  return {
      .name = "inspect",
      .arguments = "MODEL",
      .summary = "prints a model's layers, sparsity patterns and memory, and whether it fits",
      .flags = {{"--context", "TOKENS", "Length to compute memory for (default: the longest)."},
                {"--concurrency", "N", "Sequences of that length at a time (default: 1)."},
                {"--plan", "PLAN", "A plan file or a built-in profile to look at."},
                {"--svg", "FILE", "Draw what every layer and head reads at that length."},
                {"--calibrate", "",
                 "Load the weights, measure for some seconds, and predict the time to the first "
                 "token and the decode rate at that length."},
                {"--json", "", "Print one JSON object."},
                {"--card", "",
                 "Print a model-and-plan card in Markdown: what is served, what it approximates, "
                 "and how to verify it."},
                {"--fidelity-report", "FILE",
                 "The report (JSON of `longstride fidelity`) whose figures the card is to show."}},
      .first_is_model = true,
      .run = &Inspect};
}

}  // namespace longstride::cli

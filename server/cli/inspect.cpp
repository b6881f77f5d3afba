#include <iostream>

#include "server/cli/commands.h"
#include "server/cli/inspect_report.h"

namespace longstride::cli {
namespace {

absl::StatusOr<int> Inspect(const Invocation& invocation) {
  InspectQuestion question;
  ASSIGN_OR_RETURN(question.context, invocation.Int("--context", 0, 1, int64_t{1} << 24));
  ASSIGN_OR_RETURN(question.concurrency, invocation.Int("--concurrency", 1, 1, 1000000));
  ASSIGN_OR_RETURN(const InspectReport report, InspectModel(invocation.config(), question));
  std::cout << (invocation.Has("--json") ? InspectJson(report) : InspectText(report));
  return kExitOk;
}

}  // namespace

Command InspectCommand() {
  return {.name = "inspect",
          .arguments = "MODEL",
          .summary = "prints a model's layers, sparsity patterns and memory, and whether it fits",
          .flags = {{"--context", "TOKENS", "Length to compute memory for (default: the longest)."},
                    {"--concurrency", "N", "Sequences of that length at a time (default: 1)."},
                    {"--json", "", "Print one JSON object."}},
          .first_is_model = true,
          .run = &Inspect};
}

}  // namespace longstride::cli

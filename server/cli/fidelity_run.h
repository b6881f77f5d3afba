// Measures what a FidelityReport says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "config/server_config.h"
#include "model/fidelity/text_windows.h"
#include "server/cli/fidelity_report.h"
#include "server/cli/plan_source.h"

namespace longstride::cli {

struct FidelityQuestion {
  std::optional<NamedPlan> plan;  // absent: `target` is searched for
  std::optional<model::fidelity::Target> target;
  std::string target_text;
  std::vector<model::fidelity::Document> data;
  std::string scale_model;  // another checkpoint of the same model, or ""
  int32_t window_tokens = 2048;
  int64_t max_tokens = 16384;
  bool generated = false;  // the plan computes the text as generated tokens
  bool tasks = true;
  std::vector<int32_t> task_lengths;  // empty: half a window and a window
  int32_t task_contexts = 4;          // per task and length
  int32_t rows_per_window = 8;        // queries whose captured mass is measured
  uint64_t seed = 1;
};

// Everything but date, command line and the names of written files. INVALID_ARGUMENT: data, lengths
// or the plan do not suit the model. FAILED_PRECONDITION: no plan of the ladder reaches the target.
absl::StatusOr<FidelityReport> RunFidelity(const ServerConfig& config,
                                           const FidelityQuestion& question);

}  // namespace longstride::cli

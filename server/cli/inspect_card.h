// The model-and-plan card in Markdown: what is served, what of it approximates the checkpoint, the
// fidelity that was measured, limits, and how to verify all that.
#pragma once

#include <string>

#include "config/base/status.h"
#include "server/cli/inspect_report.h"

namespace longstride::cli {

// `fidelity_report`: the JSON file of `longstride fidelity`, "" for none. INVALID_ARGUMENT: it is
// not the one that the plan names, or about another model or plan.
absl::StatusOr<std::string> InspectCard(const InspectReport& report,
                                        const std::string& fidelity_report);

}  // namespace longstride::cli

// What a comparison's observers saw, layer by layer.
#pragma once

#include <cstdint>

#include "model/fidelity/captured_mass.h"
#include "server/cli/fidelity_report.h"

namespace longstride::cli {

struct LayerObservations {
  const model::SparsityPlan* baseline = nullptr;
  const model::SparsityPlan* plan = nullptr;
  const model::fidelity::LayerCounters* baseline_counters = nullptr;
  const model::fidelity::LayerCounters* plan_counters = nullptr;
  const model::fidelity::CapturedMass* mass = nullptr;            // of `plan` alone
  model::NumericsClass numerics = model::NumericsClass::kPrompt;  // of the plan's rows
};

// Sets the report's layers and captured mass. `window_tokens`: length of every window.
void DescribeLayers(const LayerObservations& seen, int32_t window_tokens,
                    const model::fidelity::BootstrapOptions& bootstrap, FidelityReport* report);

}  // namespace longstride::cli

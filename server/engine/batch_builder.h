#pragma once

#include <vector>

#include "model/model_input.h"
#include "server/engine/scheduler.h"

namespace longstride::engine {

// Flattens the runs of an applied plan into the model's input: one row of every page table per run.
void BuildModelInput(const SchedulerState& state, const std::vector<PlannedRun>& runs,
                     model::ModelInput* input);

}  // namespace longstride::engine

// Runs lanes side by side over windows of text, teacher-forced, and compares each with the baseline
// at every position. Logits of one step are all that is held.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "config/base/status.h"
#include "model/fidelity/captured_mass.h"
#include "model/fidelity/divergence.h"
#include "model/fidelity/lane.h"
#include "model/fidelity/text_windows.h"

namespace longstride::model::fidelity {

// One lane to compare with the baseline, and what came of it.
struct Comparison {
  Lane* lane = nullptr;
  // Tokens per step inside one of the baseline's, over and over; empty: as the baseline.
  std::vector<int32_t> cuts;
  // The class the lane computes the text in; the baseline's is a prompt's.
  NumericsClass numerics = NumericsClass::kPrompt;
  // [window][position]: every position but the last, whose true next token is not in the window.
  std::vector<std::vector<PositionDivergence>> windows;
};

struct ComparisonOptions {
  // Most tokens of a step, all with logits: few, so that several lanes' logits stay small. Fewer
  // where a lane gives fewer rows of logits.
  int32_t step_rows = 128;
  int32_t rows_per_window = 8;                   // whose captured mass is measured
  uint64_t seed = 1;                             // chooses those rows
  std::function<void(int64_t tokens)> progress;  // tokens of the baseline done; may be null
};

// Appends to each comparison's windows. `mass` (null: not measured) must be the baseline's
// observer. All lanes must have the baseline's vocabulary.
absl::Status CompareLanes(Lane* baseline, std::span<Comparison> comparisons,
                          std::span<const TextWindow> windows, int32_t vocab_size,
                          CapturedMass* mass, const ComparisonOptions& options);

}  // namespace longstride::model::fidelity

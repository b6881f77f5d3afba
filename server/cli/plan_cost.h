// What a plan costs at a length: arithmetic from the checkpoint's shapes, time from rates that a
// short calibration measures on this machine.
#pragma once

#include <cstdint>
#include <vector>

#include "config/base/status.h"
#include "model/model.h"

namespace longstride::cli {

// Floating-point operations, a multiply-add counting two. A prompt's logits are computed for its
// last token alone; embeddings are looked up, not multiplied; of a mixture's experts those count
// that a token is sent to.
struct PlanFlops {
  double prefill_linear = 0;  // of a prompt of the length
  double prefill_attention = 0;
  double prefill_dense_attention = 0;  // were every layer dense
  double decode_linear = 0;            // of one token behind it
  double decode_attention = 0;
  double decode_dense_attention = 0;
};

PlanFlops FlopsOf(const model::ModelSpec& spec, const model::SparsityPlan& plan, int64_t length);

// Sum over the queries at positions [begin, end) of visible keys x heads x head size, all layers,
// and where a layer's indexer chooses among the keys, half of all keys x its heads x their size:
// scores without weighted values; the same of pages' means by whose shares pages are chosen. From
// at most `samples` positions.
inline constexpr int64_t kVolumeSamples = 256;
double AttentionVolume(const model::ModelSpec& spec, const model::SparsityPlan& plan, int64_t begin,
                       int64_t end, bool dense = false, int64_t samples = kVolumeSamples,
                       model::NumericsClass numerics = model::NumericsClass::kPrompt);

// Nanoseconds: a step of n tokens with attention volume v takes
//   n * (row + attention_row) + v * attention_volume.
struct StepRates {
  double row = 0;
  double attention_row = 0;
  double attention_volume = 0;
};

struct MachineRates {
  StepRates prefill;
  StepRates decode;
  int64_t tokens = 0;  // length of the calibration
};

// Least squares of y = a * x1 + b * x2 with a, b >= 0.
void FitNonNegative(const std::vector<double>& x1, const std::vector<double>& x2,
                    const std::vector<double>& y, double* a, double* b);

// Computes `tokens` random tokens under the model's plan in steps, and a few single tokens at
// several lengths.
absl::StatusOr<MachineRates> Calibrate(model::Model* model, int32_t tokens);

struct PlanPrediction {
  double time_to_first_token = 0;  // seconds, of a prompt of the length on an idle server
  double decode_tokens_per_second = 0;
};

PlanPrediction Predict(const model::ModelSpec& spec, const model::SparsityPlan& plan,
                       const MachineRates& rates, int64_t length);

}  // namespace longstride::cli

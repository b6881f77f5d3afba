// How fast a lane computes, measured as it serves: prefill in steps without logits, then one token
// a step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "config/base/status.h"
#include "model/fidelity/lane.h"

namespace longstride::model::fidelity {

struct SpeedSample {
  double prefill_tokens_per_second = 0;
  double decode_tokens_per_second = 0;
  double prefill_attention_share = 0;  // of the step's time
  double decode_attention_share = 0;
  int64_t kv_bytes = 0;  // of the pages held at the end
};

// Prefills all of `tokens` but the last `decode_tokens`, feeds those one by one. Resets the lane.
absl::StatusOr<SpeedSample> MeasureSpeed(std::span<const int32_t> tokens, int32_t decode_tokens,
                                         Lane* lane);

// Median, least and largest of repeated samples' field.
struct Spread {
  double median = 0, least = 0, most = 0;
};
Spread SpreadOf(const std::vector<SpeedSample>& samples, double SpeedSample::*field);

}  // namespace longstride::model::fidelity

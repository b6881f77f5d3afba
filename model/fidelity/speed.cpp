#include "model/fidelity/speed.h"

#include <algorithm>

#include "config/base/check.h"
#include "config/base/clock.h"
#include "model/fidelity/statistics.h"

namespace longstride::model::fidelity {
namespace {

double Seconds(int64_t nanos) { return static_cast<double>(nanos) * 1e-9; }

struct Pass {
  int64_t nanos = 0;
  int64_t attention = 0;
};

absl::Status Run(std::span<const int32_t> tokens, int32_t step, NumericsClass numerics, Lane* lane,
                 Pass* pass) {
  const bool decode = numerics == NumericsClass::kGenerated;
  while (!tokens.empty()) {
    const size_t count = std::min(tokens.size(), static_cast<size_t>(step));
    const bool last = count == tokens.size();
    const int64_t start = Clock::Real()->MonotonicNanos();
    RETURN_IF_ERROR(lane->Append(tokens.first(count), decode || last ? 1 : 0, numerics));
    pass->nanos += Clock::Real()->MonotonicNanos() - start;
    pass->attention += lane->output().times.attention_ns;
    tokens = tokens.subspan(count);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SpeedSample> MeasureSpeed(std::span<const int32_t> tokens, int32_t decode_tokens,
                                         Lane* lane) {
  LS_CHECK(decode_tokens > 0 && static_cast<size_t>(decode_tokens) < tokens.size());
  const size_t prompt = tokens.size() - static_cast<size_t>(decode_tokens);
  lane->Reset();
  Pass prefill, decode;
  RETURN_IF_ERROR(
      Run(tokens.first(prompt), lane->step_tokens(), NumericsClass::kPrompt, lane, &prefill));
  RETURN_IF_ERROR(Run(tokens.subspan(prompt), 1, NumericsClass::kGenerated, lane, &decode));
  SpeedSample sample;
  sample.prefill_tokens_per_second = static_cast<double>(prompt) / Seconds(prefill.nanos);
  sample.decode_tokens_per_second = decode_tokens / Seconds(decode.nanos);
  sample.prefill_attention_share =
      static_cast<double>(prefill.attention) / static_cast<double>(prefill.nanos);
  sample.decode_attention_share =
      static_cast<double>(decode.attention) / static_cast<double>(decode.nanos);
  sample.kv_bytes = lane->kv_bytes();
  return sample;
}

Spread SpreadOf(const std::vector<SpeedSample>& samples, double SpeedSample::*field) {
  std::vector<double> values;
  for (const SpeedSample& sample : samples) values.push_back(sample.*field);
  if (values.empty()) return {};
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  Spread spread{.least = *least, .most = *most};
  spread.median = Quantile(&values, 0.5);
  return spread;
}

}  // namespace longstride::model::fidelity

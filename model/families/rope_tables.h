// Rotary frequency tables with every scaling rule of the supported families. All arithmetic is in
// float64 and rounded once.
// Sources: RoFormer (arXiv 2104.09864), position interpolation (arXiv 2306.15595), YaRN
// (arXiv 2309.00071), LongRoPE (arXiv 2402.13753), Llama 3.1 (arXiv 2407.21783).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "model/families/config_reader.h"
#include "model/model_spec.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

enum class RopeScaling { kNone, kLinear, kLlama3, kYarn, kLongRope };

// What a checkpoint says about one rotary embedding.
struct RopeConfig {
  RopeScaling scaling = RopeScaling::kNone;
  double theta = 10000.0;
  double partial_rotary_factor = 1.0;
  int32_t rotary_dim = 0;  // rotated channels of a head; 0: by partial_rotary_factor
  double factor = 1.0;
  double original_max_positions = 0;       // YaRN, Llama 3, LongRoPE
  std::optional<double> attention_factor;  // multiplies cos and sin; else by the scaling's rule
  double beta_fast = 32.0;                 // YaRN
  double beta_slow = 1.0;
  bool truncate = true;  // YaRN: round the correction range to whole frequencies
  std::optional<double> mscale, mscale_all_dim;
  double low_freq_factor = 1.0;  // Llama 3
  double high_freq_factor = 4.0;
  std::vector<double> short_factors;  // LongRoPE: one divisor per frequency
  std::vector<double> long_factors;
  std::vector<double> divisors;  // one per frequency, from a GGUF tensor; empty: none
};

// Reads config.json in its old spelling (rope_theta, rope_scaling) or its new one (rope_parameters,
// flat or one object per layer type). `layer_type` ("full_attention") selects among the latter.
// UNIMPLEMENTED for an unknown rope type or option.
absl::StatusOr<RopeConfig> ReadHfRope(const ConfigReader& config, std::string_view layer_type,
                                      double default_theta);

// Reads the keys ARCH.rope.* and the tensors rope_freqs, rope_factors_long and rope_factors_short.
absl::StatusOr<RopeConfig> ReadGgufRope(const WeightsFile& file, const ConfigReader& metadata,
                                        std::string_view arch);

// `max_positions` is the checkpoint's context length (LongRoPE's attention factor uses it).
absl::StatusOr<RopeSpec> BuildRope(const RopeConfig& config, int32_t head_dim, bool interleaved,
                                   int32_t max_positions);

}  // namespace longstride::model

#include "model/families/rope_tables.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace longstride::model {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

// Options of a rope object that change nothing here or are read by ReadHfScaling.
constexpr std::string_view kKnownOptions[] = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
    "mscale",
    "mscale_all_dim",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "partial_rotary_factor",
    "finetuned",
};

absl::StatusOr<RopeScaling> ScalingByName(std::string_view name, const std::string& place) {
  if (name == "default" || name == "none") return RopeScaling::kNone;
  if (name == "linear") return RopeScaling::kLinear;
  if (name == "llama3") return RopeScaling::kLlama3;
  if (name == "yarn") return RopeScaling::kYarn;
  if (name == "longrope" || name == "su") return RopeScaling::kLongRope;
  return absl::UnimplementedError(
      StrCat(place, " is \"", name,
             "\", a rotary scaling that is not supported; supported are default, linear, llama3, "
             "yarn and longrope"));
}

// One rope object; `config` is what it stands in.
absl::Status ReadHfScaling(const ConfigReader& rope, const ConfigReader& config, RopeConfig* out) {
  for (const std::string& key : rope.Keys()) {
    if (std::find(std::begin(kKnownOptions), std::end(kKnownOptions), key) ==
        std::end(kKnownOptions)) {
      return absl::UnimplementedError(
          StrCat(rope.Place(key), " is a rotary option that is not supported"));
    }
  }
  const std::string_view type_key = rope.Has("rope_type") ? "rope_type" : "type";
  ASSIGN_OR_RETURN(const std::string type, rope.StringOr(type_key, "default"));
  ASSIGN_OR_RETURN(out->scaling, ScalingByName(type, rope.Place(type_key)));
  ASSIGN_OR_RETURN(out->theta, rope.NumberOr("rope_theta", out->theta));
  ASSIGN_OR_RETURN(out->partial_rotary_factor,
                   rope.NumberOr("partial_rotary_factor", out->partial_rotary_factor));
  if (out->scaling == RopeScaling::kNone) return absl::OkStatus();
  if (out->scaling != RopeScaling::kLongRope) {
    ASSIGN_OR_RETURN(out->factor, rope.Number("factor"));
  } else {
    ASSIGN_OR_RETURN(out->factor, rope.NumberOr("factor", 0));  // 0: by the context lengths
  }
  // A value beside the rope object (Phi-3) wins over the one in it; the context length is the last
  // resort.
  ASSIGN_OR_RETURN(out->original_max_positions, config.NumberOr("max_position_embeddings", 0));
  ASSIGN_OR_RETURN(out->original_max_positions,
                   rope.NumberOr("original_max_position_embeddings", out->original_max_positions));
  ASSIGN_OR_RETURN(out->original_max_positions, config.NumberOr("original_max_position_embeddings",
                                                                out->original_max_positions));
  if (rope.Has("attention_factor")) {
    ASSIGN_OR_RETURN(out->attention_factor, rope.Number("attention_factor"));
  }
  if (rope.Has("mscale") && rope.Has("mscale_all_dim")) {
    ASSIGN_OR_RETURN(out->mscale, rope.Number("mscale"));
    ASSIGN_OR_RETURN(out->mscale_all_dim, rope.Number("mscale_all_dim"));
  }
  ASSIGN_OR_RETURN(out->beta_fast, rope.NumberOr("beta_fast", out->beta_fast));
  ASSIGN_OR_RETURN(out->beta_slow, rope.NumberOr("beta_slow", out->beta_slow));
  ASSIGN_OR_RETURN(out->truncate, rope.BoolOr("truncate", out->truncate));
  if (out->scaling == RopeScaling::kLlama3) {
    ASSIGN_OR_RETURN(out->low_freq_factor, rope.Number("low_freq_factor"));
    ASSIGN_OR_RETURN(out->high_freq_factor, rope.Number("high_freq_factor"));
  }
  if (out->scaling == RopeScaling::kLongRope) {
    ASSIGN_OR_RETURN(out->short_factors, rope.Numbers("short_factor"));
    ASSIGN_OR_RETURN(out->long_factors, rope.Numbers("long_factor"));
  }
  return absl::OkStatus();
}

double YarnScale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// cos and sin are multiplied by this.
double AttentionFactor(const RopeConfig& config, int32_t max_positions) {
  if (config.attention_factor.has_value()) return *config.attention_factor;
  if (config.scaling == RopeScaling::kYarn) {
    if (config.mscale.value_or(0) != 0 && config.mscale_all_dim.value_or(0) != 0) {
      return YarnScale(config.factor, *config.mscale) /
             YarnScale(config.factor, *config.mscale_all_dim);
    }
    return YarnScale(config.factor, 1.0);
  }
  if (config.scaling == RopeScaling::kLongRope) {
    const double factor =
        config.factor > 0 ? config.factor : max_positions / config.original_max_positions;
    if (factor <= 1.0) return 1.0;
    return std::sqrt(1.0 + std::log(factor) / std::log(config.original_max_positions));
  }
  return 1.0;
}

void ScaleLlama3(const RopeConfig& config, std::vector<double>* freqs) {
  const double low_wavelength = config.original_max_positions / config.low_freq_factor;
  const double high_wavelength = config.original_max_positions / config.high_freq_factor;
  for (double& freq : *freqs) {
    const double wavelength = kTwoPi / freq;
    if (wavelength < high_wavelength) continue;
    // Llama 4 has no band in between: both limits are the same.
    if (wavelength > low_wavelength || low_wavelength == high_wavelength) {
      freq /= config.factor;
      continue;
    }
    const double smooth = (config.original_max_positions / wavelength - config.low_freq_factor) /
                          (config.high_freq_factor - config.low_freq_factor);
    freq = (1.0 - smooth) * freq / config.factor + smooth * freq;
  }
}

void ScaleYarn(const RopeConfig& config, int32_t rotary_dim, std::vector<double>* freqs) {
  // The (fractional) index of the frequency that turns `rotations` times over the original length.
  const auto correction = [&](double rotations) {
    return rotary_dim * std::log(config.original_max_positions / (rotations * kTwoPi)) /
           (2.0 * std::log(config.theta));
  };
  double low = correction(config.beta_fast);
  double high = correction(config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, rotary_dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < freqs->size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double freq = (*freqs)[i];
    (*freqs)[i] = freq / config.factor * ramp + freq * (1.0 - ramp);
  }
}

RopeTable Rounded(const std::vector<double>& freqs, bool interleaved, double scale) {
  RopeTable table;
  table.inv_freq.assign(freqs.begin(), freqs.end());
  table.interleaved = interleaved;
  table.scale = static_cast<float>(scale);
  return table;
}

absl::Status CheckRope(const RopeConfig& config, int32_t rotary_dim, int32_t head_dim) {
  const bool uses_original = config.scaling == RopeScaling::kLlama3 ||
                             config.scaling == RopeScaling::kYarn ||
                             config.scaling == RopeScaling::kLongRope;
  if (!(config.theta > 1.0) || !(config.factor >= 0.0) ||
      (config.factor == 0.0 && config.scaling != RopeScaling::kLongRope) ||
      (uses_original && !(config.original_max_positions > 1.0)) || !(config.beta_fast > 0.0) ||
      !(config.beta_slow > 0.0) || !(config.low_freq_factor > 0.0) ||
      !(config.high_freq_factor >= config.low_freq_factor)) {
    return absl::InvalidArgumentError(
        StrCat("the checkpoint's rotary embedding has a base of ", config.theta, ", a factor of ",
               config.factor, " and an original length of ", config.original_max_positions,
               "; all must be positive and the base above 1"));
  }
  if (rotary_dim < 2 || rotary_dim > head_dim || rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        StrCat("the checkpoint rotates ", rotary_dim, " of ", head_dim,
               " channels of a head; an even number of 2 to ", head_dim, " is allowed"));
  }
  return absl::OkStatus();
}

absl::Status CheckFactors(const std::vector<double>& factors, size_t frequencies,
                          std::string_view what) {
  if (factors.size() != frequencies) {
    return absl::InvalidArgumentError(StrCat("the checkpoint's ", what, " has ", factors.size(),
                                             " values; the rotary embedding has ", frequencies,
                                             " frequencies"));
  }
  for (const double factor : factors) {
    if (!(factor > 0.0)) {
      return absl::InvalidArgumentError(
          StrCat("the checkpoint's ", what, " has a value of ", factor, "; all must be positive"));
    }
  }
  return absl::OkStatus();
}

// A small float32 tensor of a GGUF file; empty where absent.
absl::StatusOr<std::vector<double>> FloatTensor(const WeightsFile& file, std::string_view name) {
  const auto view = file.Tensor(name);
  if (absl::IsNotFound(view.status())) return std::vector<double>();
  RETURN_IF_ERROR(view.status());
  if (view->dtype != kernels::DType::kF32 || view->rank != 1) {
    return absl::InvalidArgumentError(StrCat("tensor \"", name, "\" must be a float32 vector"));
  }
  const auto* values = view->ptr<const float>();
  return std::vector<double>(values, values + view->shape[0]);
}

// YaRN's keys. Converters write the attention factor as it stands in config.json: a value that is
// neither the rule's nor 1 has no agreed meaning.
absl::Status ReadGgufYarn(const ConfigReader& metadata, const std::string& scaling,
                          RopeConfig* out) {
  ASSIGN_OR_RETURN(const double ext_factor, metadata.NumberOr(scaling + "yarn_ext_factor", 1.0));
  const double by_rule = YarnScale(out->factor, 1.0);
  ASSIGN_OR_RETURN(const double given, metadata.NumberOr(scaling + "yarn_attn_factor", by_rule));
  ASSIGN_OR_RETURN(const double log_multiplier,
                   metadata.NumberOr(scaling + "yarn_log_multiplier", 0.0));
  if (ext_factor != 1.0 || log_multiplier != 0.0 ||
      (given != 1.0 && std::fabs(given - by_rule) > 1e-3)) {
    return absl::UnimplementedError(StrCat("the GGUF file's YaRN options (ext_factor ", ext_factor,
                                           ", attn_factor ", given, ", log_multiplier ",
                                           log_multiplier, ") are not supported; expected 1, ",
                                           by_rule, " and 0"));
  }
  ASSIGN_OR_RETURN(out->beta_fast, metadata.NumberOr(scaling + "yarn_beta_fast", 32.0));
  ASSIGN_OR_RETURN(out->beta_slow, metadata.NumberOr(scaling + "yarn_beta_slow", 1.0));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RopeConfig> ReadHfRope(const ConfigReader& config, std::string_view layer_type,
                                      double default_theta) {
  RopeConfig out;
  ASSIGN_OR_RETURN(out.theta, config.NumberOr("rope_theta", default_theta));
  ASSIGN_OR_RETURN(out.partial_rotary_factor, config.NumberOr("partial_rotary_factor", 1.0));
  const std::string_view key = config.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!config.Has(key)) return out;
  ASSIGN_OR_RETURN(ConfigReader rope, config.Object(key));
  bool nested = false;
  for (const std::string& name : rope.Keys()) {
    nested |= std::string_view(name).ends_with("_attention");
  }
  if (nested) {
    if (!rope.Has(layer_type)) return out;
    ASSIGN_OR_RETURN(rope, rope.Object(layer_type));
  }
  RETURN_IF_ERROR(ReadHfScaling(rope, config, &out));
  return out;
}

absl::StatusOr<RopeConfig> ReadGgufRope(const WeightsFile& file, const ConfigReader& metadata,
                                        std::string_view arch) {
  RopeConfig out;
  const std::string rope = StrCat(arch, ".rope.");
  const std::string scaling = StrCat(rope, "scaling.");
  ASSIGN_OR_RETURN(out.theta, metadata.NumberOr(rope + "freq_base", 10000.0));
  ASSIGN_OR_RETURN(const int64_t rotary_dim, metadata.IntOr(rope + "dimension_count", 0, 0, 65536));
  out.rotary_dim = static_cast<int32_t>(rotary_dim);
  ASSIGN_OR_RETURN(const std::string type, metadata.StringOr(scaling + "type", "linear"));
  ASSIGN_OR_RETURN(out.scaling, ScalingByName(type, metadata.Place(scaling + "type")));
  ASSIGN_OR_RETURN(out.factor, metadata.NumberOr(scaling + "factor", 0.0));
  if (out.factor == 0.0) {
    ASSIGN_OR_RETURN(out.factor, metadata.NumberOr(rope + "scale_linear", 1.0));
    if (out.factor == 0.0) out.factor = 1.0;
  }
  if (out.scaling == RopeScaling::kLinear && out.factor == 1.0) out.scaling = RopeScaling::kNone;
  ASSIGN_OR_RETURN(out.original_max_positions,
                   metadata.NumberOr(StrCat(arch, ".context_length"), 0.0));
  ASSIGN_OR_RETURN(
      out.original_max_positions,
      metadata.NumberOr(scaling + "original_context_length", out.original_max_positions));
  if (out.scaling == RopeScaling::kYarn) RETURN_IF_ERROR(ReadGgufYarn(metadata, scaling, &out));
  if (metadata.Has(scaling + "attn_factor")) {
    ASSIGN_OR_RETURN(const double attention, metadata.Number(scaling + "attn_factor"));
    const double base = out.scaling == RopeScaling::kYarn ? YarnScale(out.factor, 1.0) : 1.0;
    out.attention_factor = attention * base;
  }
  if (metadata.Has(scaling + "alpha")) {
    return absl::UnimplementedError(
        StrCat(metadata.Place(scaling + "alpha"), " is a rotary option that is not supported"));
  }
  ASSIGN_OR_RETURN(out.divisors, FloatTensor(file, "rope_freqs.weight"));
  ASSIGN_OR_RETURN(out.long_factors, FloatTensor(file, "rope_factors_long.weight"));
  ASSIGN_OR_RETURN(out.short_factors, FloatTensor(file, "rope_factors_short.weight"));
  // Phi-3 files carry the tensors without naming the scaling.
  if (!out.long_factors.empty() || !out.short_factors.empty()) {
    out.scaling = RopeScaling::kLongRope;
    out.factor = 0.0;
  }
  return out;
}

absl::StatusOr<RopeSpec> BuildRope(const RopeConfig& config, int32_t head_dim, bool interleaved,
                                   int32_t max_positions) {
  if (!(config.partial_rotary_factor > 0.0) || config.partial_rotary_factor > 1.0) {
    return absl::InvalidArgumentError(StrCat("the checkpoint's partial_rotary_factor is ",
                                             config.partial_rotary_factor,
                                             "; above 0 to 1 is allowed"));
  }
  const auto rotary_dim = config.rotary_dim > 0
                              ? config.rotary_dim
                              : static_cast<int32_t>(head_dim * config.partial_rotary_factor);
  RETURN_IF_ERROR(CheckRope(config, rotary_dim, head_dim));
  std::vector<double> freqs;
  for (int32_t i = 0; i < rotary_dim; i += 2) {
    freqs.push_back(std::pow(config.theta, -static_cast<double>(i) / rotary_dim));
  }
  if (!config.divisors.empty()) {
    RETURN_IF_ERROR(CheckFactors(config.divisors, freqs.size(), "rope_freqs tensor"));
    for (size_t i = 0; i < freqs.size(); ++i) freqs[i] /= config.divisors[i];
  }
  const double scale = AttentionFactor(config, max_positions);
  if (!std::isfinite(scale) || scale <= 0.0) {
    return absl::InvalidArgumentError("the checkpoint's rotary attention factor is not positive");
  }
  RopeSpec spec;
  if (config.scaling == RopeScaling::kLongRope) {
    for (const auto* factors : {&config.short_factors, &config.long_factors}) {
      RETURN_IF_ERROR(CheckFactors(*factors, freqs.size(), "list of LongRoPE factors"));
      std::vector<double> scaled = freqs;
      for (size_t i = 0; i < freqs.size(); ++i) scaled[i] /= (*factors)[i];
      spec.variants.push_back(Rounded(scaled, interleaved, scale));
    }
    spec.variant_lengths = {static_cast<int32_t>(std::min(config.original_max_positions, 2e9))};
    return spec;
  }
  if (config.scaling == RopeScaling::kLinear) {
    for (double& freq : freqs) freq /= config.factor;
  } else if (config.scaling == RopeScaling::kLlama3) {
    ScaleLlama3(config, &freqs);
  } else if (config.scaling == RopeScaling::kYarn) {
    ScaleYarn(config, rotary_dim, &freqs);
  }
  spec.variants.push_back(Rounded(freqs, interleaved, scale));
  return spec;
}

}  // namespace longstride::model

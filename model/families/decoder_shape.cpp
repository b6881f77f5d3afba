#include "model/families/decoder_shape.h"

#include <cmath>

#include "model/families/weight_binder.h"

namespace longstride::model {
namespace {

using kernels::Activation;

// As kMaxLayers and kMaxPositions.
constexpr int64_t kMaxDim = 1 << 20;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxVocab = 1 << 24;

absl::Status ReadDim(const ConfigReader& config, std::string_view key, int32_t fallback,
                     int64_t max, int32_t* out) {
  if (fallback > 0 && !config.Has(key)) {
    *out = fallback;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const int64_t value, config.Int(key, 1, max));
  *out = static_cast<int32_t>(value);
  return absl::OkStatus();
}

absl::Status CheckShape(const DecoderShape& shape) {
  if (shape.num_heads % shape.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        StrCat("the checkpoint has ", shape.num_heads, " attention heads and ", shape.num_kv_heads,
               " key/value heads; the first must be a multiple of the second"));
  }
  if (!(shape.norm_eps >= 0.0f) || shape.norm_eps > 1.0f) {
    return absl::InvalidArgumentError(
        StrCat("the checkpoint's norm epsilon is ", shape.norm_eps, "; 0 to 1 is allowed"));
  }
  return absl::OkStatus();
}

// One value for all layers: some GGUF files write a list.
absl::Status ReadUniform(const ConfigReader& metadata, const std::string& key, int64_t fallback,
                         int64_t max, int32_t* out) {
  std::vector<int64_t> values = {fallback};
  if (metadata.Has(key) || fallback == 0) {
    ASSIGN_OR_RETURN(values, metadata.Ints(key));
  }
  if (values.empty() || values[0] < 1 || values[0] > max) {
    return absl::InvalidArgumentError(
        StrCat(metadata.Place(key), " is out of range; 1 to ", max, " is allowed"));
  }
  for (const int64_t value : values) {
    if (value != values[0]) {
      return absl::UnimplementedError(
          StrCat(metadata.Place(key), " differs between layers, which is not supported"));
    }
  }
  *out = static_cast<int32_t>(values[0]);
  return absl::OkStatus();
}

}  // namespace

absl::Status RefuseQuantization(const ConfigReader& config) {
  if (!config.Has("quantization_config")) return absl::OkStatus();
  std::string method = "unknown";
  if (config.IsObject("quantization_config")) {
    ASSIGN_OR_RETURN(const ConfigReader quantization, config.Object("quantization_config"));
    ASSIGN_OR_RETURN(method, quantization.StringOr("quant_method", method));
  }
  return absl::UnimplementedError(
      StrCat("the checkpoint's weights are quantised by the method \"", method,
             "\", which is not read from safetensors; use a GGUF file or the unquantised folder"));
}

absl::Status CheckQuantization(const ConfigReader& config) {
  if (!config.IsObject("quantization_config")) return RefuseQuantization(config);
  ASSIGN_OR_RETURN(const ConfigReader quantization, config.Object("quantization_config"));
  ASSIGN_OR_RETURN(const std::string method, quantization.StringOr("quant_method", "unknown"));
  std::string_view key, wanted;
  if (method == "fp8") {
    key = "fmt", wanted = "e4m3";
  } else if (method == "compressed-tensors") {
    key = "format", wanted = "float-quantized";
  } else {
    return RefuseQuantization(config);
  }
  ASSIGN_OR_RETURN(const std::string format, quantization.StringOr(key, wanted));
  if (format != wanted) {
    return absl::UnimplementedError(
        StrCat(quantization.Place(key), " is \"", format.substr(0, 80), "\"; only ", wanted,
               " is read from safetensors: use a GGUF file or the unquantised folder"));
  }
  if (!quantization.Has("weight_block_size")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<int64_t> block, quantization.Ints("weight_block_size"));
  if (block == std::vector<int64_t>{kFp8Block, kFp8Block}) return absl::OkStatus();
  return absl::UnimplementedError(
      StrCat(quantization.Place("weight_block_size"),
             " is not [128, 128], the only size of blocks that is read"));
}

absl::Status RequireBool(const ConfigReader& config, std::string_view key, bool allowed) {
  ASSIGN_OR_RETURN(const bool value, config.BoolOr(key, allowed));
  if (value == allowed) return absl::OkStatus();
  return absl::UnimplementedError(StrCat(config.Place(key), " is ", value ? "true" : "false",
                                         ", a variant of the architecture that is not supported"));
}

absl::Status RefuseKeys(const ConfigReader& config, const std::vector<std::string_view>& keys) {
  for (const std::string_view key : keys) {
    if (config.Has(key)) {
      return absl::UnimplementedError(StrCat(
          config.Place(key), " is set, a variant of the architecture that is not supported"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<DecoderShape> ReadHfShape(const ConfigReader& config, const HfKeys& keys) {
  DecoderShape shape = keys.defaults;
  const DecoderShape& defaults = keys.defaults;
  RETURN_IF_ERROR(
      ReadDim(config, "num_hidden_layers", defaults.num_layers, kMaxLayers, &shape.num_layers));
  RETURN_IF_ERROR(ReadDim(config, "hidden_size", defaults.dim, kMaxDim, &shape.dim));
  RETURN_IF_ERROR(ReadDim(config, keys.num_heads, defaults.num_heads, kMaxHeads, &shape.num_heads));
  RETURN_IF_ERROR(ReadDim(config, keys.num_kv_heads,
                          defaults.num_kv_heads > 0 ? defaults.num_kv_heads : shape.num_heads,
                          kMaxHeads, &shape.num_kv_heads));
  const int32_t derived_head_dim = shape.dim / shape.num_heads;
  RETURN_IF_ERROR(ReadDim(config, "head_dim",
                          defaults.head_dim > 0 ? defaults.head_dim : derived_head_dim, kMaxHeadDim,
                          &shape.head_dim));
  RETURN_IF_ERROR(ReadDim(config, keys.ffn_dim, defaults.ffn_dim, kMaxDim, &shape.ffn_dim));
  RETURN_IF_ERROR(ReadDim(config, "vocab_size", defaults.vocab_size, kMaxVocab, &shape.vocab_size));
  RETURN_IF_ERROR(ReadDim(config, "max_position_embeddings", defaults.max_positions, kMaxPositions,
                          &shape.max_positions));
  ASSIGN_OR_RETURN(const double eps, config.NumberOr(keys.norm_eps, defaults.norm_eps));
  shape.norm_eps = static_cast<float>(eps);
  ASSIGN_OR_RETURN(shape.tied_embedding,
                   config.BoolOr("tie_word_embeddings", defaults.tied_embedding));
  RETURN_IF_ERROR(CheckShape(shape));
  return shape;
}

absl::StatusOr<DecoderShape> ReadGgufShape(const WeightsFile& file, const ConfigReader& metadata,
                                           std::string_view arch) {
  DecoderShape shape;
  const std::string prefix = StrCat(arch, ".");
  RETURN_IF_ERROR(ReadDim(metadata, prefix + "block_count", 0, kMaxLayers, &shape.num_layers));
  RETURN_IF_ERROR(ReadDim(metadata, prefix + "embedding_length", 0, kMaxDim, &shape.dim));
  RETURN_IF_ERROR(
      ReadDim(metadata, prefix + "context_length", 0, kMaxPositions, &shape.max_positions));
  RETURN_IF_ERROR(
      ReadUniform(metadata, prefix + "attention.head_count", 0, kMaxHeads, &shape.num_heads));
  RETURN_IF_ERROR(ReadUniform(metadata, prefix + "attention.head_count_kv", shape.num_heads,
                              kMaxHeads, &shape.num_kv_heads));
  RETURN_IF_ERROR(
      ReadUniform(metadata, prefix + "feed_forward_length", 0, kMaxDim, &shape.ffn_dim));
  RETURN_IF_ERROR(ReadDim(metadata, prefix + "attention.key_length", shape.dim / shape.num_heads,
                          kMaxHeadDim, &shape.head_dim));
  int32_t value_dim = 0;
  RETURN_IF_ERROR(ReadDim(metadata, prefix + "attention.value_length", shape.head_dim, kMaxHeadDim,
                          &value_dim));
  if (value_dim != shape.head_dim) {
    return absl::UnimplementedError(StrCat("the checkpoint's keys have ", shape.head_dim,
                                           " channels a head and its values ", value_dim,
                                           "; only equal sizes are supported"));
  }
  const std::string rms_key = prefix + "attention.layer_norm_rms_epsilon";
  const std::string layer_key = prefix + "attention.layer_norm_epsilon";
  ASSIGN_OR_RETURN(const double eps, metadata.Number(metadata.Has(rms_key) ? rms_key : layer_key));
  shape.norm_eps = static_cast<float>(eps);
  const auto embedding = file.Tensor("token_embd.weight");
  if (!embedding.ok() || embedding->rank != 2 || embedding->shape[0] > kMaxVocab) {
    return absl::InvalidArgumentError(
        "the checkpoint has no token embedding matrix (tensor \"token_embd.weight\")");
  }
  shape.vocab_size = static_cast<int32_t>(embedding->shape[0]);
  shape.tied_embedding = !file.Has("output.weight");
  RETURN_IF_ERROR(CheckShape(shape));
  return shape;
}

absl::StatusOr<Activation> ReadActivation(const ConfigReader& config, std::string_view key,
                                          std::string_view fallback) {
  ASSIGN_OR_RETURN(const std::string name, config.StringOr(key, fallback));
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::kGeluTanh;
  if (name == "gelu") return Activation::kGelu;
  return absl::UnimplementedError(
      StrCat(config.Place(key), " is \"", name,
             "\", which is not supported; supported are silu, gelu, gelu_pytorch_tanh"));
}

absl::StatusOr<float> ReadSoftcap(const ConfigReader& config, std::string_view key,
                                  double fallback) {
  if (config.IsNull(key)) return 0.0f;
  ASSIGN_OR_RETURN(const double value, config.NumberOr(key, fallback));
  if (value < 0.0) {
    return absl::InvalidArgumentError(
        StrCat(config.Place(key), " is ", value, "; 0 (off) or a positive number is allowed"));
  }
  return static_cast<float>(value);
}

absl::StatusOr<int32_t> ReadWindow(const ConfigReader& config, std::string_view key,
                                   int32_t fallback) {
  if (config.IsNull(key)) return 0;
  ASSIGN_OR_RETURN(const int64_t value, config.IntOr(key, fallback, 0, kMaxPositions));
  return static_cast<int32_t>(value);
}

absl::StatusOr<std::vector<LayerKind>> ReadLayerTypes(
    const ConfigReader& config, int32_t num_layers,
    const std::function<LayerKind(int32_t)>& derived) {
  std::vector<LayerKind> kinds;
  if (!config.Has("layer_types")) {
    for (int32_t i = 0; i < num_layers; ++i) kinds.push_back(derived(i));
    return kinds;
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, config.Strings("layer_types"));
  if (static_cast<int64_t>(names.size()) != num_layers) {
    return absl::InvalidArgumentError(StrCat(config.Place("layer_types"), " has ", names.size(),
                                             " entries for ", num_layers, " layers"));
  }
  for (const std::string& name : names) {
    if (name == "full_attention") {
      kinds.push_back(LayerKind::kFull);
    } else if (name == "sliding_attention") {
      kinds.push_back(LayerKind::kSliding);
    } else if (name == "chunked_attention") {
      kinds.push_back(LayerKind::kChunked);
    } else {
      return absl::UnimplementedError(
          StrCat(config.Place("layer_types"), " names \"", name,
                 "\", which is not supported; supported are full_attention, sliding_attention and "
                 "chunked_attention"));
    }
  }
  return kinds;
}

absl::StatusOr<std::vector<LayerKind>> ReadGgufLayerKinds(const ConfigReader& metadata,
                                                          std::string_view arch, int32_t num_layers,
                                                          int32_t default_period) {
  const std::string key = StrCat(arch, ".attention.sliding_window_pattern");
  int64_t period = default_period;
  if (metadata.IsList(key)) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> flags, metadata.Ints(key));
    if (static_cast<int64_t>(flags.size()) != num_layers) {
      return absl::InvalidArgumentError(StrCat(metadata.Place(key), " has ", flags.size(),
                                               " entries for ", num_layers, " layers"));
    }
    std::vector<LayerKind> kinds;
    for (const int64_t flag : flags) {
      kinds.push_back(flag != 0 ? LayerKind::kSliding : LayerKind::kFull);
    }
    return kinds;
  }
  ASSIGN_OR_RETURN(period, metadata.IntOr(key, period, 0, kMaxLayers));
  std::vector<LayerKind> kinds;
  for (int32_t i = 0; i < num_layers; ++i) {
    const bool sliding = period == 0 || (i + 1) % period != 0;
    kinds.push_back(sliding ? LayerKind::kSliding : LayerKind::kFull);
  }
  return kinds;
}

}  // namespace longstride::model

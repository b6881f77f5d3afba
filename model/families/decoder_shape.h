// What the families share in reading a checkpoint's configuration, from either format: a decoder's
// dimensions, the options that more than one architecture has, and refusals of those that are not
// computed.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "kernels/op_params.h"
#include "model/families/config_reader.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

// Far above every known checkpoint; they keep products of two dimensions inside 64 bits.
inline constexpr int64_t kMaxLayers = 1024;
inline constexpr int64_t kMaxPositions = int64_t{1} << 30;

struct DecoderShape {
  int32_t num_layers = 0;
  int32_t dim = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t ffn_dim = 0;
  int32_t vocab_size = 0;
  int32_t max_positions = 0;
  float norm_eps = 1e-6f;
  bool tied_embedding = false;
};

// Keys of config.json and what an absent one means: the architecture's published defaults. A zero
// dimension means that the key must be there.
struct HfKeys {
  DecoderShape defaults;
  std::string_view num_heads = "num_attention_heads";
  std::string_view num_kv_heads = "num_key_value_heads";
  std::string_view ffn_dim = "intermediate_size";
  std::string_view norm_eps = "rms_norm_eps";
};

// Dimensions of config.json (or of its text_config). INVALID_ARGUMENT; UNIMPLEMENTED where the
// folder's weights are quantised in a way that is not read.
absl::StatusOr<DecoderShape> ReadHfShape(const ConfigReader& config, const HfKeys& keys);

// Dimensions of the keys ARCH.*; the vocabulary's size is that of the embedding.
absl::StatusOr<DecoderShape> ReadGgufShape(const WeightsFile& file, const ConfigReader& metadata,
                                           std::string_view arch);

// UNIMPLEMENTED if the folder has a quantization_config (families that read one ask before).
absl::Status RefuseQuantization(const ConfigReader& config);
// UNIMPLEMENTED if it has one that WeightBinder::Matrix does not decode: other than "fp8" and
// "compressed-tensors" of e4m3 weights, or other blocks than 128 x 128.
absl::Status CheckQuantization(const ConfigReader& config);
// UNIMPLEMENTED if a key is present with a value other than `allowed`.
absl::Status RequireBool(const ConfigReader& config, std::string_view key, bool allowed);
// UNIMPLEMENTED if a key is present (and not null).
absl::Status RefuseKeys(const ConfigReader& config, const std::vector<std::string_view>& keys);

// The activation named by `key`; UNIMPLEMENTED for one that is not computed.
absl::StatusOr<kernels::Activation> ReadActivation(const ConfigReader& config, std::string_view key,
                                                   std::string_view fallback);

// A soft-cap: `fallback` where the key is absent, 0 (off) where it is null. INVALID_ARGUMENT below
// 0.
absl::StatusOr<float> ReadSoftcap(const ConfigReader& config, std::string_view key,
                                  double fallback);

// A window in tokens, the query's own included: `fallback` where the key is absent, 0 (none) where
// it is null.
absl::StatusOr<int32_t> ReadWindow(const ConfigReader& config, std::string_view key,
                                   int32_t fallback);

enum class LayerKind : uint8_t { kFull, kSliding, kChunked };

// "layer_types", or `derived(layer)` where the key is absent. UNIMPLEMENTED for another kind.
absl::StatusOr<std::vector<LayerKind>> ReadLayerTypes(
    const ConfigReader& config, int32_t num_layers,
    const std::function<LayerKind(int32_t)>& derived);
// ARCH.attention.sliding_window_pattern of a GGUF file (a flag per layer, or a period), or a
// period of `default_period`: layer i is full where (i + 1) mod period is 0.
absl::StatusOr<std::vector<LayerKind>> ReadGgufLayerKinds(const ConfigReader& metadata,
                                                          std::string_view arch, int32_t num_layers,
                                                          int32_t default_period);

}  // namespace longstride::model

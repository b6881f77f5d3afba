// Qwen2 and Qwen2.5: Llama's shape with biases on queries, keys and values. A window, where it is
// switched on, belongs to the layers from max_window_layers on; most checkpoints name a window and
// leave it off. The 1M checkpoints have dual chunk attention.
#include "model/families/dual_chunk.h"
#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

absl::StatusOr<ModelSpec> LoadHf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  ASSIGN_OR_RETURN(const DecoderShape shape,
                   ReadHfShape(config, {.defaults = {.max_positions = 32768}}));
  ModelSpec spec = MakeSpec("qwen2", shape);
  RETURN_IF_ERROR(SetQwenLayers(config, &spec));
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "full_attention", 10000.0));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  RETURN_IF_ERROR(ReadDualChunk(config, rope, &spec));
  TensorNames names = HfNames("model.");
  names.qkv_bias = BiasRule::kRequired;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {"rotary_emb.inv_freq"}));
  return spec;
}

absl::StatusOr<ModelSpec> LoadGguf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader metadata,
                   ConfigReader::Parse(file.metadata_json(), "GGUF metadata"));
  RETURN_IF_ERROR(RefuseKeys(metadata, {"qwen2.attention.sliding_window"}));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadGgufShape(file, metadata, "qwen2"));
  ModelSpec spec = MakeSpec("qwen2", shape);
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadGgufRope(file, metadata, "qwen2"));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  TensorNames names = GgufNames();
  names.qkv_bias = BiasRule::kRequired;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
  return spec;
}

}  // namespace

absl::Status SetQwenLayers(const ConfigReader& config, ModelSpec* spec) {
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_act", "silu"));
  for (LayerSpec& layer : spec->layers) layer.mlp.activation = activation;
  constexpr int32_t kDefaultWindow = 4096;
  constexpr int64_t kDefaultFullLayers = 28;
  ASSIGN_OR_RETURN(const bool use_window, config.BoolOr("use_sliding_window", false));
  ASSIGN_OR_RETURN(int32_t window, ReadWindow(config, "sliding_window", kDefaultWindow));
  if (!use_window) window = 0;
  ASSIGN_OR_RETURN(const int64_t full_layers,
                   config.IntOr("max_window_layers", kDefaultFullLayers, 0, 1 << 20));
  ASSIGN_OR_RETURN(
      const std::vector<LayerKind> kinds,
      ReadLayerTypes(config, static_cast<int32_t>(spec->layers.size()), [&](int32_t i) {
        return window > 0 && i >= full_layers ? LayerKind::kSliding : LayerKind::kFull;
      }));
  return SetWindows(kinds, window, spec);
}

absl::StatusOr<ModelSpec> LoadQwen2(const WeightsFile& file) {
  return file.format() == CheckpointFormat::kGguf ? LoadGguf(file) : LoadHf(file);
}

}  // namespace longstride::model

// Cohere Command R7B (Cohere2): attention and MLP read the same LayerNorm (without bias) and are
// summed; three sliding layers with interleaved RoPE to one full layer without any.
#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

constexpr int32_t kPeriod = 4;
constexpr double kLogitScale = 0.0625;

absl::Status SetLayers(const std::vector<LayerKind>& kinds, int32_t window, ModelSpec* spec) {
  spec->norm = NormKind::kLayerNorm;
  spec->parallel_block = true;
  for (size_t i = 0; i < kinds.size(); ++i) {
    spec->layers[i].attention.rope = kinds[i] == LayerKind::kSliding ? 0 : -1;
  }
  return SetWindows(kinds, window, spec);
}

absl::StatusOr<ModelSpec> LoadHf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  RETURN_IF_ERROR(RequireBool(config, "use_qk_norm", false));
  const HfKeys keys = {
      .defaults = {.max_positions = 8192, .norm_eps = 1e-5f, .tied_embedding = true},
      .norm_eps = "layer_norm_eps"};
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadHfShape(config, keys));
  ModelSpec spec = MakeSpec("cohere2", shape);
  ASSIGN_OR_RETURN(const int64_t period, config.IntOr("sliding_window_pattern", kPeriod, 1, 1024));
  ASSIGN_OR_RETURN(const std::vector<LayerKind> kinds,
                   ReadLayerTypes(config, shape.num_layers, [&](int32_t i) {
                     return (i + 1) % period != 0 ? LayerKind::kSliding : LayerKind::kFull;
                   }));
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(config, "sliding_window", 4096));
  RETURN_IF_ERROR(SetLayers(kinds, window, &spec));
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_act", "silu"));
  for (LayerSpec& layer : spec.layers) layer.mlp.activation = activation;
  ASSIGN_OR_RETURN(const double logit_scale, config.NumberOr("logit_scale", kLogitScale));
  spec.logit_scale = static_cast<float>(logit_scale);
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "sliding_attention", 10000.0));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/true, &spec));
  TensorNames names = HfNames("model.");
  names.mlp_norm.clear();
  ASSIGN_OR_RETURN(const bool bias, config.BoolOr("attention_bias", false));
  names.qkv_bias = names.wo_bias = bias ? BiasRule::kRequired : BiasRule::kNone;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {"rotary_emb.inv_freq"}));
  return spec;
}

absl::StatusOr<ModelSpec> LoadGguf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader metadata,
                   ConfigReader::Parse(file.metadata_json(), "GGUF metadata"));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadGgufShape(file, metadata, "cohere2"));
  ModelSpec spec = MakeSpec("cohere2", shape);
  ASSIGN_OR_RETURN(const std::vector<LayerKind> kinds,
                   ReadGgufLayerKinds(metadata, "cohere2", shape.num_layers, kPeriod));
  ASSIGN_OR_RETURN(const int32_t window,
                   ReadWindow(metadata, "cohere2.attention.sliding_window", 0));
  RETURN_IF_ERROR(SetLayers(kinds, window, &spec));
  ASSIGN_OR_RETURN(const double logit_scale, metadata.Number("cohere2.logit_scale"));
  spec.logit_scale = static_cast<float>(logit_scale);
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadGgufRope(file, metadata, "cohere2"));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/true, &spec));
  TensorNames names = GgufNames();
  names.mlp_norm.clear();
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, /*tied=*/true, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
  return spec;
}

}  // namespace

absl::StatusOr<ModelSpec> LoadCohere2(const WeightsFile& file) {
  return file.format() == CheckpointFormat::kGguf ? LoadGguf(file) : LoadHf(file);
}

}  // namespace longstride::model

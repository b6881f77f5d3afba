// OLMo 2: no norm before a branch but one after it, RMSNorm over the whole width of queries and
// keys before the head split. GGUF files of this architecture also carry OLMo 3, which they tell by
// a window. Source: arXiv 2501.00656.
#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

absl::StatusOr<ModelSpec> LoadGguf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader metadata,
                   ConfigReader::Parse(file.metadata_json(), "GGUF metadata"));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadGgufShape(file, metadata, "olmo2"));
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(metadata, "olmo2.attention.sliding_window", 0));
  ModelSpec spec = MakeSpec(window > 0 ? "olmo3" : "olmo2", shape);
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadGgufRope(file, metadata, "olmo2"));
  std::vector<LayerKind> kinds(static_cast<size_t>(shape.num_layers), LayerKind::kFull);
  if (window > 0) {
    ASSIGN_OR_RETURN(kinds, ReadGgufLayerKinds(metadata, "olmo2", shape.num_layers, kOlmo3Period));
  }
  RETURN_IF_ERROR(SetOlmo3Layers(kinds, window, rope, shape, &spec));
  TensorNames names = GgufNames();
  names.attn_norm.clear();
  names.mlp_norm.clear();
  names.q_norm = "attn_q_norm";
  names.k_norm = "attn_k_norm";
  names.post_attn_norm = "post_attention_norm";
  names.post_mlp_norm = "post_ffw_norm";
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
  return spec;
}

absl::StatusOr<ModelSpec> LoadHf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(RefuseKeys(config, {"sliding_window", "layer_types"}));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadOlmoShape(config));
  ModelSpec spec = MakeSpec("olmo2", shape);
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "full_attention", 10000.0));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  RETURN_IF_ERROR(BindOlmoHf(config, shape, file, &spec));
  return spec;
}

}  // namespace

absl::StatusOr<DecoderShape> ReadOlmoShape(const ConfigReader& config) {
  RETURN_IF_ERROR(CheckQuantization(config));
  RETURN_IF_ERROR(RefuseKeys(config, {"clip_qkv"}));
  return ReadHfShape(config, {.defaults = {.max_positions = 2048, .norm_eps = 1e-5f}});
}

absl::Status BindOlmoHf(const ConfigReader& config, const DecoderShape& shape,
                        const WeightsFile& file, ModelSpec* spec) {
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_act", "silu"));
  for (LayerSpec& layer : spec->layers) {
    layer.attention.qk_norm = QkNorm::kFullWidth;
    layer.mlp.activation = activation;
  }
  TensorNames names = HfNames("model.");
  names.attn_norm.clear();
  names.mlp_norm.clear();
  names.q_norm = "self_attn.q_norm";
  names.k_norm = "self_attn.k_norm";
  names.post_attn_norm = "post_attention_layernorm";
  names.post_mlp_norm = "post_feedforward_layernorm";
  ASSIGN_OR_RETURN(const bool bias, config.BoolOr("attention_bias", false));
  names.qkv_bias = names.wo_bias = bias ? BiasRule::kRequired : BiasRule::kNone;
  WeightBinder binder(file, spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, spec));
  return binder.CheckAllUsed({}, {"rotary_emb.inv_freq"});
}

absl::StatusOr<ModelSpec> LoadOlmo2(const WeightsFile& file) {
  return file.format() == CheckpointFormat::kGguf ? LoadGguf(file) : LoadHf(file);
}

}  // namespace longstride::model

// Gemma 2: every other layer slides (layer 0 does), attention scores and logits are soft-capped,
// norms before and after each branch. Source: the Gemma 2 report (arXiv 2408.00118).
#include <cmath>

#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

constexpr int32_t kPeriod = 2;
constexpr int32_t kDefaultWindow = 4096;
constexpr double kAttentionSoftcap = 50.0;
constexpr double kLogitSoftcap = 30.0;

absl::Status SetLayers(const std::vector<LayerKind>& kinds, int32_t window, double attention_scalar,
                       float softcap, ModelSpec* spec) {
  if (!(attention_scalar > 0.0)) {
    return absl::InvalidArgumentError("the checkpoint's query_pre_attn_scalar is not positive");
  }
  for (LayerSpec& layer : spec->layers) {
    layer.attention.scale = static_cast<float>(1.0 / std::sqrt(attention_scalar));
    layer.attention.softcap = softcap;
    layer.mlp.activation = kernels::Activation::kGeluTanh;
  }
  spec->embedding_scale = std::sqrt(static_cast<float>(spec->dim));
  return SetWindows(kinds, window, spec);
}

absl::StatusOr<ModelSpec> LoadHf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  RETURN_IF_ERROR(RequireBool(config, "use_bidirectional_attention", false));
  const HfKeys keys = {
      .defaults = {
          .num_kv_heads = 4, .head_dim = 256, .max_positions = 8192, .tied_embedding = true}};
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadHfShape(config, keys));
  ModelSpec spec = MakeSpec("gemma2", shape);
  spec.norm_weight_offset = 1.0f;
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_activation", "gelu_pytorch_tanh"));
  if (activation != kernels::Activation::kGeluTanh) {
    return absl::UnimplementedError(
        StrCat(config.Place("hidden_activation"), " must be gelu_pytorch_tanh for this family"));
  }
  ASSIGN_OR_RETURN(const std::vector<LayerKind> kinds,
                   ReadLayerTypes(config, shape.num_layers, [](int32_t i) {
                     return (i + 1) % kPeriod != 0 ? LayerKind::kSliding : LayerKind::kFull;
                   }));
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(config, "sliding_window", kDefaultWindow));
  ASSIGN_OR_RETURN(const double scalar, config.NumberOr("query_pre_attn_scalar", 256.0));
  ASSIGN_OR_RETURN(const float softcap,
                   ReadSoftcap(config, "attn_logit_softcapping", kAttentionSoftcap));
  RETURN_IF_ERROR(SetLayers(kinds, window, scalar, softcap, &spec));
  ASSIGN_OR_RETURN(spec.logit_softcap,
                   ReadSoftcap(config, "final_logit_softcapping", kLogitSoftcap));
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "full_attention", 10000.0));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  TensorNames names = HfNames("model.");
  names.post_attn_norm = "post_attention_layernorm";
  names.mlp_norm = "pre_feedforward_layernorm";
  names.post_mlp_norm = "post_feedforward_layernorm";
  ASSIGN_OR_RETURN(const bool bias, config.BoolOr("attention_bias", false));
  names.qkv_bias = names.wo_bias = bias ? BiasRule::kRequired : BiasRule::kNone;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
  return spec;
}

absl::StatusOr<ModelSpec> LoadGguf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader metadata,
                   ConfigReader::Parse(file.metadata_json(), "GGUF metadata"));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadGgufShape(file, metadata, "gemma2"));
  ModelSpec spec = MakeSpec("gemma2", shape);  // the +1 of its norms is in the file's weights
  ASSIGN_OR_RETURN(const std::vector<LayerKind> kinds,
                   ReadGgufLayerKinds(metadata, "gemma2", shape.num_layers, kPeriod));
  ASSIGN_OR_RETURN(const int32_t window,
                   ReadWindow(metadata, "gemma2.attention.sliding_window", kDefaultWindow));
  ASSIGN_OR_RETURN(const float softcap,
                   ReadSoftcap(metadata, "gemma2.attn_logit_softcapping", kAttentionSoftcap));
  // The format has no key for query_pre_attn_scalar; the 27B alone (46 layers) departs from the
  // head size.
  constexpr int32_t kLayersOf27B = 46;
  const double scalar = shape.num_layers == kLayersOf27B
                            ? static_cast<double>(shape.dim) / shape.num_heads
                            : shape.head_dim;
  RETURN_IF_ERROR(SetLayers(kinds, window, scalar, softcap, &spec));
  ASSIGN_OR_RETURN(spec.logit_softcap,
                   ReadSoftcap(metadata, "gemma2.final_logit_softcapping", kLogitSoftcap));
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadGgufRope(file, metadata, "gemma2"));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  TensorNames names = GgufNames();
  names.post_attn_norm = "post_attention_norm";
  names.post_mlp_norm = "post_ffw_norm";
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
  return spec;
}

}  // namespace

absl::StatusOr<ModelSpec> LoadGemma2(const WeightsFile& file) {
  return file.format() == CheckpointFormat::kGguf ? LoadGguf(file) : LoadHf(file);
}

}  // namespace longstride::model

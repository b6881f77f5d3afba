// Gemma 3, text part: five sliding layers to one full layer, a rotary base of its own for each kind
// (scaling belongs to the full layers only), RMSNorm per head on queries and keys, norms before and
// after each branch. EmbeddingGemma is the same as an encoder, with half the window to either side.
// Source: the Gemma 3 report (arXiv 2503.19786), EmbeddingGemma (arXiv 2509.20354) and the
// checkpoints' configuration.
#include <cmath>

#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

constexpr int32_t kPeriod = 6;
constexpr double kGlobalTheta = 1e6;
constexpr double kLocalTheta = 1e4;

// RoPE table 0 is the full layers', table 1 the sliding ones'.
absl::Status SetLayers(const std::vector<LayerKind>& kinds, int32_t window, double attention_scalar,
                       ModelSpec* spec) {
  if (!(attention_scalar > 0.0)) {
    return absl::InvalidArgumentError("the checkpoint's query_pre_attn_scalar is not positive");
  }
  RETURN_IF_ERROR(SetWindows(kinds, window, spec));
  for (size_t i = 0; i < spec->layers.size(); ++i) {
    AttentionSpec& attention = spec->layers[i].attention;
    attention.rope = kinds[i] == LayerKind::kSliding ? 1 : 0;
    attention.qk_norm = QkNorm::kPerHead;
    attention.scale = static_cast<float>(1.0 / std::sqrt(attention_scalar));
    spec->layers[i].mlp.activation = kernels::Activation::kGeluTanh;
  }
  spec->embedding_scale = std::sqrt(static_cast<float>(spec->dim));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LayerKind>> HfKinds(const ConfigReader& config, int32_t num_layers) {
  ASSIGN_OR_RETURN(const int64_t period, config.IntOr("sliding_window_pattern", kPeriod, 1, 1024));
  return ReadLayerTypes(config, num_layers, [&](int32_t i) {
    return (i + 1) % period != 0 ? LayerKind::kSliding : LayerKind::kFull;
  });
}

// The sliding layers' table in both spellings: rope_parameters.sliding_attention, or
// rope_local_base_freq beside a rope_scaling that is the full layers' alone.
absl::StatusOr<RopeConfig> HfLocalRope(const ConfigReader& config) {
  if (config.Has("rope_parameters")) {
    ASSIGN_OR_RETURN(const ConfigReader rope, config.Object("rope_parameters"));
    if (rope.Has("sliding_attention")) {
      return ReadHfRope(config, "sliding_attention", kLocalTheta);
    }
  }
  RopeConfig local;
  ASSIGN_OR_RETURN(local.theta, config.NumberOr("rope_local_base_freq", kLocalTheta));
  return local;
}

absl::Status CheckHfVariant(const ConfigReader& config) {
  RETURN_IF_ERROR(CheckQuantization(config));
  RETURN_IF_ERROR(RefuseKeys(config, {"attn_logit_softcapping"}));
  RETURN_IF_ERROR(RequireBool(config, "attention_bias", false));
  ASSIGN_OR_RETURN(const std::string activation,
                   config.StringOr("hidden_activation", "gelu_pytorch_tanh"));
  if (activation != "gelu_pytorch_tanh") {
    return absl::UnimplementedError(StrCat(config.Place("hidden_activation"), " is \"", activation,
                                           "\"; only gelu_pytorch_tanh is supported"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelSpec> LoadHf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(ConfigReader config, ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  // Multimodal checkpoints nest the text model and write only what differs from the 4B's values.
  if (config.Has("text_config")) {
    ASSIGN_OR_RETURN(config, config.Object("text_config"));
  }
  RETURN_IF_ERROR(CheckHfVariant(config));
  const DecoderShape defaults = {.num_layers = 26,
                                 .dim = 2304,
                                 .num_heads = 8,
                                 .num_kv_heads = 4,
                                 .head_dim = 256,
                                 .ffn_dim = 9216,
                                 .vocab_size = 262208,
                                 .max_positions = 131072,
                                 .norm_eps = 1e-6f,
                                 .tied_embedding = true};
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadHfShape(config, {.defaults = defaults}));
  ModelSpec spec = MakeSpec("gemma3", shape);
  spec.norm_weight_offset = 1.0f;
  ASSIGN_OR_RETURN(const std::vector<LayerKind> kinds, HfKinds(config, shape.num_layers));
  ASSIGN_OR_RETURN(const bool both_ways, config.BoolOr("use_bidirectional_attention", false));
  spec.causal = !both_ways;
  ASSIGN_OR_RETURN(int32_t window, ReadWindow(config, "sliding_window", 4096));
  if (both_ways && window > 0) window = window / 2 + 1;
  ASSIGN_OR_RETURN(const double scalar, config.NumberOr("query_pre_attn_scalar", 256.0));
  RETURN_IF_ERROR(SetLayers(kinds, window, scalar, &spec));
  ASSIGN_OR_RETURN(spec.logit_softcap, ReadSoftcap(config, "final_logit_softcapping", 0.0));
  ASSIGN_OR_RETURN(const RopeConfig global, ReadHfRope(config, "full_attention", kGlobalTheta));
  ASSIGN_OR_RETURN(const RopeConfig local, HfLocalRope(config));
  RETURN_IF_ERROR(AddRope(global, shape, /*interleaved=*/false, &spec));
  RETURN_IF_ERROR(AddRope(local, shape, /*interleaved=*/false, &spec));
  TensorNames names = HfNames(FindHfPrefix(file));
  names.q_norm = "self_attn.q_norm";
  names.k_norm = "self_attn.k_norm";
  names.post_attn_norm = "post_attention_layernorm";
  names.mlp_norm = "pre_feedforward_layernorm";
  names.post_mlp_norm = "post_feedforward_layernorm";
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(
      binder.CheckAllUsed({"vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                           "model.multi_modal_projector.", "language_model.lm_head."},
                          {}));
  return spec;
}

absl::StatusOr<ModelSpec> LoadGguf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader metadata,
                   ConfigReader::Parse(file.metadata_json(), "GGUF metadata"));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadGgufShape(file, metadata, "gemma3"));
  ModelSpec spec = MakeSpec("gemma3", shape);  // the +1 of its norms is in the file's weights
  ASSIGN_OR_RETURN(const int32_t window,
                   ReadWindow(metadata, "gemma3.attention.sliding_window", 0));
  ASSIGN_OR_RETURN(std::vector<LayerKind> kinds,
                   ReadGgufLayerKinds(metadata, "gemma3", shape.num_layers, kPeriod));
  if (window == 0) kinds.assign(kinds.size(), LayerKind::kFull);
  // The format has no key for query_pre_attn_scalar; the 27B alone (62 layers) departs from the
  // head size.
  constexpr int32_t kLayersOf27B = 62;
  const double scalar = shape.num_layers == kLayersOf27B
                            ? static_cast<double>(shape.dim) / shape.num_heads
                            : shape.head_dim;
  RETURN_IF_ERROR(SetLayers(kinds, window, scalar, &spec));
  RETURN_IF_ERROR(RefuseKeys(metadata, {"gemma3.attn_logit_softcapping"}));
  ASSIGN_OR_RETURN(spec.logit_softcap,
                   ReadSoftcap(metadata, "gemma3.final_logit_softcapping", 0.0));
  ASSIGN_OR_RETURN(const RopeConfig global, ReadGgufRope(file, metadata, "gemma3"));
  RopeConfig local;
  local.rotary_dim = global.rotary_dim;
  ASSIGN_OR_RETURN(local.theta, metadata.NumberOr("gemma3.rope.freq_base_swa", kLocalTheta));
  RETURN_IF_ERROR(AddRope(global, shape, /*interleaved=*/false, &spec));
  RETURN_IF_ERROR(AddRope(local, shape, /*interleaved=*/false, &spec));
  TensorNames names = GgufNames();
  names.q_norm = "attn_q_norm";
  names.k_norm = "attn_k_norm";
  names.post_attn_norm = "post_attention_norm";
  names.post_mlp_norm = "post_ffw_norm";
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
  return spec;
}

}  // namespace

absl::StatusOr<ModelSpec> LoadGemma3(const WeightsFile& file) {
  return file.format() == CheckpointFormat::kGguf ? LoadGguf(file) : LoadHf(file);
}

}  // namespace longstride::model

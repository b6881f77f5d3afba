// Phi-3 and Phi-4: q, k and v in one matrix, gate and up in one matrix, LongRoPE with a short and a
// long table in the 128K checkpoints, a window for all layers where the key is set.
// Source: arXiv 2404.14219.
#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

absl::StatusOr<RopeConfig> ReadRope(const ConfigReader& config) {
  ASSIGN_OR_RETURN(RopeConfig rope, ReadHfRope(config, "full_attention", 10000.0));
  // Early files call LongRoPE "yarn"; this family has no other scaling.
  if (rope.scaling == RopeScaling::kYarn) {
    return absl::UnimplementedError(
        "the checkpoint uses an early spelling of LongRoPE (rope type \"yarn\" in a Phi-3 "
        "configuration), which is not supported; set it to \"longrope\"");
  }
  if (rope.scaling != RopeScaling::kNone && rope.scaling != RopeScaling::kLongRope) {
    return absl::UnimplementedError("Phi-3 checkpoints may use rope type default or longrope only");
  }
  return rope;
}

void SetLayers(int32_t window, kernels::Activation activation, ModelSpec* spec) {
  for (LayerSpec& layer : spec->layers) {
    layer.attention.native.window = window;
    layer.mlp.activation = activation;
  }
}

absl::StatusOr<ModelSpec> LoadHf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  RETURN_IF_ERROR(RefuseKeys(config, {"layer_types"}));
  RETURN_IF_ERROR(RequireBool(config, "attention_bias", false));
  const HfKeys keys = {.defaults = {.max_positions = 4096, .norm_eps = 1e-5f}};
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadHfShape(config, keys));
  ModelSpec spec = MakeSpec("phi3", shape);
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(config, "sliding_window", 0));
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_act", "silu"));
  SetLayers(window, activation, &spec);
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadRope(config));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  TensorNames names = HfNames("model.");
  names.fused_qkv = "self_attn.qkv_proj";
  names.fused_gate_up = "mlp.gate_up_proj";
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {"rotary_emb.inv_freq"}));
  return spec;
}

absl::StatusOr<ModelSpec> LoadGguf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader metadata,
                   ConfigReader::Parse(file.metadata_json(), "GGUF metadata"));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadGgufShape(file, metadata, "phi3"));
  ModelSpec spec = MakeSpec("phi3", shape);
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(metadata, "phi3.attention.sliding_window", 0));
  SetLayers(window, kernels::Activation::kSilu, &spec);
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadGgufRope(file, metadata, "phi3"));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  TensorNames names = GgufNames();
  names.fused_qkv = "attn_qkv";
  names.fused_gate_up = "ffn_up";
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({"rope_factors_long.", "rope_factors_short."}, {}));
  return spec;
}

}  // namespace

absl::StatusOr<ModelSpec> LoadPhi3(const WeightsFile& file) {
  return file.format() == CheckpointFormat::kGguf ? LoadGguf(file) : LoadHf(file);
}

}  // namespace longstride::model

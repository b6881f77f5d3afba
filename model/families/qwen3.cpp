// Qwen3, dense: Qwen2's shape with RMSNorm per head on queries and keys, biases only where
// attention_bias says so, and a head size of its own. Source: arXiv 2505.09388.
#include "model/families/dual_chunk.h"
#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

absl::StatusOr<ModelSpec> LoadHf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  const HfKeys keys = {.defaults = {.head_dim = 128, .max_positions = 32768}};
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadHfShape(config, keys));
  ModelSpec spec = MakeSpec("qwen3", shape);
  RETURN_IF_ERROR(SetQwenLayers(config, &spec));
  for (LayerSpec& layer : spec.layers) layer.attention.qk_norm = QkNorm::kPerHead;
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "full_attention", 10000.0));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  RETURN_IF_ERROR(ReadDualChunk(config, rope, &spec));
  TensorNames names = HfNames("model.");
  names.q_norm = "self_attn.q_norm";
  names.k_norm = "self_attn.k_norm";
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
  RETURN_IF_ERROR(RefuseKeys(metadata, {"qwen3.attention.sliding_window"}));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadGgufShape(file, metadata, "qwen3"));
  ModelSpec spec = MakeSpec("qwen3", shape);
  for (LayerSpec& layer : spec.layers) layer.attention.qk_norm = QkNorm::kPerHead;
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadGgufRope(file, metadata, "qwen3"));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  TensorNames names = GgufNames();
  names.q_norm = "attn_q_norm";
  names.k_norm = "attn_k_norm";
  names.qkv_bias = names.wo_bias = BiasRule::kIfPresent;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
  return spec;
}

}  // namespace

absl::StatusOr<ModelSpec> LoadQwen3(const WeightsFile& file) {
  return file.format() == CheckpointFormat::kGguf ? LoadGguf(file) : LoadHf(file);
}

}  // namespace longstride::model

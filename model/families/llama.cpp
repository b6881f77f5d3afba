// Llama 1 to 3 and the many checkpoints of the same shape (SmolLM2 among them). GGUF files of this
// architecture hold q and k with their rows permuted, so that the rotated pairs are interleaved;
// they also carry Mistral, whose window is then a metadata key. A configuration with the keys of
// MoBA's code (moba_chunk_size, moba_topk) is served with that attention in every layer.
#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

constexpr int64_t kMaxMobaChunk = 1 << 20;
constexpr int64_t kMaxMobaTopK = 1024;

absl::StatusOr<Moba> ReadMoba(const ConfigReader& config) {
  if (!config.Has("moba_chunk_size") && !config.Has("moba_topk")) return Moba{};
  ASSIGN_OR_RETURN(const int64_t chunk, config.Int("moba_chunk_size", 1, kMaxMobaChunk));
  ASSIGN_OR_RETURN(const int64_t topk, config.Int("moba_topk", 1, kMaxMobaTopK));
  if (chunk % kernels::kPageTokens != 0) {
    return absl::UnimplementedError(StrCat(config.Place("moba_chunk_size"), " is ", chunk,
                                           "; only multiples of ", kernels::kPageTokens,
                                           " are supported"));
  }
  return Moba{.chunk = static_cast<int32_t>(chunk), .topk = static_cast<int32_t>(topk)};
}

absl::StatusOr<ModelSpec> LoadHf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  RETURN_IF_ERROR(RefuseKeys(config, {"sliding_window", "layer_types", "no_rope_layers"}));
  ASSIGN_OR_RETURN(const DecoderShape shape,
                   ReadHfShape(config, {.defaults = {.max_positions = 2048}}));
  ModelSpec spec = MakeSpec("llama", shape);
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_act", "silu"));
  ASSIGN_OR_RETURN(const Moba moba, ReadMoba(config));
  for (LayerSpec& layer : spec.layers) {
    layer.mlp.activation = activation;
    layer.attention.native.moba = moba;
  }
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "full_attention", 10000.0));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  TensorNames names = HfNames("model.");
  ASSIGN_OR_RETURN(const bool attention_bias, config.BoolOr("attention_bias", false));
  ASSIGN_OR_RETURN(const bool mlp_bias, config.BoolOr("mlp_bias", false));
  names.qkv_bias = names.wo_bias = attention_bias ? BiasRule::kRequired : BiasRule::kNone;
  names.mlp_bias = mlp_bias ? BiasRule::kRequired : BiasRule::kNone;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {"rotary_emb.inv_freq"}));
  return spec;
}

absl::StatusOr<ModelSpec> LoadGguf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader metadata,
                   ConfigReader::Parse(file.metadata_json(), "GGUF metadata"));
  ASSIGN_OR_RETURN(const int64_t experts, metadata.IntOr("llama.expert_count", 0, 0, 65536));
  if (experts > 0) {
    return absl::UnimplementedError(StrCat("the GGUF file is a Llama-shaped mixture of ", experts,
                                           " experts (Mixtral), which is not supported"));
  }
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadGgufShape(file, metadata, "llama"));
  ModelSpec spec = MakeSpec("llama", shape);
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(metadata, "llama.attention.sliding_window", 0));
  for (LayerSpec& layer : spec.layers) layer.attention.native.window = window;
  RETURN_IF_ERROR(RefuseKeys(metadata, {"llama.attention.scale"}));
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadGgufRope(file, metadata, "llama"));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/true, &spec));
  TensorNames names = GgufNames();
  names.qkv_bias = names.wo_bias = names.mlp_bias = BiasRule::kIfPresent;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({"rope_freqs.", "rope_factors_long.", "rope_factors_short."},
                                      {"attn_rot_embd", "rope_freqs"}));
  return spec;
}

}  // namespace

absl::StatusOr<ModelSpec> LoadLlama(const WeightsFile& file) {
  return file.format() == CheckpointFormat::kGguf ? LoadGguf(file) : LoadHf(file);
}

}  // namespace longstride::model

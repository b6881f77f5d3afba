// Llama 4, text part: three layers of chunked attention with interleaved RoPE to one full layer
// without RoPE whose queries are scaled with their position; weightless norms on rotated queries
// and keys; mixtures of experts whose router scales the expert's input, beside a shared expert.
#include <algorithm>

#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

using kernels::TensorView;

constexpr int32_t kPeriod = 4;
constexpr int32_t kDefaultChunk = 8192;
constexpr double kTheta = 500000.0;
constexpr int64_t kMaxExperts = 4096;

struct LayerRules {
  std::vector<LayerKind> kinds;
  std::vector<bool> rope;  // per layer
  std::vector<bool> moe;
  int32_t chunk = 0;
  bool qk_norm = true;
  bool temperature = true;
  double attn_scale = 0.1;
  double floor_scale = 8192.0;
  int64_t experts = 0;
  int64_t top_k = 1;
  int32_t dense_ffn = 0;
  int32_t expert_ffn = 0;
  kernels::Activation activation = kernels::Activation::kSilu;
};

absl::Status SetAttention(const LayerRules& rules, size_t i, AttentionSpec* attention) {
  if (rules.kinds[i] == LayerKind::kSliding) {
    return absl::UnimplementedError("Llama 4 checkpoints have chunked and full layers only");
  }
  if (rules.kinds[i] == LayerKind::kChunked) {
    if (rules.chunk < 1) {
      return absl::InvalidArgumentError(
          "the checkpoint has chunked layers, but its configuration names no chunk size");
    }
    attention->native.chunk = rules.chunk;
  }
  attention->rope = rules.rope[i] ? 0 : -1;
  if (rules.rope[i] && rules.qk_norm) attention->qk_norm = QkNorm::kL2AfterRope;
  attention->position_scale = !rules.rope[i] && rules.temperature;
  attention->position_attn_scale = static_cast<float>(rules.attn_scale);
  attention->position_floor_scale = static_cast<float>(rules.floor_scale);
  return absl::OkStatus();
}

absl::Status SetLayers(const LayerRules& rules, ModelSpec* spec) {
  if (!(rules.floor_scale > 0.0)) {
    return absl::InvalidArgumentError("the checkpoint's floor_scale is not positive");
  }
  for (size_t i = 0; i < spec->layers.size(); ++i) {
    RETURN_IF_ERROR(SetAttention(rules, i, &spec->layers[i].attention));
    MlpSpec& mlp = spec->layers[i].mlp;
    mlp.activation = rules.activation;
    mlp.ffn_dim = rules.dense_ffn;
    if (!rules.moe[i]) continue;
    mlp.ffn_dim = rules.expert_ffn;
    mlp.shared_ffn_dim = rules.expert_ffn;
    mlp.num_experts = static_cast<int32_t>(rules.experts);
    mlp.top_k = static_cast<int32_t>(rules.top_k);
    mlp.scoring = kernels::ExpertScoring::kSigmoidInput;
    if (rules.top_k > rules.experts) {
      return absl::InvalidArgumentError(StrCat("the checkpoint routes each token to ", rules.top_k,
                                               " experts, but has only ", rules.experts));
    }
  }
  return absl::OkStatus();
}

// The dense expert beside the routed ones has the names of an ordinary MLP under a prefix of its
// own.
absl::Status BindSharedExpert(TensorNames names, std::string_view gate, std::string_view up,
                              std::string_view down, int32_t layer, WeightBinder* binder,
                              ModelSpec* spec) {
  names.gate = gate;
  names.up = up;
  names.down = down;
  return BindMlp(names, layer, binder, spec);
}

// --- Hugging Face ---

absl::Status BindHfExperts(const TensorNames& names, int32_t layer, WeightBinder* binder,
                           ModelSpec* spec) {
  LayerSpec& out = spec->layers[static_cast<size_t>(layer)];
  LayerWeights& weights = out.weights;
  const std::string prefix = LayerPrefix(names, layer);
  const int64_t experts = out.mlp.num_experts;
  const int64_t ffn = out.mlp.ffn_dim;
  ASSIGN_OR_RETURN(weights.router,
                   binder->Matrix(prefix + "feed_forward.router.weight", experts, spec->dim));
  ASSIGN_OR_RETURN(const std::vector<TensorView> gate_up,
                   binder->TransposedMatrices(prefix + "feed_forward.experts.gate_up_proj", experts,
                                              2 * ffn, spec->dim));
  for (const TensorView& matrix : gate_up) {
    weights.expert_gate.push_back(RowRange(matrix, 0, ffn));
    weights.expert_up.push_back(RowRange(matrix, ffn, ffn));
  }
  ASSIGN_OR_RETURN(weights.expert_down,
                   binder->TransposedMatrices(prefix + "feed_forward.experts.down_proj", experts,
                                              spec->dim, ffn));
  return BindSharedExpert(names, "feed_forward.shared_expert.gate_proj",
                          "feed_forward.shared_expert.up_proj",
                          "feed_forward.shared_expert.down_proj", layer, binder, spec);
}

absl::Status ReadHfPattern(const ConfigReader& config, int32_t num_layers, LayerRules* rules) {
  ASSIGN_OR_RETURN(const int64_t interval,
                   config.IntOr("no_rope_layer_interval", kPeriod, 1, 1024));
  // The name is inverted: 1 where RoPE is used. An empty list means the default.
  std::vector<int64_t> flags;
  if (config.Has("no_rope_layers")) {
    ASSIGN_OR_RETURN(flags, config.Ints("no_rope_layers"));
  }
  if (!flags.empty() && static_cast<int64_t>(flags.size()) < num_layers) {
    return absl::InvalidArgumentError(StrCat(config.Place("no_rope_layers"), " has ", flags.size(),
                                             " entries for ", num_layers, " layers"));
  }
  for (int32_t i = 0; i < num_layers; ++i) {
    rules->rope.push_back(flags.empty() ? (i + 1) % interval != 0
                                        : flags[static_cast<size_t>(i)] != 0);
  }
  ASSIGN_OR_RETURN(rules->kinds, ReadLayerTypes(config, num_layers, [&](int32_t i) {
                     return rules->rope[static_cast<size_t>(i)] ? LayerKind::kChunked
                                                                : LayerKind::kFull;
                   }));
  return absl::OkStatus();
}

absl::Status ReadHfMoe(const ConfigReader& config, int32_t num_layers, LayerRules* rules) {
  ASSIGN_OR_RETURN(const int64_t step, config.IntOr("interleave_moe_layer_step", 1, 0, 1024));
  std::vector<int64_t> layers;
  if (config.Has("moe_layers")) {
    ASSIGN_OR_RETURN(layers, config.Ints("moe_layers"));
  } else if (step > 0) {
    for (int64_t i = step - 1; i < num_layers; i += step) layers.push_back(i);
  }
  for (int32_t i = 0; i < num_layers; ++i) {
    rules->moe.push_back(std::find(layers.begin(), layers.end(), i) != layers.end());
  }
  ASSIGN_OR_RETURN(rules->experts, config.IntOr("num_local_experts", 16, 1, kMaxExperts));
  ASSIGN_OR_RETURN(rules->top_k, config.IntOr("num_experts_per_tok", 1, 1, kMaxExperts));
  return absl::OkStatus();
}

absl::StatusOr<LayerRules> ReadHfRules(const ConfigReader& config, const DecoderShape& shape) {
  LayerRules rules;
  RETURN_IF_ERROR(ReadHfPattern(config, shape.num_layers, &rules));
  RETURN_IF_ERROR(ReadHfMoe(config, shape.num_layers, &rules));
  ASSIGN_OR_RETURN(rules.chunk, ReadWindow(config, "attention_chunk_size", kDefaultChunk));
  ASSIGN_OR_RETURN(rules.qk_norm, config.BoolOr("use_qk_norm", true));
  ASSIGN_OR_RETURN(rules.temperature, config.BoolOr("attn_temperature_tuning", true));
  ASSIGN_OR_RETURN(rules.attn_scale, config.NumberOr("attn_scale", rules.attn_scale));
  ASSIGN_OR_RETURN(rules.floor_scale, config.NumberOr("floor_scale", rules.floor_scale));
  rules.expert_ffn = shape.ffn_dim;
  ASSIGN_OR_RETURN(const int64_t dense, config.IntOr("intermediate_size_mlp", 16384, 1, 1 << 20));
  rules.dense_ffn = static_cast<int32_t>(dense);
  ASSIGN_OR_RETURN(rules.activation, ReadActivation(config, "hidden_act", "silu"));
  return rules;
}

absl::StatusOr<ModelSpec> LoadHf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(ConfigReader config, ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(RefuseQuantization(config));
  if (config.Has("text_config")) {
    ASSIGN_OR_RETURN(config, config.Object("text_config"));
    RETURN_IF_ERROR(RefuseQuantization(config));
  }
  const DecoderShape defaults = {.num_layers = 48,
                                 .dim = 5120,
                                 .num_heads = 40,
                                 .num_kv_heads = 8,
                                 .head_dim = 128,
                                 .ffn_dim = 8192,
                                 .vocab_size = 202048,
                                 .max_positions = 131072,
                                 .norm_eps = 1e-5f};
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadHfShape(config, {.defaults = defaults}));
  ModelSpec spec = MakeSpec("llama4_text", shape);
  ASSIGN_OR_RETURN(const LayerRules rules, ReadHfRules(config, shape));
  RETURN_IF_ERROR(SetLayers(rules, &spec));
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "chunked_attention", kTheta));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/true, &spec));
  TensorNames names = HfNames(FindHfPrefix(file));
  names.gate = "feed_forward.gate_proj";
  names.up = "feed_forward.up_proj";
  names.down = "feed_forward.down_proj";
  ASSIGN_OR_RETURN(const bool bias, config.BoolOr("attention_bias", false));
  names.qkv_bias = names.wo_bias = bias ? BiasRule::kRequired : BiasRule::kNone;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindGlobals(names, shape.tied_embedding, &binder, &spec));
  for (int32_t i = 0; i < shape.num_layers; ++i) {
    RETURN_IF_ERROR(BindAttention(names, i, &binder, &spec));
    RETURN_IF_ERROR(rules.moe[static_cast<size_t>(i)] ? BindHfExperts(names, i, &binder, &spec)
                                                      : BindMlp(names, i, &binder, &spec));
  }
  RETURN_IF_ERROR(binder.CheckAllUsed({"vision_model.", "multi_modal_projector.",
                                       "model.vision_model.", "model.multi_modal_projector."},
                                      {}));
  return spec;
}

// --- GGUF ---

absl::Status BindGgufExperts(const TensorNames& names, int32_t layer, WeightBinder* binder,
                             ModelSpec* spec) {
  LayerSpec& out = spec->layers[static_cast<size_t>(layer)];
  LayerWeights& weights = out.weights;
  const std::string prefix = LayerPrefix(names, layer);
  const int64_t experts = out.mlp.num_experts;
  const int64_t ffn = out.mlp.ffn_dim;
  ASSIGN_OR_RETURN(weights.router,
                   binder->Matrix(prefix + "ffn_gate_inp.weight", experts, spec->dim));
  ASSIGN_OR_RETURN(weights.expert_gate,
                   binder->Matrices(prefix + "ffn_gate_exps.weight", experts, ffn, spec->dim));
  ASSIGN_OR_RETURN(weights.expert_up,
                   binder->Matrices(prefix + "ffn_up_exps.weight", experts, ffn, spec->dim));
  ASSIGN_OR_RETURN(weights.expert_down,
                   binder->Matrices(prefix + "ffn_down_exps.weight", experts, spec->dim, ffn));
  return BindSharedExpert(names, "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", layer, binder,
                          spec);
}

// The format has no keys for the chunk size, the temperature or the norms: they are the published
// checkpoints' values, and a window of 0 means that all layers are full and rotated.
absl::StatusOr<LayerRules> ReadGgufRules(const ConfigReader& metadata, const DecoderShape& shape) {
  LayerRules rules;
  ASSIGN_OR_RETURN(const int32_t window,
                   ReadWindow(metadata, "llama4.attention.sliding_window", kDefaultChunk));
  ASSIGN_OR_RETURN(const int64_t step, metadata.Int("llama4.interleave_moe_layer_step", 0, 1024));
  ASSIGN_OR_RETURN(rules.experts, metadata.Int("llama4.expert_count", 1, kMaxExperts));
  ASSIGN_OR_RETURN(rules.top_k, metadata.Int("llama4.expert_used_count", 1, kMaxExperts));
  ASSIGN_OR_RETURN(const int64_t expert_ffn,
                   metadata.Int("llama4.expert_feed_forward_length", 1, 1 << 20));
  rules.expert_ffn = static_cast<int32_t>(expert_ffn);
  rules.dense_ffn = shape.ffn_dim;
  rules.chunk = kDefaultChunk;
  constexpr int64_t kExpertsWithoutQkNorm = 128;  // Maverick
  rules.qk_norm = rules.experts != kExpertsWithoutQkNorm;
  for (int32_t i = 0; i < shape.num_layers; ++i) {
    const bool chunked = window != 0 && (i + 1) % kPeriod != 0;
    rules.kinds.push_back(chunked ? LayerKind::kChunked : LayerKind::kFull);
    rules.rope.push_back(window == 0 || chunked);
    rules.moe.push_back(step > 0 && (i + 1) % step == 0);
  }
  return rules;
}

absl::StatusOr<ModelSpec> LoadGguf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader metadata,
                   ConfigReader::Parse(file.metadata_json(), "GGUF metadata"));
  RETURN_IF_ERROR(RefuseKeys(
      metadata, {"llama4.attention.sliding_window_pattern", "llama4.rope.freq_base_swa"}));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadGgufShape(file, metadata, "llama4"));
  ModelSpec spec = MakeSpec("llama4_text", shape);
  ASSIGN_OR_RETURN(const LayerRules rules, ReadGgufRules(metadata, shape));
  RETURN_IF_ERROR(SetLayers(rules, &spec));
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadGgufRope(file, metadata, "llama4"));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/true, &spec));
  const TensorNames names = GgufNames();
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindGlobals(names, shape.tied_embedding, &binder, &spec));
  for (int32_t i = 0; i < shape.num_layers; ++i) {
    RETURN_IF_ERROR(BindAttention(names, i, &binder, &spec));
    RETURN_IF_ERROR(rules.moe[static_cast<size_t>(i)] ? BindGgufExperts(names, i, &binder, &spec)
                                                      : BindMlp(names, i, &binder, &spec));
  }
  RETURN_IF_ERROR(binder.CheckAllUsed({"rope_freqs."}, {}));
  return spec;
}

}  // namespace

absl::StatusOr<ModelSpec> LoadLlama4(const WeightsFile& file) {
  return file.format() == CheckpointFormat::kGguf ? LoadGguf(file) : LoadHf(file);
}

}  // namespace longstride::model

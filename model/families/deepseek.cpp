// DeepSeek-V2 and V3 (and what has their configuration: V2-Lite, R1, Moonlight): multi-head latent
// attention, YaRN whose mscale_all_dim sharpens the softmax, layers of a mixture of experts with
// shared ones behind the first dense layers. V2 routes by softmax, V3 by sigmoid with a bias that
// only chooses, both within the best groups of experts. DeepSeek-V3.2 is V3 with an indexer in
// every layer, which rotates its channels in halves where attention rotates pairs; GLM-5
// (glm_moe_dsa) is that with pairs in both, and layers without an indexer that read what the one
// before them chose. Layers that predict further tokens are not read. Sources: arXiv 2405.04434,
// arXiv 2412.19437, github.com/deepseek-ai/DeepSeek-V3.2-Exp, arXiv 2603.12201 and the checkpoints'
// configurations.
#include <cmath>
#include <cstring>

#include "kernels/quant.h"
#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int64_t kMaxRank = 1 << 16;
constexpr int64_t kMaxChannels = 4096;
constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kMaxFfn = 1 << 20;
constexpr int64_t kMaxIndexHeads = 4096;
constexpr int64_t kMaxIndexTopK = int64_t{1} << 28;
constexpr float kLatentNormEps = 1e-6f;  // built into the architecture

absl::StatusOr<LatentAttention> ReadLatent(const ConfigReader& config) {
  LatentAttention latent;
  const auto read = [&config](std::string_view key, int64_t max, int32_t* out) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t value, config.Int(key, 1, max));
    *out = static_cast<int32_t>(value);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(read("kv_lora_rank", kMaxRank, &latent.kv_rank));
  if (config.Has("q_lora_rank")) RETURN_IF_ERROR(read("q_lora_rank", kMaxRank, &latent.q_rank));
  RETURN_IF_ERROR(read("qk_nope_head_dim", kMaxChannels, &latent.nope_dim));
  RETURN_IF_ERROR(read("qk_rope_head_dim", kMaxChannels, &latent.rope_dim));
  RETURN_IF_ERROR(read("v_head_dim", kMaxChannels, &latent.value_dim));
  return latent;
}

// Which model of the family a configuration describes.
enum class Generation : uint8_t { kV2, kV3, kV32, kGlm5 };

bool HasIndexer(Generation g) { return g == Generation::kV32 || g == Generation::kGlm5; }

// For each layer whether it has an indexer.
absl::StatusOr<std::vector<bool>> LayersWithIndexer(const ConfigReader& config, Generation g,
                                                    int64_t num_layers) {
  std::vector<bool> full(static_cast<size_t>(num_layers), true);
  if (g != Generation::kGlm5) return full;
  std::vector<std::string> types;
  std::string_view key = "indexer_types";
  if (config.Has(key)) {
    ASSIGN_OR_RETURN(types, config.Strings(key));
  } else if (config.Has("index_topk_pattern")) {
    key = "index_topk_pattern";
    if (config.IsList(key)) {
      ASSIGN_OR_RETURN(types, config.Strings(key));
    } else {
      ASSIGN_OR_RETURN(const std::string letters, config.String(key));
      for (const char c : letters) types.push_back(c == 'F' ? "full" : c == 'S' ? "shared" : "");
    }
  } else {
    ASSIGN_OR_RETURN(const int64_t every, config.IntOr("index_topk_freq", 1, 1, kMaxLayers));
    ASSIGN_OR_RETURN(const int64_t offset,
                     config.IntOr("index_skip_topk_offset", 2, -kMaxLayers, kMaxLayers));
    for (int64_t i = 0; i < num_layers; ++i) {
      types.emplace_back(std::max<int64_t>(i - offset + 1, 0) % every == 0 ? "full" : "shared");
    }
  }
  if (std::ssize(types) < num_layers) {
    return absl::InvalidArgumentError(StrCat(config.Place(key), " is of ", types.size(),
                                             " layers; the checkpoint has ", num_layers));
  }
  for (size_t l = 0; l < full.size(); ++l) {
    full[l] = types[l] == "full";
    if (full[l] || (types[l] == "shared" && l > 0)) continue;
    return absl::InvalidArgumentError(StrCat(config.Place(key), " makes layer ", l,
                                             " neither full nor one that shares the ",
                                             "indices of a layer before it"));
  }
  return full;
}

absl::StatusOr<Indexer> ReadIndexer(const ConfigReader& config, const LatentAttention& latent) {
  if (latent.q_rank == 0) {
    return absl::InvalidArgumentError(
        StrCat(config.Place("q_lora_rank"),
               " is missing, but an indexer makes its queries from the queries' latent"));
  }
  ASSIGN_OR_RETURN(const int64_t heads, config.Int("index_n_heads", 1, kMaxIndexHeads));
  ASSIGN_OR_RETURN(const int64_t dim, config.Int("index_head_dim", latent.rope_dim, kMaxChannels));
  return Indexer{.num_heads = static_cast<int32_t>(heads), .head_dim = static_cast<int32_t>(dim)};
}

absl::Status SetIndexers(const ConfigReader& config, Generation generation, const RopeConfig& rope,
                         const DecoderShape& shape, bool interleaved, ModelSpec* spec) {
  ASSIGN_OR_RETURN(Indexer indexer, ReadIndexer(config, spec->layers.front().attention.latent));
  ASSIGN_OR_RETURN(const int64_t topk, config.Int("index_topk", 1, kMaxIndexTopK));
  ASSIGN_OR_RETURN(const bool pairs,
                   config.BoolOr("indexer_rope_interleave", generation == Generation::kGlm5));
  ASSIGN_OR_RETURN(const std::vector<bool> full,
                   LayersWithIndexer(config, generation, std::ssize(spec->layers)));
  if (pairs != interleaved) RETURN_IF_ERROR(AddRope(rope, shape, pairs, spec));
  indexer.rope = static_cast<int32_t>(spec->ropes.size()) - 1;
  for (size_t l = 0; l < spec->layers.size(); ++l) {
    AttentionSpec& a = spec->layers[l].attention;
    a.native.dsa.topk = static_cast<int32_t>(topk);
    if (full[l]) a.indexer = indexer;
  }
  return absl::OkStatus();
}

// 1 / sqrt(channels of a query), times the square of YaRN's mscale where the checkpoint has one for
// all channels.
float SoftmaxScale(const LatentAttention& latent, const RopeConfig& rope) {
  double scale = 1.0 / std::sqrt(static_cast<double>(latent.nope_dim + latent.rope_dim));
  if (rope.scaling == RopeScaling::kYarn && rope.factor > 1.0) {
    const double mscale = 0.1 * rope.mscale_all_dim.value_or(0.0) * std::log(rope.factor) + 1.0;
    scale *= mscale * mscale;
  }
  return static_cast<float>(scale);
}

// Whether key, where it is there, has the one value that is computed.
absl::Status RequireName(const ConfigReader& config, std::string_view key, std::string_view only) {
  ASSIGN_OR_RETURN(const std::string name, config.StringOr(key, only));
  if (name == only) return absl::OkStatus();
  return absl::UnimplementedError(StrCat(config.Place(key), " is \"", name.substr(0, 80),
                                         "\"; only \"", only, "\" is supported here"));
}

absl::Status ReadGroups(const ConfigReader& config, int32_t best, MlpSpec* mlp) {
  ASSIGN_OR_RETURN(const int64_t count, config.IntOr("n_group", 1, 1, mlp->num_experts));
  ASSIGN_OR_RETURN(const int64_t chosen, config.IntOr("topk_group", 1, 1, count));
  if (mlp->num_experts % count != 0) {
    return absl::InvalidArgumentError(StrCat(config.Place("n_group"), " is ", count,
                                             ", which does not divide the ", mlp->num_experts,
                                             " experts"));
  }
  const int64_t open = mlp->num_experts / count * chosen;
  if (mlp->top_k > open) {
    return absl::InvalidArgumentError(StrCat("the checkpoint routes each token to ", mlp->top_k,
                                             " experts, but its groups leave ", open));
  }
  if (chosen == count) return absl::OkStatus();
  if (mlp->num_experts / count < best) {
    return absl::InvalidArgumentError(StrCat("the checkpoint has groups of ",
                                             mlp->num_experts / count, " experts; ", best,
                                             " or more are needed"));
  }
  mlp->groups = {
      .count = static_cast<int32_t>(count), .chosen = static_cast<int32_t>(chosen), .best = best};
  return absl::OkStatus();
}

absl::Status ReadRouting(const ConfigReader& config, bool v3, MlpSpec* mlp) {
  ASSIGN_OR_RETURN(const double scale, config.NumberOr("routed_scaling_factor", v3 ? 2.5 : 1.0));
  mlp->expert_scale = static_cast<float>(scale);
  if (v3) {
    RETURN_IF_ERROR(RequireName(config, "topk_method", "noaux_tc"));
    RETURN_IF_ERROR(RequireName(config, "scoring_func", "sigmoid"));
    mlp->scoring = kernels::ExpertScoring::kSigmoid;
    ASSIGN_OR_RETURN(mlp->renormalize, config.BoolOr("norm_topk_prob", true));
    return ReadGroups(config, /*best=*/2, mlp);
  }
  RETURN_IF_ERROR(RequireName(config, "scoring_func", "softmax"));
  RETURN_IF_ERROR(RequireBool(config, "norm_topk_prob", false));
  mlp->scoring = kernels::ExpertScoring::kSoftmaxThenTopK;
  mlp->renormalize = false;
  ASSIGN_OR_RETURN(const std::string method, config.StringOr("topk_method", "greedy"));
  if (method == "greedy") return absl::OkStatus();
  RETURN_IF_ERROR(RequireName(config, "topk_method", "group_limited_greedy"));
  return ReadGroups(config, /*best=*/1, mlp);
}

// Which layers have experts where configurations list it: HF's own spelling of
// first_k_dense_replace.
absl::Status CheckMlpTypes(const ConfigReader& config, int64_t dense, size_t num_layers) {
  if (!config.Has("mlp_layer_types")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<std::string> types, config.Strings("mlp_layer_types"));
  bool same = types.size() == num_layers;
  for (size_t l = 0; same && l < num_layers; ++l) {
    same = types[l] == (static_cast<int64_t>(l) < dense ? "dense" : "sparse");
  }
  if (same) return absl::OkStatus();
  return absl::UnimplementedError(
      StrCat(config.Place("mlp_layer_types"),
             " is not \"dense\" for the first_k_dense_replace layers and \"sparse\" for the rest; "
             "nothing else is supported"));
}

// The layers behind the first_k_dense_replace dense ones.
absl::Status SetExperts(const ConfigReader& config, bool v3, ModelSpec* spec) {
  if (!config.Has("n_routed_experts")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int64_t every, config.IntOr("moe_layer_freq", 1, 1, kMaxLayers));
  if (every != 1) {
    return absl::UnimplementedError(
        StrCat(config.Place("moe_layer_freq"), " is ", every, "; only 1 is supported"));
  }
  ASSIGN_OR_RETURN(const int64_t dense,
                   config.IntOr("first_k_dense_replace", v3 ? 3 : 0, 0, kMaxLayers));
  RETURN_IF_ERROR(CheckMlpTypes(config, dense, spec->layers.size()));
  MlpSpec mlp = spec->layers.front().mlp;
  ASSIGN_OR_RETURN(const int64_t experts, config.Int("n_routed_experts", 1, kMaxExperts));
  ASSIGN_OR_RETURN(const int64_t top_k, config.Int("num_experts_per_tok", 1, experts));
  ASSIGN_OR_RETURN(const int64_t ffn, config.Int("moe_intermediate_size", 1, kMaxFfn));
  ASSIGN_OR_RETURN(const int64_t shared, config.IntOr("n_shared_experts", 0, 0, kMaxFfn / ffn));
  mlp.num_experts = static_cast<int32_t>(experts);
  mlp.top_k = static_cast<int32_t>(top_k);
  mlp.ffn_dim = static_cast<int32_t>(ffn);
  mlp.shared_ffn_dim = static_cast<int32_t>(shared * ffn);
  RETURN_IF_ERROR(ReadRouting(config, v3, &mlp));
  for (size_t i = static_cast<size_t>(dense); i < spec->layers.size(); ++i) {
    spec->layers[i].mlp = mlp;
  }
  return absl::OkStatus();
}

// A copy [cols, rows] of a matrix [rows, cols]; blocks are decoded to bf16.
TensorView Transposed(const TensorView& matrix, WeightBinder* binder) {
  const int64_t rows = matrix.shape[0], cols = matrix.shape[1];
  const DType type = kernels::IsQuantized(matrix.dtype) ? DType::kBF16 : matrix.dtype;
  const auto element = static_cast<size_t>(kernels::BlockBytes(type));
  uint8_t* out = binder->NewBytes(static_cast<size_t>(rows * cols) * element);
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    kernels::DequantizeRow(matrix.dtype,
                           matrix.ptr<uint8_t>() + r * kernels::RowBytes(matrix.dtype, cols), cols,
                           row.data());
    for (int64_t c = 0; c < cols; ++c) {
      const float value = row[static_cast<size_t>(c)];
      uint8_t* to = out + static_cast<size_t>(c * rows + r) * element;
      if (type == DType::kF32) {
        std::memcpy(to, &value, element);
        continue;
      }
      const uint16_t half =
          type == DType::kF16 ? kernels::FloatToHalf(value) : kernels::FloatToBfloat16(value);
      std::memcpy(to, &half, element);
    }
  }
  return TensorView::Matrix(out, type, cols, rows);
}

absl::Status BindIndexer(const std::string& prefix, WeightBinder* binder, ModelSpec* spec,
                         LayerSpec* layer) {
  const Indexer& indexer = layer->attention.indexer;
  LayerWeights& w = layer->weights;
  const int64_t q_rows = int64_t{indexer.num_heads} * indexer.head_dim;
  ASSIGN_OR_RETURN(w.index_q,
                   binder->Matrix(prefix + "wq_b.weight", q_rows, layer->attention.latent.q_rank));
  ASSIGN_OR_RETURN(w.index_k, binder->Matrix(prefix + "wk.weight", indexer.head_dim, spec->dim));
  ASSIGN_OR_RETURN(w.index_norm, binder->Vector(prefix + "k_norm.weight", indexer.head_dim));
  ASSIGN_OR_RETURN(w.index_norm_bias, binder->Vector(prefix + "k_norm.bias", indexer.head_dim));
  ASSIGN_OR_RETURN(w.index_weights,
                   binder->Matrix(prefix + "weights_proj.weight", indexer.num_heads, spec->dim));
  return absl::OkStatus();
}

absl::Status BindAttention(const TensorNames& names, int32_t index, BiasRule bias,
                           WeightBinder* binder, ModelSpec* spec) {
  LayerSpec& layer = spec->layers[static_cast<size_t>(index)];
  LayerWeights& w = layer.weights;
  const LatentAttention& latent = layer.attention.latent;
  const int64_t heads = layer.attention.num_heads;
  const std::string prefix = LayerPrefix(names, index);
  const std::string attention = prefix + "self_attn.";
  ASSIGN_OR_RETURN(w.attn_norm, binder->Vector(prefix + names.attn_norm + ".weight", spec->dim));
  ASSIGN_OR_RETURN(w.mlp_norm, binder->Vector(prefix + names.mlp_norm + ".weight", spec->dim));
  const int64_t q_rows = heads * (latent.nope_dim + latent.rope_dim);
  if (latent.q_rank > 0) {
    ASSIGN_OR_RETURN(w.wq, binder->Matrix(attention + "q_a_proj.weight", latent.q_rank, spec->dim));
    ASSIGN_OR_RETURN(w.bq, BindBias(attention + "q_a_proj", latent.q_rank, bias, binder));
    ASSIGN_OR_RETURN(w.q_norm, binder->Vector(attention + "q_a_layernorm.weight", latent.q_rank));
    ASSIGN_OR_RETURN(w.q_up, binder->Matrix(attention + "q_b_proj.weight", q_rows, latent.q_rank));
  } else {
    ASSIGN_OR_RETURN(w.q_up, binder->Matrix(attention + "q_proj.weight", q_rows, spec->dim));
  }
  const std::string down = attention + "kv_a_proj_with_mqa";
  ASSIGN_OR_RETURN(w.wk, binder->Matrix(down + ".weight", layer.attention.head_dim, spec->dim));
  ASSIGN_OR_RETURN(w.bk, BindBias(down, layer.attention.head_dim, bias, binder));
  ASSIGN_OR_RETURN(w.k_norm, binder->Vector(attention + "kv_a_layernorm.weight", latent.kv_rank));
  const int64_t head_rows = latent.nope_dim + latent.value_dim;
  ASSIGN_OR_RETURN(const TensorView up, binder->Matrix(attention + "kv_b_proj.weight",
                                                       heads * head_rows, latent.kv_rank));
  for (int64_t h = 0; h < heads; ++h) {
    w.key_up.push_back(Transposed(RowRange(up, h * head_rows, latent.nope_dim), binder));
    w.value_up.push_back(RowRange(up, h * head_rows + latent.nope_dim, latent.value_dim));
  }
  ASSIGN_OR_RETURN(
      w.wo, binder->Matrix(attention + "o_proj.weight", spec->dim, heads * latent.value_dim));
  ASSIGN_OR_RETURN(w.bo, BindBias(attention + "o_proj", spec->dim, bias, binder));
  if (layer.attention.indexer.num_heads == 0) return absl::OkStatus();
  return BindIndexer(attention + "indexer.", binder, spec, &layer);
}

absl::Status BindExperts(TensorNames names, int32_t index, WeightBinder* binder, ModelSpec* spec) {
  LayerSpec& layer = spec->layers[static_cast<size_t>(index)];
  LayerWeights& w = layer.weights;
  const std::string prefix = LayerPrefix(names, index) + "mlp.";
  const int64_t experts = layer.mlp.num_experts, ffn = layer.mlp.ffn_dim;
  ASSIGN_OR_RETURN(w.router, binder->Matrix(prefix + "gate.weight", experts, spec->dim));
  if (layer.mlp.scoring == kernels::ExpertScoring::kSigmoid) {
    ASSIGN_OR_RETURN(w.selection_bias,
                     binder->Vector(prefix + "gate.e_score_correction_bias", experts));
  }
  for (int64_t e = 0; e < experts; ++e) {
    const std::string expert = StrCat(prefix, "experts.", e, ".");
    ASSIGN_OR_RETURN(w.expert_gate.emplace_back(),
                     binder->Matrix(expert + "gate_proj.weight", ffn, spec->dim));
    ASSIGN_OR_RETURN(w.expert_up.emplace_back(),
                     binder->Matrix(expert + "up_proj.weight", ffn, spec->dim));
    ASSIGN_OR_RETURN(w.expert_down.emplace_back(),
                     binder->Matrix(expert + "down_proj.weight", spec->dim, ffn));
  }
  const int64_t shared = layer.mlp.shared_ffn_dim;
  if (shared == 0) return absl::OkStatus();
  const std::string expert = prefix + "shared_experts.";
  ASSIGN_OR_RETURN(w.gate, binder->Matrix(expert + "gate_proj.weight", shared, spec->dim));
  ASSIGN_OR_RETURN(w.up, binder->Matrix(expert + "up_proj.weight", shared, spec->dim));
  ASSIGN_OR_RETURN(w.down, binder->Matrix(expert + "down_proj.weight", spec->dim, shared));
  return absl::OkStatus();
}

absl::Status SetAttention(const ConfigReader& config, Generation generation, DecoderShape shape,
                          ModelSpec* spec) {
  ASSIGN_OR_RETURN(const LatentAttention latent, ReadLatent(config));
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "full_attention", 10000.0));
  ASSIGN_OR_RETURN(const bool interleaved, config.BoolOr("rope_interleave", true));
  if (generation == Generation::kV2 && !interleaved)
    RETURN_IF_ERROR(RequireBool(config, "rope_interleave", true));
  shape.head_dim = latent.rope_dim;
  RETURN_IF_ERROR(AddRope(rope, shape, interleaved, spec));
  for (LayerSpec& layer : spec->layers) {
    AttentionSpec& a = layer.attention;
    a.latent = latent;
    a.num_kv_heads = 1;
    a.head_dim = latent.kv_rank + latent.rope_dim;
    a.scale = SoftmaxScale(latent, rope);
    a.qk_norm_eps = kLatentNormEps;
  }
  if (!HasIndexer(generation)) return absl::OkStatus();
  return SetIndexers(config, generation, rope, shape, interleaved, spec);
}

}  // namespace

absl::StatusOr<ModelSpec> LoadDeepSeek(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  ASSIGN_OR_RETURN(const std::string type, config.String("model_type"));
  const Generation generation = type == "deepseek_v2"    ? Generation::kV2
                                : type == "deepseek_v3"  ? Generation::kV3
                                : type == "deepseek_v32" ? Generation::kV32
                                                         : Generation::kGlm5;
  const bool v3 = generation != Generation::kV2;  // or what follows from it
  ASSIGN_OR_RETURN(const DecoderShape shape,
                   ReadHfShape(config, {.defaults = {.max_positions = v3 ? 4096 : 2048}}));
  ModelSpec spec = MakeSpec("deepseek", shape);
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_act", "silu"));
  for (LayerSpec& layer : spec.layers) layer.mlp.activation = activation;
  RETURN_IF_ERROR(SetAttention(config, generation, shape, &spec));
  RETURN_IF_ERROR(SetExperts(config, v3, &spec));
  ASSIGN_OR_RETURN(const bool attention_bias, config.BoolOr("attention_bias", false));
  RETURN_IF_ERROR(RequireBool(config, "mlp_bias", false));
  const BiasRule bias = attention_bias ? BiasRule::kRequired : BiasRule::kNone;
  const TensorNames names = HfNames("model.");
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindGlobals(names, shape.tied_embedding, &binder, &spec));
  for (int32_t i = 0; i < shape.num_layers; ++i) {
    RETURN_IF_ERROR(BindAttention(names, i, bias, &binder, &spec));
    RETURN_IF_ERROR(spec.layers[static_cast<size_t>(i)].mlp.num_experts > 0
                        ? BindExperts(names, i, &binder, &spec)
                        : BindMlp(names, i, &binder, &spec));
  }
  spec.notes.emplace_back(
      "parity only: the family is tested with tiny checkpoints against an independent "
      "implementation; most of its released models need several devices, which are not supported.");
  ASSIGN_OR_RETURN(const int64_t predicting, config.IntOr("num_nextn_predict_layers", 0, 0, 64));
  std::vector<std::string> ignored;
  for (int64_t i = 0; i < predicting; ++i) {
    ignored.push_back(StrCat("model.layers.", shape.num_layers + i, "."));
  }
  RETURN_IF_ERROR(binder.CheckAllUsed({ignored.begin(), ignored.end()}, {"rotary_emb.inv_freq"}));
  if (spec.weights_type.empty()) {
    spec.weights_type = kernels::DTypeName(spec.layers.front().weights.wk.dtype);
  }
  return spec;
}

}  // namespace longstride::model

#include "model/families/transformer.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace longstride::model {

using kernels::TensorView;

absl::Status SetWindows(const std::vector<LayerKind>& kinds, int32_t window, ModelSpec* spec) {
  for (size_t i = 0; i < kinds.size(); ++i) {
    if (kinds[i] == LayerKind::kChunked) {
      return absl::UnimplementedError(
          StrCat("the checkpoint has chunked attention layers, which the architecture \"",
                 spec->family, "\" does not define"));
    }
    if (kinds[i] != LayerKind::kSliding) continue;
    if (window < 1) {
      return absl::InvalidArgumentError(
          StrCat("layer ", i,
                 " of the checkpoint is a sliding-window layer, but its configuration "
                 "names no window"));
    }
    spec->layers[i].attention.native.window = window;
  }
  return absl::OkStatus();
}

ModelSpec MakeSpec(std::string_view family, const DecoderShape& shape) {
  ModelSpec spec;
  spec.family = std::string(family);
  spec.vocab_size = shape.vocab_size;
  spec.dim = shape.dim;
  spec.max_positions = shape.max_positions;
  spec.norm_eps = shape.norm_eps;
  LayerSpec layer;
  layer.attention.num_heads = shape.num_heads;
  layer.attention.num_kv_heads = shape.num_kv_heads;
  layer.attention.head_dim = shape.head_dim;
  layer.attention.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
  layer.attention.qk_norm_eps = shape.norm_eps;
  layer.mlp.ffn_dim = shape.ffn_dim;
  spec.layers.assign(static_cast<size_t>(shape.num_layers), layer);
  return spec;
}

TensorNames HfNames(std::string_view prefix) {
  TensorNames names;
  names.embedding = StrCat(prefix, "embed_tokens");
  names.output_norm = StrCat(prefix, "norm");
  names.lm_head = prefix == "language_model.model." ? "language_model.lm_head" : "lm_head";
  names.layer_prefix = StrCat(prefix, "layers.");
  names.attn_norm = "input_layernorm";
  names.wq = "self_attn.q_proj";
  names.wk = "self_attn.k_proj";
  names.wv = "self_attn.v_proj";
  names.wo = "self_attn.o_proj";
  names.mlp_norm = "post_attention_layernorm";
  names.gate = "mlp.gate_proj";
  names.up = "mlp.up_proj";
  names.down = "mlp.down_proj";
  return names;
}

TensorNames GgufNames() {
  TensorNames names;
  names.embedding = "token_embd";
  names.output_norm = "output_norm";
  names.lm_head = "output";
  names.layer_prefix = "blk.";
  names.attn_norm = "attn_norm";
  names.wq = "attn_q";
  names.wk = "attn_k";
  names.wv = "attn_v";
  names.wo = "attn_output";
  names.mlp_norm = "ffn_norm";
  names.gate = "ffn_gate";
  names.up = "ffn_up";
  names.down = "ffn_down";
  return names;
}

absl::Status AddRope(const RopeConfig& rope, const DecoderShape& shape, bool interleaved,
                     ModelSpec* spec) {
  ASSIGN_OR_RETURN(RopeSpec table,
                   BuildRope(rope, shape.head_dim, interleaved, shape.max_positions));
  spec->ropes.push_back(std::move(table));
  // YaRN is often switched on without raising the context length that the file states.
  if (rope.scaling == RopeScaling::kYarn) {
    const double extended =
        std::min(rope.original_max_positions * rope.factor, static_cast<double>(kMaxPositions));
    spec->max_positions = std::max(spec->max_positions, static_cast<int32_t>(extended));
  }
  return absl::OkStatus();
}

std::string FindHfPrefix(const WeightsFile& file) {
  for (const std::string_view prefix :
       {"model.", "language_model.model.", "model.language_model.", ""}) {
    if (file.Has(StrCat(prefix, "embed_tokens.weight"))) return std::string(prefix);
  }
  return "model.";
}

std::string LayerPrefix(const TensorNames& names, int32_t layer) {
  return StrCat(names.layer_prefix, layer, ".");
}

absl::StatusOr<TensorView> BindBias(const std::string& base, int64_t n, BiasRule rule,
                                    WeightBinder* binder) {
  const std::string name = base + ".bias";
  if (rule == BiasRule::kNone || (rule == BiasRule::kIfPresent && !binder->Has(name))) {
    return TensorView();
  }
  return binder->Vector(name, n);
}

absl::Status BindGlobals(const TensorNames& names, bool tied, WeightBinder* binder,
                         ModelSpec* spec) {
  ASSIGN_OR_RETURN(spec->embedding,
                   binder->Matrix(names.embedding + ".weight", spec->vocab_size, spec->dim));
  if (!names.output_norm.empty()) {
    ASSIGN_OR_RETURN(spec->output_norm, binder->Vector(names.output_norm + ".weight", spec->dim));
  }
  if (!spec->causal) {
    binder->MarkUsed(names.lm_head + ".weight");
    return absl::OkStatus();
  }
  spec->tied_embedding = tied;
  if (tied) {
    binder->MarkUsed(names.lm_head + ".weight");
    spec->lm_head = spec->embedding;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(spec->lm_head,
                   binder->Matrix(names.lm_head + ".weight", spec->vocab_size, spec->dim));
  return absl::OkStatus();
}

namespace {

absl::Status BindQkv(const TensorNames& names, const std::string& prefix,
                     const AttentionSpec& attention, int64_t dim, WeightBinder* binder,
                     LayerWeights* weights) {
  const int64_t q_rows = int64_t{attention.num_heads} * attention.head_dim;
  const int64_t kv_rows = int64_t{attention.num_kv_heads} * attention.head_dim;
  if (!names.fused_qkv.empty()) {
    ASSIGN_OR_RETURN(const TensorView fused, binder->Matrix(prefix + names.fused_qkv + ".weight",
                                                            q_rows + 2 * kv_rows, dim));
    weights->wq = RowRange(fused, 0, q_rows);
    weights->wk = RowRange(fused, q_rows, kv_rows);
    weights->wv = RowRange(fused, q_rows + kv_rows, kv_rows);
    return absl::OkStatus();
  }
  const auto bind = [&](const std::string& name, int64_t rows, TensorView* weight,
                        TensorView* bias) -> absl::Status {
    ASSIGN_OR_RETURN(*weight, binder->Matrix(prefix + name + ".weight", rows, dim));
    ASSIGN_OR_RETURN(*bias, BindBias(prefix + name, rows, names.qkv_bias, binder));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(bind(names.wq, q_rows, &weights->wq, &weights->bq));
  RETURN_IF_ERROR(bind(names.wk, kv_rows, &weights->wk, &weights->bk));
  return bind(names.wv, kv_rows, &weights->wv, &weights->bv);
}

absl::Status BindQkNorm(const TensorNames& names, const std::string& prefix,
                        const AttentionSpec& attention, WeightBinder* binder,
                        LayerWeights* weights) {
  const bool full = attention.qk_norm == QkNorm::kFullWidth;
  if (!full && attention.qk_norm != QkNorm::kPerHead) return absl::OkStatus();
  const int64_t head_dim = attention.head_dim;
  ASSIGN_OR_RETURN(weights->q_norm,
                   binder->Vector(prefix + names.q_norm + ".weight",
                                  full ? attention.num_heads * head_dim : head_dim));
  ASSIGN_OR_RETURN(weights->k_norm,
                   binder->Vector(prefix + names.k_norm + ".weight",
                                  full ? attention.num_kv_heads * head_dim : head_dim));
  return absl::OkStatus();
}

}  // namespace

namespace {

// What checkpoints that were calibrated for an fp8 cache divide keys and values by, beside the
// attention module or inside its projections.
absl::Status BindKvScales(const std::string& prefix, WeightBinder* binder,
                          AttentionSpec* attention) {
  for (const auto& [names, scale] :
       {std::pair(std::pair("self_attn.k_scale", "self_attn.k_proj.k_scale"), &attention->k_scale),
        std::pair(std::pair("self_attn.v_scale", "self_attn.v_proj.v_scale"),
                  &attention->v_scale)}) {
    for (const char* name : {names.first, names.second}) {
      if (!binder->Has(prefix + name)) continue;
      ASSIGN_OR_RETURN(*scale, binder->Scalar(prefix + name));
      if (*scale > 0 && std::isfinite(*scale)) continue;
      return absl::InvalidArgumentError(StrCat("tensor \"", prefix, name, "\" is ", *scale,
                                               "; the scale of a cache is a number above 0"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status BindAttention(const TensorNames& names, int32_t layer, WeightBinder* binder,
                           ModelSpec* spec) {
  const std::string prefix = LayerPrefix(names, layer);
  LayerSpec& out = spec->layers[static_cast<size_t>(layer)];
  RETURN_IF_ERROR(BindKvScales(prefix, binder, &out.attention));
  const AttentionSpec& attention = out.attention;
  LayerWeights& weights = out.weights;
  const auto bind_norm = [&](const std::string& name, TensorView* view) -> absl::Status {
    if (name.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(*view, binder->Vector(prefix + name + ".weight", spec->dim));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(bind_norm(names.attn_norm, &weights.attn_norm));
  RETURN_IF_ERROR(bind_norm(names.post_attn_norm, &weights.post_attn_norm));
  RETURN_IF_ERROR(bind_norm(names.mlp_norm, &weights.mlp_norm));
  RETURN_IF_ERROR(bind_norm(names.post_mlp_norm, &weights.post_mlp_norm));
  ASSIGN_OR_RETURN(weights.post_attn_norm_bias,
                   BindBias(prefix + names.post_attn_norm, spec->dim, names.norm_bias, binder));
  ASSIGN_OR_RETURN(weights.post_mlp_norm_bias,
                   BindBias(prefix + names.post_mlp_norm, spec->dim, names.norm_bias, binder));
  RETURN_IF_ERROR(BindQkv(names, prefix, attention, spec->dim, binder, &weights));
  RETURN_IF_ERROR(BindQkNorm(names, prefix, attention, binder, &weights));
  ASSIGN_OR_RETURN(weights.wo, binder->Matrix(prefix + names.wo + ".weight", spec->dim,
                                              int64_t{attention.num_heads} * attention.head_dim));
  ASSIGN_OR_RETURN(weights.bo, BindBias(prefix + names.wo, spec->dim, names.wo_bias, binder));
  if (!names.attn_gates.empty()) {
    ASSIGN_OR_RETURN(weights.attn_gates,
                     binder->Matrix(prefix + names.attn_gates + ".weight",
                                    int64_t{attention.num_heads} * attention.gates, spec->dim));
  }
  if (!names.sinks.empty()) {
    ASSIGN_OR_RETURN(weights.sinks, binder->Vector(prefix + names.sinks, attention.num_heads));
  }
  return absl::OkStatus();
}

absl::Status BindMlp(const TensorNames& names, int32_t layer, WeightBinder* binder,
                     ModelSpec* spec) {
  const std::string prefix = LayerPrefix(names, layer);
  LayerSpec& out = spec->layers[static_cast<size_t>(layer)];
  LayerWeights& weights = out.weights;
  const int64_t ffn = out.mlp.ffn_dim;
  if (!names.fused_gate_up.empty()) {
    ASSIGN_OR_RETURN(const TensorView fused,
                     binder->Matrix(prefix + names.fused_gate_up + ".weight", 2 * ffn, spec->dim));
    weights.gate = RowRange(fused, 0, ffn);
    weights.up = RowRange(fused, ffn, ffn);
  } else {
    ASSIGN_OR_RETURN(weights.gate, binder->Matrix(prefix + names.gate + ".weight", ffn, spec->dim));
    ASSIGN_OR_RETURN(weights.gate_bias, BindBias(prefix + names.gate, ffn, names.mlp_bias, binder));
    if (!names.up.empty()) {
      ASSIGN_OR_RETURN(weights.up, binder->Matrix(prefix + names.up + ".weight", ffn, spec->dim));
      ASSIGN_OR_RETURN(weights.up_bias, BindBias(prefix + names.up, ffn, names.mlp_bias, binder));
    }
  }
  ASSIGN_OR_RETURN(weights.down, binder->Matrix(prefix + names.down + ".weight", spec->dim, ffn));
  ASSIGN_OR_RETURN(weights.down_bias,
                   BindBias(prefix + names.down, spec->dim, names.mlp_bias, binder));
  return absl::OkStatus();
}

absl::Status BindTransformer(const TensorNames& names, bool tied, WeightBinder* binder,
                             ModelSpec* spec) {
  RETURN_IF_ERROR(BindGlobals(names, tied, binder, spec));
  for (int32_t layer = 0; layer < static_cast<int32_t>(spec->layers.size()); ++layer) {
    RETURN_IF_ERROR(BindAttention(names, layer, binder, spec));
    RETURN_IF_ERROR(BindMlp(names, layer, binder, spec));
  }
  return absl::OkStatus();
}

}  // namespace longstride::model

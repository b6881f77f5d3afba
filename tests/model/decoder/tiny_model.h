// Tiny random checkpoints with any combination of a ModelSpec's flags, for tests of the decoder.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/model_spec.h"

namespace longstride::model {

struct TinyOptions {
  std::string name = "plain";
  int32_t layers = 4, heads = 4, kv_heads = 2, head_dim = 16, dim = 48, ffn = 40, vocab = 97;
  NormKind norm = NormKind::kRms;
  float norm_offset = 0.0f;
  bool norm_bias = false;
  bool pre_norm = true, post_norm = false, parallel = false;
  QkNorm qk_norm = QkNorm::kNone;
  bool interleaved = false, partial_rope = false;
  int32_t rope_variants = 1;
  float rope_scale = 1.0f;
  bool nope_every_second = false, position_scale = false;
  bool sinks = false, biases = false;
  float softcap = 0.0f, logit_softcap = 0.0f, logit_scale = 1.0f, residual_scale = 1.0f,
        embedding_scale = 1.0f;
  bool tied = false;
  kernels::Activation activation = kernels::Activation::kSilu;
  int32_t experts = 0, top_k = 2, shared_ffn = 0;
  kernels::ExpertScoring scoring = kernels::ExpertScoring::kSoftmaxOfTopK;
  bool renormalize = true;
  int32_t window = 0, chunk = 0;  // of every layer but each third
  int32_t chunk_size = 0, local_size = 0;  // of dual chunk attention
  int32_t nsa_blocks = 0, nsa_window = 0;  // NSA, in every layer
  int32_t max_positions = 1024;

  friend void PrintTo(const TinyOptions& o, std::ostream* out) { *out << o.name; }
};

class TinyModel {
 public:
  explicit TinyModel(const TinyOptions& o, unsigned seed = 5) : random_(seed) {
    spec.family = "tiny";
    spec.name = o.name;
    spec.vocab_size = o.vocab;
    spec.dim = o.dim;
    spec.max_positions = o.max_positions;
    spec.norm = o.norm;
    spec.norm_weight_offset = o.norm_offset;
    spec.parallel_block = o.parallel;
    spec.embedding_scale = o.embedding_scale;
    spec.residual_scale = o.residual_scale;
    spec.logit_scale = o.logit_scale;
    spec.logit_softcap = o.logit_softcap;
    if (o.chunk_size > 0)
      spec.dual_chunk = {.chunk_size = o.chunk_size, .local_size = o.local_size};
    for (const double theta : {10000.0, 500.0}) spec.ropes.push_back(MakeRope(o, theta));
    spec.embedding = Matrix(o.vocab, o.dim, 1.0);
    spec.output_norm = NormWeight(o, o.dim);
    if (o.norm_bias) spec.output_norm_bias = Vector(o.dim, 0.2);
    spec.tied_embedding = o.tied;
    spec.lm_head = o.tied ? spec.embedding : Matrix(o.vocab, o.dim, 2.0 / std::sqrt(o.dim));
    for (int32_t l = 0; l < o.layers; ++l) spec.layers.push_back(Layer(o, l));
  }

  ModelSpec spec;

 private:
  using TensorView = kernels::TensorView;

  static RopeSpec MakeRope(const TinyOptions& o, double theta) {
    RopeSpec rope;
    for (int32_t v = 0; v < o.rope_variants; ++v) {
      RopeTable table;
      const int32_t rotated = o.partial_rope ? o.head_dim / 2 : o.head_dim;
      for (int32_t f = 0; f < rotated / 2; ++f) {
        table.inv_freq.push_back(static_cast<float>(std::pow(theta, -2.0 * f / rotated) /
                                                    (o.chunk_size > 0 ? 1.0 : 1.0 + 0.5 * v)));
      }
      table.interleaved = o.interleaved;
      table.scale = o.rope_scale * (o.chunk_size > 0 ? 1.0f + 0.1f * static_cast<float>(v) : 1.0f);
      rope.variants.push_back(table);
      if (v > 0) rope.variant_lengths.push_back(64 * v);
    }
    return rope;
  }

  LayerSpec Layer(const TinyOptions& o, int32_t l) {
    LayerSpec layer;
    AttentionSpec& a = layer.attention;
    a.num_heads = o.heads;
    a.num_kv_heads = o.kv_heads;
    a.head_dim = o.head_dim;
    a.scale = static_cast<float>(1.0 / std::sqrt(o.head_dim));
    a.softcap = o.softcap;
    a.rope = o.nope_every_second && l % 2 == 1 ? -1 : l % 2;
    a.qk_norm = o.qk_norm;
    if (o.qk_norm == QkNorm::kL2AfterRope && a.rope < 0) a.qk_norm = QkNorm::kNone;
    a.position_scale = o.position_scale && a.rope < 0;
    a.position_floor_scale = 16.0f;
    if (l % 3 != 2) a.native = {.window = o.window, .chunk = o.chunk};
    if (o.nsa_blocks > 0) {
      a.gates = Nsa::kParts;
      a.native = {.nsa = {.block_counts = o.nsa_blocks, .window = o.nsa_window}};
    }
    layer.mlp.ffn_dim = o.ffn;
    layer.mlp.activation = o.activation;
    layer.mlp.activation_limit = 1.5f;
    layer.mlp.num_experts = o.experts;
    layer.mlp.top_k = o.experts > 0 ? o.top_k : 0;
    layer.mlp.scoring = o.scoring;
    layer.mlp.renormalize = o.renormalize;
    layer.mlp.shared_ffn_dim = o.shared_ffn;
    FillAttention(o, &layer.weights);
    FillMlp(o, &layer.weights);
    return layer;
  }

  void FillAttention(const TinyOptions& o, LayerWeights* w) {
    const int32_t q = o.heads * o.head_dim;
    const int32_t kv = o.kv_heads * o.head_dim;
    const double in = 1.0 / std::sqrt(o.dim);
    if (o.pre_norm) {
      w->attn_norm = NormWeight(o, o.dim);
      if (!o.parallel) w->mlp_norm = NormWeight(o, o.dim);
      if (o.norm_bias) {
        w->attn_norm_bias = Vector(o.dim, 0.2);
        if (!o.parallel) w->mlp_norm_bias = Vector(o.dim, 0.2);
      }
    }
    if (o.post_norm) {
      w->post_attn_norm = NormWeight(o, o.dim);
      w->post_mlp_norm = NormWeight(o, o.dim);
    }
    // Large queries and keys make attention peaked.
    w->wq = Matrix(q, o.dim, 2.0 * in);
    w->wk = Matrix(kv, o.dim, 2.0 * in);
    w->wv = Matrix(kv, o.dim, in);
    w->wo = Matrix(o.dim, q, 1.0 / std::sqrt(q));
    if (o.nsa_blocks > 0) w->attn_gates = Matrix(Nsa::kParts * o.heads, o.dim, in);
    if (o.biases) {
      w->bq = Vector(q, 0.3);
      w->bk = Vector(kv, 0.3);
      w->bv = Vector(kv, 0.3);
      w->bo = Vector(o.dim, 0.3);
    }
    if (o.sinks) w->sinks = Vector(o.heads, 1.0);
    switch (o.qk_norm) {
      case QkNorm::kPerHead:
        w->q_norm = NormWeight(o, o.head_dim);
        w->k_norm = NormWeight(o, o.head_dim);
        break;
      case QkNorm::kFullWidth:
      case QkNorm::kLayerNormPerHead:
        w->q_norm = NormWeight(o, q);
        w->k_norm = NormWeight(o, kv);
        break;
      default:
        break;
    }
  }

  void FillMlp(const TinyOptions& o, LayerWeights* w) {
    const double in = 1.0 / std::sqrt(o.dim);
    const int32_t dense = o.experts > 0 ? o.shared_ffn : o.ffn;
    if (dense > 0) {
      w->gate = Matrix(dense, o.dim, in);
      w->up = Matrix(dense, o.dim, in);
      w->down = Matrix(o.dim, dense, 1.0 / std::sqrt(dense));
      if (o.biases) {
        w->up_bias = Vector(dense, 0.3);  // no gate bias: joined with zeros
        w->down_bias = Vector(o.dim, 0.3);
      }
    }
    if (o.experts == 0) return;
    w->router = Matrix(o.experts, o.dim, 2.0 * in);
    if (o.biases) {
      w->router_bias = Vector(o.experts, 0.3);
      w->expert_gate_up_bias = Matrix(o.experts, 2 * o.ffn, 0.3);
      w->expert_down_bias = Matrix(o.experts, o.dim, 0.3);
    }
    for (int32_t e = 0; e < o.experts; ++e) {
      w->expert_gate.push_back(Matrix(o.ffn, o.dim, in));
      w->expert_up.push_back(Matrix(o.ffn, o.dim, in));
      w->expert_down.push_back(Matrix(o.dim, o.ffn, 1.0 / std::sqrt(o.ffn)));
    }
  }

  float* Fill(int64_t n, double mean, double std) {
    auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(n));
    std::normal_distribution<double> normal(mean, std);
    for (float& v : *values) v = static_cast<float>(normal(random_));
    spec.owned.push_back(values);
    return values->data();
  }
  TensorView Matrix(int64_t rows, int64_t cols, double std) {
    return TensorView::Matrix(Fill(rows * cols, 0, std), kernels::DType::kF32, rows, cols);
  }
  TensorView Vector(int64_t n, double std) {
    return TensorView::Vector(Fill(n, 0, std), kernels::DType::kF32, n);
  }
  TensorView NormWeight(const TinyOptions& o, int64_t n) {
    return TensorView::Vector(Fill(n, 1.0 - o.norm_offset, 0.2), kernels::DType::kF32, n);
  }

  std::mt19937 random_;
};

}  // namespace longstride::model

#include "tests/model/decoder/naive_forward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace longstride::model {
namespace {

using kernels::Activation;
using kernels::ExpertScoring;
using kernels::TensorView;
using Row = std::vector<double>;

Row MatVec(const TensorView& w, const Row& x, const TensorView& bias) {
  Row y(static_cast<size_t>(w.shape[0]));
  for (int64_t n = 0; n < w.shape[0]; ++n) {
    double sum = bias.data == nullptr ? 0.0 : bias.ptr<float>()[n];
    for (int64_t k = 0; k < w.shape[1]; ++k) {
      sum += double{w.row<float>(n)[k]} * x[static_cast<size_t>(k)];
    }
    y[static_cast<size_t>(n)] = sum;
  }
  return y;
}

void RmsNorm(double* x, int64_t n, const float* weight, double offset, double eps) {
  double squares = 0;
  for (int64_t c = 0; c < n; ++c) squares += x[c] * x[c];
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
  for (int64_t c = 0; c < n; ++c) x[c] *= scale * (weight == nullptr ? 1.0 : weight[c] + offset);
}

void LayerNorm(double* x, int64_t n, const float* weight, const float* bias, double eps) {
  double mean = 0;
  for (int64_t c = 0; c < n; ++c) mean += x[c] / static_cast<double>(n);
  double var = 0;
  for (int64_t c = 0; c < n; ++c) var += (x[c] - mean) * (x[c] - mean) / static_cast<double>(n);
  for (int64_t c = 0; c < n; ++c) {
    x[c] = (x[c] - mean) / std::sqrt(var + eps) * weight[c] + (bias == nullptr ? 0.0 : bias[c]);
  }
}

Row Normed(const ModelSpec& spec, Row x, const TensorView& weight, const TensorView& bias) {
  if (weight.data == nullptr) return x;
  const auto n = static_cast<int64_t>(x.size());
  if (spec.norm == NormKind::kLayerNorm) {
    LayerNorm(x.data(), n, weight.ptr<float>(), bias.ptr<float>(), spec.norm_eps);
  } else {
    RmsNorm(x.data(), n, weight.ptr<float>(), spec.norm_weight_offset, spec.norm_eps);
  }
  return x;
}

void QkNormBefore(const ModelSpec& spec, const AttentionSpec& a, int32_t heads,
                  const TensorView& weight, Row* x) {
  const float* w = weight.ptr<float>();
  for (int32_t h = 0; h < heads; ++h) {
    double* head = x->data() + h * a.head_dim;
    if (a.qk_norm == QkNorm::kPerHead) {
      RmsNorm(head, a.head_dim, w, spec.norm_weight_offset, a.qk_norm_eps);
    } else if (a.qk_norm == QkNorm::kLayerNormPerHead) {
      LayerNorm(head, a.head_dim, w + h * a.head_dim, nullptr, a.qk_norm_eps);
    }
  }
  if (a.qk_norm == QkNorm::kFullWidth) {
    RmsNorm(x->data(), static_cast<int64_t>(x->size()), w, spec.norm_weight_offset, a.qk_norm_eps);
  }
}

void Rotate(const RopeTable& table, int64_t position, double* head) {
  const size_t n = table.inv_freq.size();
  for (size_t f = 0; f < n; ++f) {
    const size_t first = table.interleaved ? 2 * f : f;
    const size_t second = table.interleaved ? 2 * f + 1 : f + n;
    const double angle = static_cast<double>(position) * table.inv_freq[f];
    const double a = head[first];
    const double b = head[second];
    head[first] = table.scale * (a * std::cos(angle) - b * std::sin(angle));
    head[second] = table.scale * (a * std::sin(angle) + b * std::cos(angle));
  }
}

void PlaceHeads(const ModelSpec& spec, const AttentionSpec& a, int32_t heads, int64_t position,
                int32_t rope_variant, bool is_query, Row* x) {
  for (int32_t h = 0; h < heads; ++h) {
    double* head = x->data() + h * a.head_dim;
    if (a.rope >= 0) {
      const auto& variants = spec.ropes[static_cast<size_t>(a.rope)].variants;
      Rotate(variants[static_cast<size_t>(rope_variant)], position, head);
    }
    if (a.qk_norm == QkNorm::kL2AfterRope) RmsNorm(head, a.head_dim, nullptr, 0, a.qk_norm_eps);
    if (is_query && a.position_scale) {
      const double scale =
          1.0 +
          double{a.position_attn_scale} *
              std::log1p(std::floor(static_cast<double>(position + 1) / a.position_floor_scale));
      for (int32_t c = 0; c < a.head_dim; ++c) head[c] *= scale;
    }
  }
}

// Softmax attention of one query head over all positions up to its own.
// `queries`: the query of each key (dual chunk attention: another one for near and far keys).
void AttendHead(const AttentionSpec& a, const std::vector<const double*>& queries, const Rows& keys,
                const Rows& values, int32_t kv_head, const double* sink,
                const std::vector<bool>& seen, double* out) {
  std::vector<double> scores(seen.size(), -std::numeric_limits<double>::infinity());
  double max = sink == nullptr ? -std::numeric_limits<double>::infinity() : *sink;
  for (size_t j = 0; j < seen.size(); ++j) {
    if (!seen[j]) continue;
    double s = 0;
    for (int32_t c = 0; c < a.head_dim; ++c) {
      s += queries[j][c] * keys[j][static_cast<size_t>(kv_head * a.head_dim + c)];
    }
    s *= a.scale;
    if (a.softcap > 0) s = a.softcap * std::tanh(s / a.softcap);
    scores[j] = s;
    max = std::max(max, s);
  }
  double total = sink == nullptr ? 0.0 : std::exp(*sink - max);
  for (const double s : scores) total += std::exp(s - max);
  for (int32_t c = 0; c < a.head_dim; ++c) {
    double sum = 0;
    for (size_t j = 0; j < seen.size(); ++j) {
      sum += std::exp(scores[j] - max) / total *
             values[j][static_cast<size_t>(kv_head * a.head_dim + c)];
    }
    out[c] = sum;
  }
}

// NSA of one query head at the last of `count` positions: what its three parts attend to, added up
// by gates (before the sigmoid). `group`: queries of the KV head's query heads.
void AttendNsa(const AttentionSpec& a, const double* query, const std::vector<const double*>& group,
               const Rows& keys, const Rows& values, int32_t kv_head, const double* gates,
               size_t count, double* out) {
  constexpr size_t kBlock = 64;
  Rows mean_keys, mean_values;
  for (size_t end = kBlock; end <= count; end += kBlock) {
    for (const auto& [means, rows] :
         {std::pair(&mean_keys, &keys), std::pair(&mean_values, &values)}) {
      Row& mean = means->emplace_back(rows->front().size(), 0.0);
      for (size_t j = end - kBlock; j < end; ++j) {
        for (size_t c = 0; c < mean.size(); ++c) mean[c] += (*rows)[j][c] / kBlock;
      }
    }
  }
  Row shares(mean_keys.size(), 0.0);
  for (const double* q : group) {
    Row weights;
    for (const Row& key : mean_keys) {
      double s = 0;
      for (int32_t c = 0; c < a.head_dim; ++c) {
        s += q[c] * key[static_cast<size_t>(kv_head * a.head_dim + c)];
      }
      weights.push_back(std::exp(s * a.scale));
    }
    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (size_t b = 0; b < shares.size(); ++b) shares[b] += weights[b] / total;
  }
  const size_t own = (count - 1) / kBlock;
  std::vector<size_t> others(own);
  std::iota(others.begin(), others.end(), size_t{0});
  std::stable_sort(others.begin(), others.end(),
                   [&](size_t x, size_t y) { return shares[x] > shares[y]; });
  others.resize(std::min(own, static_cast<size_t>(a.native.nsa.block_counts - 1)));
  std::vector<bool> selected(count), sliding(count);
  for (size_t j = 0; j < count; ++j) {
    selected[j] =
        j / kBlock == own || std::find(others.begin(), others.end(), j / kBlock) != others.end();
    sliding[j] = j + static_cast<size_t>(a.native.nsa.window) >= count;
  }
  const auto attend = [&](const Rows& k, const Rows& v, const std::vector<bool>& seen) {
    Row part(static_cast<size_t>(a.head_dim), 0.0);
    if (std::find(seen.begin(), seen.end(), true) == seen.end()) return part;
    AttendHead(a, std::vector<const double*>(seen.size(), query), k, v, kv_head, nullptr, seen,
               part.data());
    return part;
  };
  const Row parts[] = {attend(mean_keys, mean_values, std::vector<bool>(mean_keys.size(), true)),
                       attend(keys, values, selected), attend(keys, values, sliding)};
  for (int32_t c = 0; c < a.head_dim; ++c) {
    out[c] = 0;
    for (int p = 0; p < 3; ++p) {
      out[c] += parts[p][static_cast<size_t>(c)] / (1 + std::exp(-gates[p]));
    }
  }
}

double Activate(const MlpSpec& mlp, double gate, double up) {
  const double pi = std::acos(-1.0);
  switch (mlp.activation) {
    case Activation::kSilu:
      return gate / (1 + std::exp(-gate)) * up;
    case Activation::kGeluTanh:
      return 0.5 * gate *
             (1 + std::tanh(std::sqrt(2 / pi) * (gate + 0.044715 * gate * gate * gate))) * up;
    case Activation::kGelu:
      return 0.5 * gate * (1 + std::erf(gate / std::sqrt(2.0))) * up;
    case Activation::kSwigluOai: {
      const double limit = mlp.activation_limit;
      const double g = std::min(gate, limit);
      const double u = std::clamp(up, -limit, limit);
      return (u + 1) * g / (1 + std::exp(-1.702 * g));
    }
  }
  return 0;
}

Row DenseMlp(const MlpSpec& mlp, const LayerWeights& w, const Row& h) {
  const Row gate = MatVec(w.gate, h, w.gate_bias);
  const Row up = MatVec(w.up, h, w.up_bias);
  Row act(gate.size());
  for (size_t i = 0; i < act.size(); ++i) act[i] = Activate(mlp, gate[i], up[i]);
  return MatVec(w.down, act, w.down_bias);
}

Row Expert(const MlpSpec& mlp, const LayerWeights& w, size_t e, const Row& h) {
  const auto ffn = static_cast<size_t>(mlp.ffn_dim);
  Row gate = MatVec(w.expert_gate[e], h, {});
  Row up = MatVec(w.expert_up[e], h, {});
  for (size_t i = 0; i < ffn; ++i) {
    if (w.expert_gate_up_bias.data == nullptr) break;
    const float* bias = w.expert_gate_up_bias.row<float>(static_cast<int64_t>(e));
    gate[i] += bias[i];
    up[i] += bias[ffn + i];
  }
  Row act(ffn);
  for (size_t i = 0; i < ffn; ++i) act[i] = Activate(mlp, gate[i], up[i]);
  TensorView bias;
  if (w.expert_down_bias.data != nullptr) {
    bias = TensorView::Vector(w.expert_down_bias.row<float>(static_cast<int64_t>(e)),
                              kernels::DType::kF32, w.expert_down_bias.shape[1]);
  }
  return MatVec(w.expert_down[e], act, bias);
}

Row MixtureMlp(const MlpSpec& mlp, const LayerWeights& w, const Row& h) {
  const Row logits = MatVec(w.router, h, w.router_bias);
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  order.resize(static_cast<size_t>(mlp.top_k));
  double all = 0;
  for (const double l : logits) all += std::exp(l);
  double chosen = 0;
  for (const size_t e : order) chosen += std::exp(logits[e]);
  Row out(h.size(), 0.0);
  if (mlp.shared_ffn_dim > 0) out = DenseMlp(mlp, w, h);
  for (const size_t e : order) {
    double weight = 1;
    Row input = h;
    if (mlp.scoring == ExpertScoring::kSigmoidInput) {
      for (double& v : input) v /= 1 + std::exp(-logits[e]);
    } else if (mlp.scoring == ExpertScoring::kSoftmaxOfTopK || mlp.renormalize) {
      weight = std::exp(logits[e]) / chosen;
    } else {
      weight = std::exp(logits[e]) / all;
    }
    const Row y = Expert(mlp, w, e, input);
    for (size_t c = 0; c < out.size(); ++c) out[c] += weight * y[c];
  }
  return out;
}

Rows AttentionBranch(const ModelSpec& spec, int32_t l, const Rows& h, const Visible& visible,
                     int32_t rope_variant, const Watch& watch) {
  const AttentionSpec& a = spec.layers[static_cast<size_t>(l)].attention;
  const LayerWeights& w = spec.layers[static_cast<size_t>(l)].weights;
  Rows queries, keys, values;
  std::vector<Rows> rotated(DualChunk::kParts);  // of dual chunk attention, [part][token]
  for (size_t t = 0; t < h.size(); ++t) {
    Row q = MatVec(w.wq, h[t], w.bq);
    Row k = MatVec(w.wk, h[t], w.bk);
    QkNormBefore(spec, a, a.num_heads, w.q_norm, &q);
    QkNormBefore(spec, a, a.num_kv_heads, w.k_norm, &k);
    auto key_position = static_cast<int64_t>(t);
    if (spec.dual_chunk) {
      const int64_t chunk = spec.dual_chunk->chunk_size;
      const int64_t stride = chunk - spec.dual_chunk->local_size;
      key_position = static_cast<int64_t>(t) % stride;
      const int64_t places[] = {key_position, std::min(key_position + stride, chunk),
                                std::min(2 * stride - 1, chunk)};
      for (size_t part = 0; part < rotated.size(); ++part) {
        rotated[part].push_back(q);
        PlaceHeads(spec, a, a.num_heads, places[part], rope_variant, true, &rotated[part].back());
      }
    }
    PlaceHeads(spec, a, a.num_heads, static_cast<int64_t>(t), rope_variant, true, &q);
    PlaceHeads(spec, a, a.num_kv_heads, key_position, rope_variant, false, &k);
    queries.push_back(std::move(q));
    keys.push_back(std::move(k));
    values.push_back(MatVec(w.wv, h[t], w.bv));
  }
  if (watch) watch(l, queries, keys);
  Rows out;
  for (size_t t = 0; t < h.size(); ++t) {
    Row attended(queries[t].size());
    const int32_t per_kv = a.num_heads / a.num_kv_heads;
    const Row gates = a.gates > 0 ? MatVec(w.attn_gates, h[t], {}) : Row();
    for (int32_t head = 0; head < a.num_heads; ++head) {
      if (a.gates > 0) {
        std::vector<const double*> group;
        for (int32_t g = 0; g < per_kv; ++g) {
          group.push_back(queries[t].data() + (head / per_kv * per_kv + g) * a.head_dim);
        }
        AttendNsa(a, queries[t].data() + head * a.head_dim, group, keys, values, head / per_kv,
                  gates.data() + 3 * head, t + 1, attended.data() + head * a.head_dim);
        continue;
      }
      std::vector<bool> seen(t + 1);
      std::vector<const double*> query(t + 1, queries[t].data() + head * a.head_dim);
      for (size_t j = 0; spec.dual_chunk && j <= t; ++j) {
        const auto stride = static_cast<size_t>(spec.dual_chunk->stride());
        const size_t part = std::min<size_t>(t / stride - j / stride, 2);
        query[j] = rotated[part][t].data() + head * a.head_dim;
      }
      for (size_t j = 0; j <= t; ++j) {
        seen[j] = visible(l, head, static_cast<int64_t>(t), static_cast<int64_t>(j));
      }
      const double sink = w.sinks.data == nullptr ? 0.0 : w.sinks.ptr<float>()[head];
      AttendHead(a, query, keys, values, head / per_kv, w.sinks.data == nullptr ? nullptr : &sink,
                 seen, attended.data() + head * a.head_dim);
    }
    out.push_back(MatVec(w.wo, attended, w.bo));
  }
  return out;
}

void Add(const ModelSpec& spec, const TensorView& post_norm, const Row& branch, Row* x) {
  const Row y = Normed(spec, branch, post_norm, {});
  for (size_t c = 0; c < x->size(); ++c) (*x)[c] += spec.residual_scale * y[c];
}

}  // namespace

bool NativeVisible(const ModelSpec& spec, int32_t layer, int64_t i, int64_t j) {
  const NativeSparsity& native = spec.layers[static_cast<size_t>(layer)].attention.native;
  return j <= i && (native.window == 0 || j > i - native.window) &&
         (native.chunk == 0 || j / native.chunk == i / native.chunk);
}

NaiveOutput NaiveForward(const ModelSpec& spec, const std::vector<int32_t>& tokens,
                         const Visible& visible, int32_t rope_variant, const Watch& watch) {
  Rows x;
  for (const int32_t id : tokens) {
    const float* row = spec.embedding.row<float>(id);
    Row r(row, row + spec.dim);
    for (double& v : r) v *= spec.embedding_scale;
    x.push_back(std::move(r));
  }
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    const LayerSpec& layer = spec.layers[l];
    const LayerWeights& w = layer.weights;
    Rows h;
    for (const Row& r : x) h.push_back(Normed(spec, r, w.attn_norm, w.attn_norm_bias));
    const Rows attended =
        AttentionBranch(spec, static_cast<int32_t>(l), h, visible, rope_variant, watch);
    for (size_t t = 0; t < x.size(); ++t) {
      Add(spec, w.post_attn_norm, attended[t], &x[t]);
      const Row input =
          spec.parallel_block ? h[t] : Normed(spec, x[t], w.mlp_norm, w.mlp_norm_bias);
      const Row mlp = layer.mlp.num_experts > 0 ? MixtureMlp(layer.mlp, w, input)
                                                : DenseMlp(layer.mlp, w, input);
      Add(spec, w.post_mlp_norm, mlp, &x[t]);
    }
  }
  NaiveOutput out;
  for (const Row& r : x) {
    out.hidden.push_back(Normed(spec, r, spec.output_norm, spec.output_norm_bias));
    Row logits = MatVec(spec.lm_head, out.hidden.back(), {});
    for (double& v : logits) {
      v *= spec.logit_scale;
      if (spec.logit_softcap > 0) v = spec.logit_softcap * std::tanh(v / spec.logit_softcap);
    }
    out.logits.push_back(std::move(logits));
  }
  return out;
}

}  // namespace longstride::model

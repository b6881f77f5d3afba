#include "tests/parity/families/mutations.h"

#include <algorithm>
#include <cmath>

#include "config/base/strings.h"

namespace longstride::model {
namespace {

using kernels::TensorView;

bool AnyLayer(const ModelSpec& spec, const std::function<bool(const LayerSpec&)>& test) {
  return std::any_of(spec.layers.begin(), spec.layers.end(), test);
}

// A mutation of every layer.
Mutation Layers(std::string name, std::function<void(LayerSpec*)> change) {
  return {std::move(name), [change](ModelSpec* spec) {
            for (LayerSpec& layer : spec->layers) change(&layer);
          }};
}

void AddSparsity(const ModelSpec& spec, std::vector<Mutation>* out) {
  if (AnyLayer(spec, [](const LayerSpec& l) { return l.attention.native.window > 0; })) {
    for (const int step : {1, -1}) {
      out->push_back(Layers(step > 0 ? "window + 1" : "window - 1", [step](LayerSpec* l) {
        if (l->attention.native.window > 0) l->attention.native.window += step;
      }));
    }
    out->push_back(Layers("window off", [](LayerSpec* l) { l->attention.native.window = 0; }));
    out->push_back({"window of layer 0 moved to the last layer", [](ModelSpec* s) {
                      std::swap(s->layers.front().attention.native,
                                s->layers.back().attention.native);
                    }});
    if (spec.layers.front().attention.native.window == spec.layers.back().attention.native.window) {
      out->pop_back();
    }
  }
  if (AnyLayer(spec, [](const LayerSpec& l) { return l.attention.native.chunk > 0; })) {
    out->push_back(Layers("chunk off", [](LayerSpec* l) { l->attention.native.chunk = 0; }));
    out->push_back(Layers("chunk + 1", [](LayerSpec* l) {
      if (l->attention.native.chunk > 0) l->attention.native.chunk += 1;
    }));
    out->push_back(Layers("chunk read as window", [](LayerSpec* l) {
      std::swap(l->attention.native.chunk, l->attention.native.window);
    }));
  }
}

void AddLearnedSparsity(const ModelSpec& spec, std::vector<Mutation>* out) {
  const auto change_infllm = [out](std::string name, void (*change)(InfLlmV2*)) {
    out->push_back(Layers(std::move(name),
                          [change](LayerSpec* l) { change(&l->attention.native.infllm_v2); }));
  };
  if (spec.layers[0].attention.native.infllm_v2.topk > 0) {
    change_infllm("sparse attention off", [](InfLlmV2* p) { *p = {}; });
    change_infllm("top-k blocks + 1", [](InfLlmV2* p) { p->topk += 1; });
    change_infllm("first blocks not forced", [](InfLlmV2* p) { p->init_blocks = 0; });
    // The same number of blocks.
    change_infllm("window a block wider", [](InfLlmV2* p) {
      p->window += 64;
      p->topk -= 1;
      p->init_blocks = 0;
    });
    change_infllm("dense_len + 1", [](InfLlmV2* p) { p->dense_len += 1; });
  }
  const auto change_moba = [out](std::string name, void (*change)(Moba*)) {
    out->push_back(
        Layers(std::move(name), [change](LayerSpec* l) { change(&l->attention.native.moba); }));
  };
  if (spec.layers[0].attention.native.moba.chunk > 0) {
    change_moba("MoBA off", [](Moba* p) { *p = {}; });
    change_moba("MoBA's blocks half as long", [](Moba* p) { p->chunk /= 2; });
    change_moba("MoBA's top-k + 1", [](Moba* p) { p->topk += 1; });
  }
  if (spec.layers[0].attention.gates > 0) {
    for (const int step : {1, -1}) {
      const char* more = step > 0 ? "+ 1" : "- 1";
      out->push_back(Layers(StrCat("selected blocks ", more), [step](LayerSpec* l) {
        l->attention.native.nsa.block_counts += step;
      }));
      out->push_back(Layers(StrCat("sliding window ", more),
                            [step](LayerSpec* l) { l->attention.native.nsa.window += step; }));
    }
    out->push_back(Layers("gates turned over", [](LayerSpec* l) {
      TensorView& gates = l->weights.attn_gates;
      gates.data = gates.ptr<float>() + (gates.shape[0] - 1) * gates.strides[0];
      gates.strides[0] = -gates.strides[0];
    }));
    out->push_back({"gates of another layer", [](ModelSpec* s) {
                      std::swap(s->layers.front().weights.attn_gates,
                                s->layers.back().weights.attn_gates);
                    }});
  }
  if (spec.layers[0].attention.native.dsa.topk > 0) {
    out->push_back(Layers("indexer off", [](LayerSpec* l) { l->attention.native.dsa.topk = 0; }));
    out->push_back(
        Layers("indexed tokens + 1", [](LayerSpec* l) { l->attention.native.dsa.topk += 1; }));
    out->push_back(Layers("indexer's keys not normed", [](LayerSpec* l) {
      l->attention.indexer.norm_eps = 1e6f;  // their bias alone
    }));
    out->push_back(Layers("indexer's norm without bias",
                          [](LayerSpec* l) { l->weights.index_norm_bias = {}; }));
    out->push_back(
        Layers("indexer not rotated", [](LayerSpec* l) { l->attention.indexer.rope = -1; }));
  }
}

void AddRope(const ModelSpec& spec, std::vector<Mutation>* out) {
  if (spec.ropes.empty()) return;
  const auto tables = [](std::string name, std::function<void(RopeTable*)> change) {
    return Mutation{std::move(name), [change](ModelSpec* s) {
                      for (RopeSpec& rope : s->ropes) {
                        for (RopeTable& table : rope.variants) change(&table);
                      }
                    }};
  };
  out->push_back(
      tables("pairs of the other kind", [](RopeTable* t) { t->interleaved = !t->interleaved; }));
  out->push_back(tables("base doubled", [](RopeTable* t) {
    const auto count = static_cast<double>(t->inv_freq.size());
    for (size_t i = 0; i < t->inv_freq.size(); ++i) {
      t->inv_freq[i] *= static_cast<float>(std::pow(2.0, -static_cast<double>(i) / count));
    }
  }));
  if (spec.ropes.size() > 1) {
    out->push_back(
        {"rope bases swapped", [](ModelSpec* s) { std::swap(s->ropes[0], s->ropes[1]); }});
    out->push_back({"one rope for all", [](ModelSpec* s) { s->ropes[1] = s->ropes[0]; }});
  }
  if (spec.ropes[0].variants.size() > 1) {
    out->push_back({"short and long rope swapped", [](ModelSpec* s) {
                      std::swap(s->ropes[0].variants[0], s->ropes[0].variants[1]);
                    }});
  }
  if (spec.ropes[0].variants[0].scale != 1.0f) {
    out->push_back(tables("rope attention factor dropped", [](RopeTable* t) { t->scale = 1.0f; }));
  }
  if (AnyLayer(spec, [](const LayerSpec& l) { return l.attention.rope < 0; })) {
    out->push_back(
        Layers("rope on layers without it", [](LayerSpec* l) { l->attention.rope = 0; }));
  } else {
    out->push_back(
        {"no rope on the last layer", [](ModelSpec* s) { s->layers.back().attention.rope = -1; }});
  }
  if (!spec.layers[0].attention.is_latent() &&
      2 * spec.ropes[0].variants[0].inv_freq.size() <
          static_cast<size_t>(spec.layers[0].attention.head_dim)) {
    out->push_back(tables("more channels rotated",
                          [](RopeTable* t) { t->inv_freq.push_back(t->inv_freq.back()); }));
  }
}

void AddDualChunk(const ModelSpec& spec, std::vector<Mutation>* out) {
  if (!spec.dual_chunk) return;
  out->push_back({"dual chunk off", [](ModelSpec* s) { s->dual_chunk.reset(); }});
  out->push_back({"largest distance + 1", [](ModelSpec* s) {
                    s->dual_chunk->chunk_size += 1;
                    s->dual_chunk->local_size += 1;
                  }});
  out->push_back({"runs twice as long",
                  [](ModelSpec* s) { s->dual_chunk->chunk_size += s->dual_chunk->stride(); }});
  if (spec.ropes[0].by_prompt) {
    out->push_back({"length scaling dropped", [](ModelSpec* s) {
                      for (RopeTable& t : s->ropes[0].variants) t.scale = 1.0f;
                    }});
  }
}

void AddAttention(const ModelSpec& spec, std::vector<Mutation>* out) {
  const AttentionSpec& first = spec.layers[0].attention;
  out->push_back(Layers("scale", [](LayerSpec* l) { l->attention.scale *= 1.01f; }));
  if (first.softcap > 0.0f) {
    out->push_back(Layers("soft-cap off", [](LayerSpec* l) { l->attention.softcap = 0.0f; }));
  }
  if (first.qk_norm != QkNorm::kNone) {
    out->push_back(
        Layers("qk-norm skipped", [](LayerSpec* l) { l->attention.qk_norm = QkNorm::kNone; }));
  }
  if (first.qk_norm == QkNorm::kL2AfterRope) {
    out->push_back(Layers("qk-norm on all layers",
                          [](LayerSpec* l) { l->attention.qk_norm = QkNorm::kL2AfterRope; }));
  }
  if (AnyLayer(spec, [](const LayerSpec& l) { return l.attention.position_scale; })) {
    out->push_back(
        Layers("temperature off", [](LayerSpec* l) { l->attention.position_scale = false; }));
    out->push_back(Layers("temperature one position late",
                          [](LayerSpec* l) { l->attention.position_floor_scale += 1.0f; }));
  }
  if (spec.layers[0].weights.sinks.data != nullptr) {
    out->push_back(Layers("sinks dropped", [](LayerSpec* l) { l->weights.sinks = {}; }));
    out->push_back(
        {"sink dropped on one layer", [](ModelSpec* s) { s->layers[1].weights.sinks = {}; }});
  }
  if (spec.layers[0].weights.bq.data != nullptr) {
    out->push_back(Layers("query bias dropped", [](LayerSpec* l) { l->weights.bq = {}; }));
    if (first.is_latent()) {
      out->push_back(Layers("key bias dropped", [](LayerSpec* l) { l->weights.bk = {}; }));
    } else {
      out->push_back(Layers("value bias dropped", [](LayerSpec* l) { l->weights.bv = {}; }));
    }
  }
  if (first.is_latent()) {
    out->push_back(Layers("norm of latents skipped", [](LayerSpec* l) {
      l->weights.k_norm = {};
      l->weights.q_norm = {};
    }));
  }
  if (spec.layers[0].weights.bo.data != nullptr) {
    out->push_back(Layers("output bias dropped", [](LayerSpec* l) { l->weights.bo = {}; }));
  }
  if (spec.layers[0].weights.post_attn_norm.data != nullptr) {
    out->push_back(Layers("norm after attention dropped",
                          [](LayerSpec* l) { l->weights.post_attn_norm = {}; }));
  }
}

void AddMlp(const ModelSpec& spec, std::vector<Mutation>* out) {
  out->push_back(Layers("another activation", [](LayerSpec* l) {
    l->mlp.activation = l->mlp.activation == kernels::Activation::kSilu
                            ? kernels::Activation::kGeluTanh
                            : kernels::Activation::kSilu;
  }));
  if (spec.layers[0].weights.up.data != nullptr ||
      AnyLayer(spec, [](const LayerSpec& l) { return l.mlp.num_experts > 0; })) {
    out->push_back(Layers("gate and up swapped", [](LayerSpec* l) {
      std::swap(l->weights.gate, l->weights.up);
      std::swap(l->weights.expert_gate, l->weights.expert_up);
    }));
  }
  if (spec.layers[0].mlp.activation == kernels::Activation::kSwigluOai &&
      spec.layers[0].mlp.activation_limit < 5.0f) {
    out->push_back(
        Layers("activation limit off", [](LayerSpec* l) { l->mlp.activation_limit = 1e9f; }));
  }
  if (spec.layers[0].weights.post_mlp_norm.data != nullptr) {
    out->push_back(
        Layers("norm after the MLP dropped", [](LayerSpec* l) { l->weights.post_mlp_norm = {}; }));
  }
  if (!AnyLayer(spec, [](const LayerSpec& l) { return l.mlp.num_experts > 0; })) return;
  out->push_back(Layers("another expert scoring", [](LayerSpec* l) {
    l->weights.selection_bias = {};
    l->mlp.groups = {};
    l->mlp.scoring = l->mlp.scoring == kernels::ExpertScoring::kSigmoidInput
                         ? kernels::ExpertScoring::kSoftmaxThenTopK
                         : kernels::ExpertScoring::kSigmoidInput;
  }));
  out->push_back(Layers("top-k + 1", [](LayerSpec* l) {
    if (l->mlp.num_experts > 0) l->mlp.top_k += 1;
  }));
  const MlpSpec& mlp = spec.layers.back().mlp;
  if (mlp.groups.chosen < mlp.groups.count) {
    out->push_back(Layers("all groups of experts",
                          [](LayerSpec* l) { l->mlp.groups.chosen = l->mlp.groups.count; }));
  }
  if (mlp.groups.best == 2) {
    out->push_back(
        Layers("groups by their best expert", [](LayerSpec* l) { l->mlp.groups.best = 1; }));
  }
  if (mlp.expert_scale != 1.0f) {
    out->push_back(
        Layers("experts' scale dropped", [](LayerSpec* l) { l->mlp.expert_scale = 1.0f; }));
  }
  if (mlp.scoring == kernels::ExpertScoring::kSigmoid) {
    out->push_back(
        Layers("selection bias dropped", [](LayerSpec* l) { l->weights.selection_bias = {}; }));
    out->push_back(
        Layers("weights not normalised", [](LayerSpec* l) { l->mlp.renormalize = false; }));
  }
  if (AnyLayer(spec, [](const LayerSpec& l) { return l.mlp.shared_ffn_dim > 0; })) {
    out->push_back(Layers("shared expert dropped", [](LayerSpec* l) {
      if (l->mlp.num_experts == 0) return;
      l->mlp.shared_ffn_dim = 0;
      l->weights.gate = l->weights.up = l->weights.down = {};
    }));
  }
  if (AnyLayer(spec, [](const LayerSpec& l) { return l.weights.router_bias.data != nullptr; })) {
    out->push_back(
        Layers("router bias dropped", [](LayerSpec* l) { l->weights.router_bias = {}; }));
    out->push_back(
        Layers("expert bias dropped", [](LayerSpec* l) { l->weights.expert_down_bias = {}; }));
  }
}

void AddWhole(const ModelSpec& spec, std::vector<Mutation>* out) {
  if (spec.norm_weight_offset != 0.0f) {
    out->push_back({"norm offset dropped", [](ModelSpec* s) { s->norm_weight_offset = 0.0f; }});
  }
  if (spec.embedding_scale != 1.0f) {
    out->push_back({"embedding scale dropped", [](ModelSpec* s) { s->embedding_scale = 1.0f; }});
  }
  if (spec.residual_scale != 1.0f) {
    out->push_back({"residual scale dropped", [](ModelSpec* s) { s->residual_scale = 1.0f; }});
  }
  if (spec.logit_softcap > 0.0f) {
    out->push_back({"logit soft-cap off", [](ModelSpec* s) { s->logit_softcap = 0.0f; }});
  }
  if (spec.logit_scale != 1.0f) {
    out->push_back({"logit scale dropped", [](ModelSpec* s) { s->logit_scale = 1.0f; }});
  }
  if (spec.parallel_block) {
    out->push_back({"blocks one after the other", [](ModelSpec* s) {
                      s->parallel_block = false;
                      for (LayerSpec& l : s->layers) l.weights.mlp_norm = l.weights.attn_norm;
                    }});
  }
  if (spec.norm == NormKind::kLayerNorm) {
    out->push_back({"RMSNorm", [](ModelSpec* s) { s->norm = NormKind::kRms; }});
  } else {
    out->push_back({"LayerNorm", [](ModelSpec* s) { s->norm = NormKind::kLayerNorm; }});
  }
}

}  // namespace

std::vector<Mutation> MutationsOf(const ModelSpec& spec) {
  std::vector<Mutation> out;
  AddSparsity(spec, &out);
  AddLearnedSparsity(spec, &out);
  AddRope(spec, &out);
  AddDualChunk(spec, &out);
  AddAttention(spec, &out);
  AddMlp(spec, &out);
  AddWhole(spec, &out);
  return out;
}

}  // namespace longstride::model

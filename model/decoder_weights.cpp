#include "model/decoder_weights.h"

#include <initializer_list>
#include <utility>

namespace longstride::model {
namespace {

using kernels::LinearWeight;
using kernels::TensorView;

// Joins row-concatenated biases; a missing one counts as zeros unless all are missing.
struct BiasPart {
  const TensorView& bias;
  int64_t rows;
};
std::vector<float> JoinBiases(std::initializer_list<BiasPart> parts) {
  bool any = false;
  for (const BiasPart& part : parts) any |= part.bias.data != nullptr;
  std::vector<float> joined;
  if (!any) return joined;
  for (const BiasPart& part : parts) {
    if (part.bias.data == nullptr) {
      joined.resize(joined.size() + static_cast<size_t>(part.rows), 0.0f);
    } else {
      joined.insert(joined.end(), part.bias.ptr<float>(), part.bias.ptr<float>() + part.rows);
    }
  }
  return joined;
}

class Preparer {
 public:
  Preparer(kernels::Backend* backend, const std::function<void(const TensorView&)>& release)
      : backend_(backend), release_(release) {}

  absl::StatusOr<std::unique_ptr<LinearWeight>> Prepare(std::initializer_list<TensorView> parts) {
    bool keeps_views = true;
    ASSIGN_OR_RETURN(std::unique_ptr<LinearWeight> weight,
                     backend_->PrepareLinear({parts.begin(), parts.size()}, &keeps_views));
    owned_bytes_ += weight->owned_bytes();
    if (!keeps_views) {
      for (const TensorView& part : parts) release_(part);
    }
    return weight;
  }

  absl::Status PrepareExperts(const LayerSpec& layer, PreparedLayer* out) {
    const LayerWeights& w = layer.weights;
    ASSIGN_OR_RETURN(out->router, Prepare({w.router}));
    for (size_t e = 0; e < w.expert_gate.size(); ++e) {
      ASSIGN_OR_RETURN(auto gate_up, Prepare({w.expert_gate[e], w.expert_up[e]}));
      ASSIGN_OR_RETURN(auto down, Prepare({w.expert_down[e]}));
      out->expert_gate_up.push_back(gate_up.get());
      out->expert_down.push_back(down.get());
      out->experts.push_back(std::move(gate_up));
      out->experts.push_back(std::move(down));
    }
    return absl::OkStatus();
  }

  absl::Status PrepareLatent(const LayerWeights& w, PreparedLayer* out) {
    if (w.wq.data == nullptr) {
      ASSIGN_OR_RETURN(out->qkv, Prepare({w.wk}));
    } else {
      ASSIGN_OR_RETURN(out->qkv, Prepare({w.wq, w.wk}));
    }
    ASSIGN_OR_RETURN(out->q_up, Prepare({w.q_up}));
    for (const TensorView& head : w.key_up) {
      ASSIGN_OR_RETURN(out->key_up.emplace_back(), Prepare({head}));
    }
    for (const TensorView& head : w.value_up) {
      ASSIGN_OR_RETURN(out->value_up.emplace_back(), Prepare({head}));
    }
    if (w.index_q.data == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(out->index_q, Prepare({w.index_q}));
    ASSIGN_OR_RETURN(out->index_keys, Prepare({w.index_k, w.index_weights}));
    return absl::OkStatus();
  }

  absl::StatusOr<PreparedLayer> PrepareLayer(const LayerSpec& layer) {
    const LayerWeights& w = layer.weights;
    PreparedLayer out;
    if (layer.attention.is_latent()) {
      RETURN_IF_ERROR(PrepareLatent(w, &out));
    } else if (w.attn_gates.data != nullptr) {
      ASSIGN_OR_RETURN(out.qkv, Prepare({w.wq, w.wk, w.wv, w.attn_gates}));
    } else {
      ASSIGN_OR_RETURN(out.qkv, Prepare({w.wq, w.wk, w.wv}));
    }
    out.joined_qkv_bias = JoinBiases({{w.bq, w.wq.shape[0]},
                                      {w.bk, w.wk.shape[0]},
                                      {w.bv, w.wv.shape[0]},
                                      {{}, w.attn_gates.shape[0]}});
    ASSIGN_OR_RETURN(out.qkv_bias, backend_->Resident(VectorView(out.joined_qkv_bias)));
    if (w.global_wq.data != nullptr) {
      ASSIGN_OR_RETURN(out.global_q, Prepare({w.global_wq}));
      ASSIGN_OR_RETURN(out.global_kv, Prepare({w.global_wk, w.global_wv}));
      out.joined_global_kv_bias =
          JoinBiases({{w.global_bk, w.global_wk.shape[0]}, {w.global_bv, w.global_wv.shape[0]}});
      ASSIGN_OR_RETURN(out.global_kv_bias,
                       backend_->Resident(VectorView(out.joined_global_kv_bias)));
    }
    ASSIGN_OR_RETURN(out.o, Prepare({w.wo}));
    if (layer.mlp.num_experts > 0) RETURN_IF_ERROR(PrepareExperts(layer, &out));
    if (layer.mlp.num_experts == 0 || layer.mlp.shared_ffn_dim > 0) {
      if (w.up.data == nullptr) {
        ASSIGN_OR_RETURN(out.gate_up, Prepare({w.gate}));
      } else {
        ASSIGN_OR_RETURN(out.gate_up, Prepare({w.gate, w.up}));
      }
      ASSIGN_OR_RETURN(out.down, Prepare({w.down}));
      out.joined_gate_up_bias =
          JoinBiases({{w.gate_bias, w.gate.shape[0]}, {w.up_bias, w.up.shape[0]}});
      ASSIGN_OR_RETURN(out.gate_up_bias, backend_->Resident(VectorView(out.joined_gate_up_bias)));
    }
    return out;
  }

  int64_t owned_bytes() const { return owned_bytes_; }

 private:
  kernels::Backend* backend_;
  const std::function<void(const TensorView&)>& release_;
  int64_t owned_bytes_ = 0;
};

}  // namespace

absl::StatusOr<PreparedWeights> PrepareWeights(
    kernels::Backend* backend, const ModelSpec& spec,
    const std::function<void(const TensorView&)>& release) {
  Preparer preparer(backend, release);
  PreparedWeights weights;
  for (const LayerSpec& layer : spec.layers) {
    ASSIGN_OR_RETURN(PreparedLayer prepared, preparer.PrepareLayer(layer));
    weights.layers.push_back(std::move(prepared));
  }
  if (spec.lm_head.data != nullptr) {
    ASSIGN_OR_RETURN(weights.lm_head, preparer.Prepare({spec.lm_head}));
  }
  weights.owned_bytes = preparer.owned_bytes();
  return weights;
}

TensorView VectorView(const std::vector<float>& values) {
  if (values.empty()) return {};
  return TensorView::Vector(values.data(), kernels::DType::kF32,
                            static_cast<int64_t>(values.size()));
}

}  // namespace longstride::model

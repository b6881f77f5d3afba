// Norms, projections and the branches that are added to the residual stream.
#include <utility>

#include "model/decoder_impl.h"

namespace longstride::model {

using kernels::LinearWeight;
using kernels::TensorView;

// out = norm(x) as `type`, or x itself where the layer has no such norm.
absl::Status DecoderImpl::Norm(const TensorView& x, const TensorView& weight,
                               const TensorView& bias, kernels::DType type, TensorView* out) {
  if (weight.data == nullptr) {
    *out = x;
    return absl::OkStatus();
  }
  *out = Rows(last_ ? work_.last_normed : work_.normed, spec_->dim, type);
  return NormInto(x, weight, bias, *out);
}

absl::Status DecoderImpl::NormInto(const TensorView& x, const TensorView& weight,
                                   const TensorView& bias, const TensorView& out) {
  Timed timed(&times_->other_ns);
  if (spec_->norm == NormKind::kLayerNorm) {
    return backend_->LayerNorm(
        {.x = x, .weight = weight, .bias = bias, .eps = spec_->norm_eps, .out = out});
  }
  return backend_->RmsNorm({.x = x,
                            .weight = weight,
                            .weight_offset = spec_->norm_weight_offset,
                            .eps = spec_->norm_eps,
                            .out = out});
}

absl::Status DecoderImpl::Linear(const TensorView& x, const LinearWeight* weight,
                                 const TensorView& bias, const TensorView& out, bool accumulate) {
  Timed timed(&times_->linear_ns);
  return backend_->Linear(
      {.x = x, .weight = weight, .bias = bias, .accumulate = accumulate, .out = out});
}

// x += residual_scale * norm(input * weight^T + bias), or with norm_sums x = norm(x + ...);
// straight into x where nothing is between.
absl::Status DecoderImpl::AddProjected(const TensorView& input, const LinearWeight* weight,
                                       const TensorView& bias, const PostNorm& norm) {
  const bool straight = norm.weight.data == nullptr || spec_->norm_sums;
  if (straight && spec_->residual_scale == 1.0f) {
    RETURN_IF_ERROR(Linear(input, weight, bias, x_, /*accumulate=*/true));
    return NormSum(norm);
  }
  const TensorView branch = Rows(work_.branch, spec_->dim);
  RETURN_IF_ERROR(Linear(input, weight, bias, branch));
  return AddBranch(branch, norm);
}

absl::Status DecoderImpl::AddBranch(const TensorView& branch, const PostNorm& norm) {
  if (norm.weight.data != nullptr && !spec_->norm_sums) {
    RETURN_IF_ERROR(NormInto(branch, norm.weight, norm.bias, branch));
  }
  {
    Timed timed(&times_->other_ns);
    RETURN_IF_ERROR(
        backend_->Add({.x = x_, .y = branch, .a = 1.0f, .b = spec_->residual_scale, .out = x_}));
  }
  return NormSum(norm);
}

absl::Status DecoderImpl::NormSum(const PostNorm& norm) {
  if (norm.weight.data == nullptr || !spec_->norm_sums) return absl::OkStatus();
  return NormInto(x_, norm.weight, norm.bias, x_);
}

// activation(gate(h)) * up(h), or without the up, in place of the gate, in the type that the next
// product takes.
absl::StatusOr<TensorView> DecoderImpl::Activated(const LayerSpec& layer, const PreparedLayer& w) {
  const int64_t ffn = w.down->cols();
  const bool gated = layer.weights.up.data != nullptr;
  const TensorView gate_up = Rows(work_.gate_up, w.gate_up->rows(), w.down->input_type());
  RETURN_IF_ERROR(Linear(h_, w.gate_up.get(), w.gate_up_bias, gate_up));
  Timed timed(&times_->other_ns);
  const TensorView gate = Columns(gate_up, 0, ffn);
  RETURN_IF_ERROR(
      backend_->GatedActivation({.gate = gate,
                                 .up = gated ? Columns(gate_up, ffn, ffn) : TensorView(),
                                 .activation = layer.mlp.activation,
                                 .limit = layer.mlp.activation_limit,
                                 .out = gate}));
  return gate;
}

absl::Status DecoderImpl::AddMlp(const LayerSpec& layer, const PreparedLayer& w) {
  ASSIGN_OR_RETURN(const TensorView activated, Activated(layer, w));
  return AddProjected(activated, w.down.get(), layer.weights.down_bias,
                      {layer.weights.post_mlp_norm, layer.weights.post_mlp_norm_bias});
}

absl::Status DecoderImpl::AddExperts(const LayerSpec& layer, const PreparedLayer& w) {
  const TensorView branch = Rows(work_.branch, spec_->dim);
  const TensorView router = Rows(work_.router, layer.mlp.num_experts);
  RETURN_IF_ERROR(Linear(h_, w.router.get(), layer.weights.router_bias, router));
  const bool shared = layer.mlp.shared_ffn_dim > 0;
  if (shared) {
    ASSIGN_OR_RETURN(const TensorView activated, Activated(layer, w));
    RETURN_IF_ERROR(Linear(activated, w.down.get(), layer.weights.down_bias, branch));
  }
  {
    Timed timed(&times_->linear_ns);
    RETURN_IF_ERROR(backend_->Moe({.x = h_,
                                   .router_logits = router,
                                   .top_k = layer.mlp.top_k,
                                   .scoring = layer.mlp.scoring,
                                   .renormalize = layer.mlp.renormalize,
                                   .selection_bias = layer.weights.selection_bias,
                                   .groups = layer.mlp.groups,
                                   .weight_scale = layer.mlp.expert_scale,
                                   .gate_up = w.expert_gate_up.data(),
                                   .down = w.expert_down.data(),
                                   .gate_up_bias = layer.weights.expert_gate_up_bias,
                                   .down_bias = layer.weights.expert_down_bias,
                                   .activation = layer.mlp.activation,
                                   .limit = layer.mlp.activation_limit,
                                   .accumulate = shared,
                                   .out = branch}));
  }
  return AddBranch(branch, {layer.weights.post_mlp_norm, layer.weights.post_mlp_norm_bias});
}

absl::Status DecoderImpl::Gather(TensorView* x, const std::vector<int32_t>& rows,
                                 const kernels::Buffer& to) {
  const TensorView out = MatrixIn(to, static_cast<int64_t>(rows.size()), x->shape[1]);
  RETURN_IF_ERROR(backend_->GatherRows({.x = *x, .rows = rows.data(), .out = out}));
  *x = out;
  return absl::OkStatus();
}

// out = x[rows], without a copy where that is all of x; no data for no rows.
absl::Status DecoderImpl::TakeRows(const TensorView& x, const std::vector<int32_t>& rows,
                                   const kernels::Buffer& to, TensorView* out) {
  if (rows.empty()) return absl::OkStatus();
  *out = x;
  if (static_cast<int64_t>(rows.size()) == x.shape[0]) return absl::OkStatus();
  Timed timed(&times_->other_ns);
  return Gather(out, rows, to);
}

}  // namespace longstride::model

#include "kernels/cuda/moe/moe.h"

#include <algorithm>

#include "kernels/cuda/linear/packed_weight.h"
#include "kernels/cuda/moe/routing.h"
#include "kernels/cuda/ops.h"

namespace longstride::kernels::cuda {
namespace {

// One of the two weights of all experts, and where its pointers are.
struct ExpertWeights {
  const CudaLinearWeight* first = nullptr;
  int first_table = 0;
};

absl::Status CollectWeights(const LinearWeight* const* weights, int32_t experts, int* tables,
                            WeightTables* pointers, ExpertWeights* out) {
  out->first_table = *tables;
  for (int32_t e = 0; e < experts; ++e) {
    const auto* weight = dynamic_cast<const CudaLinearWeight*>(weights[e]);
    if (weight == nullptr) return absl::InternalError("Moe: a weight of another backend");
    if (e == 0) out->first = weight;
    const auto& segments = weight->segments();
    if (segments.size() != out->first->segments().size() ||
        *tables + segments.size() > kMaxTables) {
      return absl::UnimplementedError(
          "The CUDA backend needs the experts of a layer in one format (at most two for each "
          "product); convert the checkpoint so that they are.");
    }
    for (size_t s = 0; s < segments.size(); ++s) {
      const LinearSegment& like = out->first->segments()[s];
      if (segments[s].dtype != like.dtype || segments[s].rows != like.rows) {
        return absl::UnimplementedError(
            "The CUDA backend needs the experts of a layer in one format; convert the checkpoint "
            "so that they are.");
      }
      pointers->weights[*tables + static_cast<int>(s)][e] = segments[s].data;
    }
  }
  *tables += static_cast<int>(out->first->segments().size());
  return absl::OkStatus();
}

// Working memory of one call.
class MoeCall {
 public:
  MoeCall(const MoeParams& p, DeviceContext& context)
      : p_(p), context_(context), scratch_(context) {}

  absl::Status Run() {
    RETURN_IF_ERROR(Prepare());
    RETURN_IF_ERROR(context_.Check(LaunchRouting(routing_, context_.stream()), "Moe"));
    const int64_t rows = routing_.sorted_rows, dim = p_.x.shape[1], ffn = p_.down[0]->cols();
    ASSIGN_OR_RETURN(float* hidden, scratch_.Take<float>(rows * 2 * ffn));
    ASSIGN_OR_RETURN(float* expert_out, scratch_.Take<float>(rows * dim));
    TensorView hidden_view = Matrix(hidden, rows, 2 * ffn);
    RETURN_IF_ERROR(Multiply(gate_up_, p_.x, true, p_.gate_up_bias, hidden_view));
    TensorView gate = hidden_view, up = hidden_view;
    gate.shape[1] = up.shape[1] = ffn;
    up.data = hidden + ffn;
    RETURN_IF_ERROR(context_.Check(LaunchGatedActivation({.gate = gate,
                                                          .up = up,
                                                          .activation = p_.activation,
                                                          .limit = p_.limit,
                                                          .out = gate},
                                                         context_.stream()),
                                   "Moe"));
    RETURN_IF_ERROR(Multiply(down_, gate, false, p_.down_bias, Matrix(expert_out, rows, dim)));
    return context_.Check(LaunchCombine({.routing = &routing_,
                                         .expert_out = expert_out,
                                         .out = p_.out,
                                         .accumulate = p_.accumulate},
                                        context_.stream()),
                          "Moe");
  }

 private:
  static TensorView Matrix(void* data, int64_t rows, int64_t cols) {
    const int64_t dims[2] = {rows, cols};
    return TensorView::Contiguous(data, DType::kF32, dims, 2, Device::kCuda);
  }

  absl::Status Prepare() {
    const auto experts = static_cast<int32_t>(p_.router_logits.shape[1]);
    if (experts > kMaxExperts) {
      return absl::UnimplementedError(StrCat("The CUDA backend runs at most ", kMaxExperts,
                                             " experts a layer; this one has ", experts, "."));
    }
    WeightTables pointers;
    int tables = 0;
    RETURN_IF_ERROR(CollectWeights(p_.gate_up, experts, &tables, &pointers, &gate_up_));
    RETURN_IF_ERROR(CollectWeights(p_.down, experts, &tables, &pointers, &down_));
    ASSIGN_OR_RETURN(tables_, scratch_.Take<const uint8_t*>(kMaxTables * kMaxExperts));
    RETURN_IF_ERROR(
        context_.Check(LaunchFillTables(pointers, tables_, context_.stream()), "Moe"));
    return TakeRouting(experts);
  }

  absl::Status TakeRouting(int32_t experts) {
    const int64_t rows = p_.x.shape[0], pairs = rows * p_.top_k;
    const int64_t chosen = std::min<int64_t>(experts, pairs);
    MoeRouting& r = routing_;
    r.rows = rows;
    r.experts = experts;
    r.top_k = p_.top_k;
    r.scoring = p_.scoring;
    r.renormalize = p_.renormalize;
    r.selection_bias = p_.selection_bias.ptr<const float>();
    r.groups = p_.groups;
    r.weight_scale = p_.weight_scale;
    r.logits = p_.router_logits.ptr<const float>();
    r.logits_stride = p_.router_logits.strides[0];
    r.sorted_rows = pairs + 7 * chosen + 8;
    r.tile_rows = kFloatTileRows;
    bool has_float = false;
    for (const CudaLinearWeight* w : {gate_up_.first, down_.first}) {
      for (const LinearSegment& s : w->segments()) {
        has_float |= s.dtype == DType::kF32;
        r.tile_rows = std::max(r.tile_rows, TileRows(context_.path(), s.dtype, s.rows,
                                                     CeilDiv(pairs, chosen)));
      }
    }
    // Both products share the tiles; the tallest belong to f16 and bf16 alone.
    if (AnyQuantized()) r.tile_rows = std::min(r.tile_rows, 128);
    if (has_float) r.tile_rows = kFloatTileRows;
    max_tiles_ = static_cast<int32_t>(chosen + pairs / r.tile_rows);
    ASSIGN_OR_RETURN(r.pair_expert, scratch_.Take<int32_t>(pairs));
    ASSIGN_OR_RETURN(r.pair_weight, scratch_.Take<float>(pairs));
    ASSIGN_OR_RETURN(r.pair_position, scratch_.Take<int32_t>(pairs));
    ASSIGN_OR_RETURN(r.source_rows, scratch_.Take<int32_t>(r.sorted_rows));
    if (r.scoring == ExpertScoring::kSigmoidInput) {
      ASSIGN_OR_RETURN(r.factors, scratch_.Take<float>(r.sorted_rows));
    }
    ASSIGN_OR_RETURN(r.counts, scratch_.Take<int32_t>(kMaxExperts));
    ASSIGN_OR_RETURN(r.begin, scratch_.Take<int32_t>(kMaxExperts));
    ASSIGN_OR_RETURN(r.tiles, scratch_.Take<GroupTile>(max_tiles_));
    ASSIGN_OR_RETURN(r.num_tiles, scratch_.Take<int32_t>(1));
    return absl::OkStatus();
  }

  bool AnyQuantized() const {
    for (const CudaLinearWeight* w : {gate_up_.first, down_.first}) {
      for (const LinearSegment& s : w->segments()) {
        if (IsQuantized(s.dtype)) return true;
      }
    }
    return false;
  }

  // One product of all experts. `gather`: x has the call's rows, else the sorted ones.
  absl::Status Multiply(const ExpertWeights& weights, const TensorView& x, bool gather,
                        const TensorView& bias, const TensorView& out) {
    Scratch scratch(context_);
    Operands operands(x, context_, scratch);
    if (gather) operands.Gather(routing_.source_rows, routing_.factors, routing_.sorted_rows);
    const auto& segments = weights.first->segments();
    for (size_t s = 0; s < segments.size(); ++s) {
      Grouping groups{.weights = tables_ + (weights.first_table + static_cast<int>(s)) * kMaxExperts,
                      .tiles = routing_.tiles,
                      .num_tiles = routing_.num_tiles,
                      .max_tiles = max_tiles_,
                      .tile_rows = routing_.tile_rows,
                      .bias_stride = bias.data == nullptr ? 0 : bias.strides[0]};
      const float* segment_bias =
          bias.data == nullptr ? nullptr : bias.ptr<const float>() + segments[s].row_begin;
      float* to = out.ptr<float>() + segments[s].row_begin;
      if (segments[s].dtype == DType::kF32) {
        RETURN_IF_ERROR(MultiplyFloats(segments[s], groups, x, gather, segment_bias, to, out));
        continue;
      }
      ASSIGN_OR_RETURN(const Operand operand, operands.For(segments[s].dtype));
      const Product product{.weight_dtype = segments[s].dtype,
                            .n = segments[s].rows,
                            .x = operand,
                            .out = to,
                            .out_stride = out.strides[0],
                            .bias = segment_bias,
                            .groups = &groups,
                            .multiprocessors = context_.multiprocessors(),
                            .path = context_.path()};
      RETURN_IF_ERROR(context_.Check(IsDense(segments[s].dtype)
                                         ? LaunchDenseProduct(product, context_.stream())
                                         : LaunchQuantProduct(product, context_.stream()),
                                     "Moe"));
    }
    return absl::OkStatus();
  }

  absl::Status MultiplyFloats(const LinearSegment& segment, const Grouping& groups, TensorView x,
                              bool gather, const float* bias, float* to, const TensorView& out) {
    Scratch scratch(context_);
    if (gather) {
      ASSIGN_OR_RETURN(float* gathered, scratch.Take<float>(routing_.sorted_rows * x.shape[1]));
      RETURN_IF_ERROR(context_.Check(
          LaunchGatherFloats(x, routing_, gathered, context_.stream()), "Moe"));
      x = Matrix(gathered, routing_.sorted_rows, x.shape[1]);
    }
    const FloatProduct product{
        .group_weights = reinterpret_cast<const float* const*>(groups.weights),
        .tiles = groups.tiles,
        .num_tiles = groups.num_tiles,
        .max_tiles = groups.max_tiles,
        .bias_stride = groups.bias_stride,
        .n = segment.rows,
        .x = x,
        .out = to,
        .out_stride = out.strides[0],
        .bias = bias};
    return context_.Check(LaunchFloatProduct(product, context_.stream()), "Moe");
  }

  const MoeParams& p_;
  DeviceContext& context_;
  Scratch scratch_;
  ExpertWeights gate_up_, down_;
  const uint8_t** tables_ = nullptr;
  MoeRouting routing_;
  int32_t max_tiles_ = 0;
};

}  // namespace

absl::Status RunCudaMoe(const MoeParams& p, DeviceContext& context) {
  if (p.x.shape[0] == 0) return absl::OkStatus();
  return MoeCall(p, context).Run();
}

}  // namespace longstride::kernels::cuda

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference_backend.h"

namespace longstride::kernels::cpu {
namespace {

// Working memory of one call.
struct MoeBuffers {
  int32_t* experts;      // [rows, top_k]
  float* weights;        // [rows, top_k]
  int32_t* expert_rows;  // [rows * top_k]: (row * top_k + rank), by expert, then row
  int32_t* begin;        // [experts + 1]: each expert's range of expert_rows
  float* input;          // [rows, dim]
  float* hidden;         // [rows, 2 * ffn]
  float* expert_out;     // [rows, dim]
  float* out;            // [rows, top_k, dim]

  MoeBuffers(Carver& c, const MoeParams& p, int64_t ffn) {
    const int64_t rows = p.x.shape[0], dim = p.x.shape[1], pairs = rows * p.top_k;
    experts = c.Take<int32_t>(pairs);
    weights = c.Take<float>(pairs);
    expert_rows = c.Take<int32_t>(pairs);
    begin = c.Take<int32_t>(p.router_logits.shape[1] + 1);
    input = c.Take<float>(rows * dim);
    hidden = c.Take<float>(rows * 2 * ffn);
    expert_out = c.Take<float>(rows * dim);
    out = c.Take<float>(pairs * dim);
  }
};

// Groups the (row, rank) pairs by expert.
void GroupByExpert(const MoeParams& p, MoeBuffers& b) {
  const int64_t rows = p.x.shape[0], num_experts = p.router_logits.shape[1];
  const int64_t pairs = rows * p.top_k;
  std::fill(b.begin, b.begin + num_experts + 1, 0);
  for (int64_t r = 0; r < rows; ++r) {
    RouteExperts(p, r, b.experts + r * p.top_k, b.weights + r * p.top_k);
  }
  for (int64_t i = 0; i < pairs; ++i) ++b.begin[b.experts[i] + 1];
  for (int64_t e = 0; e < num_experts; ++e) b.begin[e + 1] += b.begin[e];
  // begin[e] runs ahead while placing and is moved back afterwards.
  for (int64_t i = 0; i < pairs; ++i) {
    b.expert_rows[b.begin[b.experts[i]]++] = static_cast<int32_t>(i);
  }
  for (int64_t e = num_experts; e > 0; --e) b.begin[e] = b.begin[e - 1];
  b.begin[0] = 0;
}

TensorView BiasOf(const TensorView& bias, int64_t expert) {
  if (bias.data == nullptr) return {};
  return TensorView::Vector(bias.row<float>(expert), DType::kF32, bias.shape[1]);
}

}  // namespace

absl::Status CpuBackend::DoMoe(const MoeParams& p) {
  const int64_t rows = p.x.shape[0], dim = p.x.shape[1], num_experts = p.router_logits.shape[1];
  if (rows == 0) return absl::OkStatus();
  const int64_t ffn = p.down[0]->cols();
  const bool scale_input = p.scoring == ExpertScoring::kSigmoidInput;
  Carver measure(nullptr);
  MoeBuffers(measure, p, ffn);
  Carver carver(moe_.Get(measure.used()));
  MoeBuffers b(carver, p, ffn);
  GroupByExpert(p, b);
  for (int64_t e = 0; e < num_experts; ++e) {
    const int32_t* pairs = b.expert_rows + b.begin[e];
    const int64_t count = b.begin[e + 1] - b.begin[e];
    if (count == 0) continue;
    ForRows(count, dim, [&](int64_t i) {
      const float* x = p.x.row<float>(pairs[i] / p.top_k);
      const float factor = scale_input ? b.weights[pairs[i]] : 1.0f;
      for (int64_t c = 0; c < dim; ++c) b.input[i * dim + c] = x[c] * factor;
    });
    RETURN_IF_ERROR(Linear({.x = TensorView::Matrix(b.input, DType::kF32, count, dim),
                            .weight = p.gate_up[e],
                            .bias = BiasOf(p.gate_up_bias, e),
                            .out = TensorView::Matrix(b.hidden, DType::kF32, count, 2 * ffn)}));
    TensorView gate = TensorView::Matrix(b.hidden, DType::kF32, count, ffn);
    gate.strides[0] = 2 * ffn;
    TensorView up = gate;
    up.data = b.hidden + ffn;
    RETURN_IF_ERROR(GatedActivation(
        {.gate = gate, .up = up, .activation = p.activation, .limit = p.limit, .out = gate}));
    RETURN_IF_ERROR(Linear({.x = gate,
                            .weight = p.down[e],
                            .bias = BiasOf(p.down_bias, e),
                            .out = TensorView::Matrix(b.expert_out, DType::kF32, count, dim)}));
    ForRows(count, dim, [&](int64_t i) {
      std::memcpy(b.out + pairs[i] * dim, b.expert_out + i * dim, dim * sizeof(float));
    });
  }
  // Ascending rank, whatever order the experts ran in.
  ForRows(rows, dim * p.top_k, [&](int64_t r) {
    float* out = p.out.row<float>(r);
    for (int64_t c = 0; c < dim; ++c) {
      float sum = 0.0f;
      for (int32_t i = 0; i < p.top_k; ++i) {
        const int64_t pair = r * p.top_k + i;
        sum += (scale_input ? 1.0f : b.weights[pair]) * b.out[pair * dim + c];
      }
      out[c] = p.accumulate ? out[c] + sum : sum;
    }
  });
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

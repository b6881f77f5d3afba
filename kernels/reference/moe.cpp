#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/reference/reference_backend.h"

namespace longstride::kernels {

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// What experts are chosen by; those of groups that are not chosen never are.
std::vector<float> ChoiceScores(const MoeParams& p, const float* logits) {
  std::vector<float> scores(logits, logits + p.router_logits.shape[1]);
  if (p.scoring == ExpertScoring::kSigmoid) {
    const auto* bias = p.selection_bias.ptr<const float>();
    for (size_t e = 0; e < scores.size(); ++e) {
      scores[e] = Sigmoid(scores[e]) + (bias == nullptr ? 0.0f : bias[e]);
    }
  }
  if (p.groups.chosen == p.groups.count) return scores;
  const size_t size = scores.size() / static_cast<size_t>(p.groups.count);
  std::vector<float> open;  // [group], kNever once it is chosen
  for (size_t begin = 0; begin < scores.size(); begin += size) {
    float first = kNever, second = kNever;
    for (size_t e = begin; e < begin + size; ++e) {
      if (scores[e] > first) {
        second = first;
        first = scores[e];
      } else if (scores[e] > second) {
        second = scores[e];
      }
    }
    open.push_back(p.groups.best == 2 ? first + second : first);
  }
  std::vector<bool> chosen(open.size(), false);
  for (int32_t i = 0; i < p.groups.chosen; ++i) {
    int64_t best = -1;
    for (size_t g = 0; g < open.size(); ++g) {
      if (!chosen[g] && (best < 0 || open[g] > open[best])) best = static_cast<int64_t>(g);
    }
    chosen[best] = true;
  }
  for (size_t e = 0; e < scores.size(); ++e) {
    if (!chosen[e / size]) scores[e] = kNever;
  }
  return scores;
}

}  // namespace

void RouteExperts(const MoeParams& p, int64_t row, int32_t* experts, float* weights) {
  const auto num_experts = static_cast<int32_t>(p.router_logits.shape[1]);
  const float* logits = p.router_logits.row<float>(row);
  const std::vector<float> scores = ChoiceScores(p, logits);
  for (int32_t i = 0; i < p.top_k; ++i) {
    // The best that is not chosen yet: only a larger score displaces a lower index.
    int32_t best = -1;
    for (int32_t e = 0; e < num_experts; ++e) {
      if (std::find(experts, experts + i, e) != experts + i) continue;
      if (best < 0 || scores[e] > scores[best]) best = e;
    }
    experts[i] = best;
  }
  const bool sigmoid =
      p.scoring == ExpertScoring::kSigmoidInput || p.scoring == ExpertScoring::kSigmoid;
  // Of the chosen: that of all may be of a group that is not.
  const float max = logits[experts[0]];
  float divisor = 0.0f;
  for (int32_t i = 0; i < p.top_k; ++i) {
    const float logit = logits[experts[i]];
    weights[i] = sigmoid ? Sigmoid(logit) : std::exp(logit - max);
    divisor += weights[i];
  }
  if (p.scoring == ExpertScoring::kSigmoidInput) return;
  if (p.scoring == ExpertScoring::kSigmoid) divisor = p.renormalize ? divisor + 1e-20f : 1.0f;
  if (p.scoring == ExpertScoring::kSoftmaxThenTopK && !p.renormalize) {
    divisor = 0.0f;
    for (int32_t e = 0; e < num_experts; ++e) divisor += std::exp(logits[e] - max);
  }
  for (int32_t i = 0; i < p.top_k; ++i) weights[i] = weights[i] / divisor * p.weight_scale;
}

absl::Status ReferenceBackend::DoMoe(const MoeParams& p) {
  const int64_t dim = p.x.shape[1];
  const int64_t ffn = p.down[0]->cols();
  std::vector<int32_t> experts(p.top_k);
  std::vector<float> weights(p.top_k), input(dim), hidden(2 * ffn), expert_out(dim), sum(dim);
  for (int64_t r = 0; r < p.x.shape[0]; ++r) {
    RouteExperts(p, r, experts.data(), weights.data());
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int32_t i = 0; i < p.top_k; ++i) {
      const int32_t e = experts[i];
      // Llama 4 weighs the expert's input, the others its output.
      const bool scale_input = p.scoring == ExpertScoring::kSigmoidInput;
      for (int64_t c = 0; c < dim; ++c) {
        input[c] = p.x.row<float>(r)[c] * (scale_input ? weights[i] : 1.0f);
      }
      LinearParams gate_up{.x = TensorView::Matrix(input.data(), DType::kF32, 1, dim),
                           .weight = p.gate_up[e],
                           .out = TensorView::Matrix(hidden.data(), DType::kF32, 1, 2 * ffn)};
      if (p.gate_up_bias.data != nullptr) {
        gate_up.bias = TensorView::Vector(p.gate_up_bias.row<float>(e), DType::kF32, 2 * ffn);
      }
      RETURN_IF_ERROR(DoLinear(gate_up));
      for (int64_t c = 0; c < ffn; ++c) {
        hidden[c] = GatedActivationValue(p.activation, hidden[c], hidden[ffn + c], p.limit);
      }
      LinearParams down{.x = TensorView::Matrix(hidden.data(), DType::kF32, 1, ffn),
                        .weight = p.down[e],
                        .out = TensorView::Matrix(expert_out.data(), DType::kF32, 1, dim)};
      if (p.down_bias.data != nullptr) {
        down.bias = TensorView::Vector(p.down_bias.row<float>(e), DType::kF32, dim);
      }
      RETURN_IF_ERROR(DoLinear(down));
      for (int64_t c = 0; c < dim; ++c) {
        sum[c] += (scale_input ? 1.0f : weights[i]) * expert_out[c];
      }
    }
    float* out = p.out.row<float>(r);
    for (int64_t c = 0; c < dim; ++c) out[c] = p.accumulate ? out[c] + sum[c] : sum[c];
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels

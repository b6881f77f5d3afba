#include "model/output_heads.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "config/base/check.h"

namespace longstride::model {
namespace {

float Activate(HeadActivation activation, float x) {
  switch (activation) {
    case HeadActivation::kNone:
      return x;
    case HeadActivation::kGelu:
      return 0.5f * x * (1.0f + std::erf(x * std::numbers::sqrt2_v<float> / 2));
    case HeadActivation::kGeluTanh: {
      const float scale = std::sqrt(2.0f * std::numbers::inv_pi_v<float>);
      return 0.5f * x * (1.0f + std::tanh(scale * (x + 0.044715f * x * x * x)));
    }
    case HeadActivation::kRelu:
      return std::max(x, 0.0f);
    case HeadActivation::kSilu:
      return x / (1.0f + std::exp(-x));
    case HeadActivation::kTanh:
      return std::tanh(x);
  }
  return x;
}

// Eight sums side by side, which the compiler makes one vector of.
float Dot(const float* a, const float* b, int64_t n) {
  float sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t s = 0; s < 8; ++s) sums[s] += a[i + s] * b[i + s];
  }
  float rest = 0;
  for (; i < n; ++i) rest += a[i] * b[i];
  return std::accumulate(std::begin(sums), std::end(sums), rest);
}

void LayerNorm(const HeadLayer& layer, float eps, std::vector<float>* x) {
  const auto count = static_cast<double>(x->size());
  double mean = 0, variance = 0;
  for (const float value : *x) mean += value / count;
  for (const float value : *x) variance += (value - mean) * (value - mean) / count;
  const double scale = 1.0 / std::sqrt(variance + eps);
  for (size_t i = 0; i < x->size(); ++i) {
    const float bias = layer.norm_bias.data == nullptr ? 0.0f : layer.norm_bias.ptr<float>()[i];
    (*x)[i] = static_cast<float>(((*x)[i] - mean) * scale) * layer.norm.ptr<float>()[i] + bias;
  }
}

std::vector<float> Apply(const OutputHead& head, float norm_eps, std::span<const float> pooled) {
  std::vector<float> x(pooled.begin(), pooled.end());
  for (const HeadLayer& layer : head.layers) {
    LS_CHECK_EQ(static_cast<int64_t>(x.size()), layer.weight.shape[1]);
    std::vector<float> out(static_cast<size_t>(layer.weight.shape[0]));
    for (size_t i = 0; i < out.size(); ++i) {
      const float sum = Dot(layer.weight.row<float>(static_cast<int64_t>(i)), x.data(),
                            layer.weight.shape[1]);
      const float bias = layer.bias.data == nullptr ? 0.0f : layer.bias.ptr<float>()[i];
      out[i] = Activate(layer.activation, sum + bias);
    }
    if (layer.norm.data != nullptr) LayerNorm(layer, norm_eps, &out);
    x = std::move(out);
  }
  return x;
}

}  // namespace

std::vector<float> Embed(const ModelSpec& spec, std::span<const float> pooled) {
  return Apply(spec.embedding_head, spec.norm_eps, pooled);
}

std::vector<float> Classify(const ModelSpec& spec, std::span<const float> pooled) {
  LS_CHECK(spec.classifier.has_value());
  std::vector<float> scores = Apply(spec.classifier->head, spec.norm_eps, pooled);
  switch (spec.classifier->scores) {
    case ClassScores::kIdentity:
      break;
    case ClassScores::kSigmoid:
      for (float& score : scores) score = 1.0f / (1.0f + std::exp(-score));
      break;
    case ClassScores::kSoftmax: {
      const float max = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (float& score : scores) sum += score = std::exp(score - max);
      for (float& score : scores) score = static_cast<float>(score / sum);
      break;
    }
  }
  return scores;
}

int32_t EmbeddingDim(const ModelSpec& spec) {
  return spec.embedding_head.layers.empty()
             ? spec.dim
             : static_cast<int32_t>(spec.embedding_head.layers.back().weight.shape[0]);
}

}  // namespace longstride::model

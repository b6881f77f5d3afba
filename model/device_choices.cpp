#include "model/device_choices.h"

#include <algorithm>
#include <cmath>

namespace longstride::model {

using kernels::LogitEdit;
using kernels::SampleResult;
using kernels::SampleRow;

void DeviceChoices::Clear() {
  rows_.clear();
  edits_.clear();
}

LogitEdit* DeviceChoices::EditOf(int32_t token) {
  if (token < 0 || static_cast<size_t>(token) >= edit_of_.size()) return nullptr;
  int32_t& index = edit_of_[static_cast<size_t>(token)];
  if (index == 0) {
    edits_.push_back({.token = token});
    index = static_cast<int32_t>(edits_.size());
  }
  return &edits_[static_cast<size_t>(index - 1)];
}

bool DeviceChoices::Add(int32_t logits_row, int32_t vocab, const SamplingContext& context) {
  const SamplingParams& p = *context.params;
  const bool bias_twice =
      std::adjacent_find(p.logit_bias.begin(), p.logit_bias.end(), [](const auto& a, const auto& b) {
        return a.first >= b.first;
      }) != p.logit_bias.end();
  if (p.typical_p < 1.0f || !p.allowed_token_ids.empty() || !context.token_mask.empty() ||
      context.num_logprobs > kernels::kMaxSampleTop || bias_twice) {
    return false;
  }
  const auto position = static_cast<uint32_t>(context.generated.size());
  SampleRow row{.row = logits_row,
                .edits_begin = static_cast<int32_t>(edits_.size()),
                .inverse_temperature = p.temperature < kGreedyBelow ? 0.0f : 1.0f / p.temperature,
                .repetition_penalty = p.repetition_penalty,
                .frequency_penalty = p.frequency_penalty,
                .presence_penalty = p.presence_penalty,
                .top_k = p.top_k < vocab ? p.top_k : 0,
                .top_p = p.top_p,
                .min_p = p.min_p,
                .uniform = SamplingUniform(p.seed, context.choice, position),
                .num_top = std::min(context.num_logprobs, vocab)};
  edit_of_.resize(static_cast<size_t>(vocab), 0);
  const bool repetition = p.repetition_penalty != 1.0f;
  if (repetition) {
    for (const int32_t token : context.prompt) {
      if (LogitEdit* edit = EditOf(token)) edit->penalised = 1;
    }
  }
  if (repetition || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f) {
    for (const int32_t token : context.generated) {
      LogitEdit* edit = EditOf(token);
      if (edit == nullptr) continue;
      edit->penalised = repetition ? 1 : 0;
      ++edit->generated;
    }
  }
  for (const auto& [token, bias] : p.logit_bias) {
    if (LogitEdit* edit = EditOf(token)) edit->bias = bias;
  }
  for (const auto& banned : {std::span<const int32_t>(p.banned_token_ids), context.banned}) {
    for (const int32_t token : banned) {
      if (LogitEdit* edit = EditOf(token)) edit->banned = 1;
    }
  }
  row.num_edits = static_cast<int32_t>(edits_.size()) - row.edits_begin;
  for (size_t i = static_cast<size_t>(row.edits_begin); i < edits_.size(); ++i) {
    edit_of_[static_cast<size_t>(edits_[i].token)] = 0;
  }
  rows_.push_back(row);
  return true;
}

SampledToken DeviceChoices::Result(const SampleRow& row, const SampleResult& result) {
  SampledToken token{.token = result.token, .logits_valid = result.valid != 0};
  if (!token.logits_valid || row.num_top < 0) return token;
  const double log_sum = LogSumOfWeights(result.max, result.mass);
  token.logprob = static_cast<float>(static_cast<double>(result.logit) - log_sum);
  std::vector<std::pair<float, int32_t>> best;
  for (int32_t i = 0; i < row.num_top; ++i) {
    if (std::isfinite(result.top_logits[i])) {
      best.emplace_back(-result.top_logits[i], result.top_tokens[i]);
    }
  }
  std::sort(best.begin(), best.end());
  for (const auto& [negative, id] : best) {
    token.top.push_back({id, static_cast<float>(-static_cast<double>(negative) - log_sum)});
  }
  return token;
}

}  // namespace longstride::model

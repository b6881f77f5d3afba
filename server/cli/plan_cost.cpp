#include "server/cli/plan_cost.h"

#include <algorithm>
#include <random>
#include <vector>

#include "config/base/clock.h"
#include "model/fidelity/lane.h"

namespace longstride::cli {
namespace {

using model::NumericsClass;
using model::fidelity::Lane;

// Single tokens computed at each calibrated length; the first warms up.
constexpr int kDecodeRepetitions = 3;
constexpr int kMaxSteps = 16;

double Elements(const kernels::TensorView& view) {
  return view.data == nullptr ? 0 : static_cast<double>(view.num_elements());
}

// Weights that one token is multiplied with, the head's left out.
double LayerWeightsUsed(const model::ModelSpec& spec) {
  double sum = 0;
  for (const model::LayerSpec& layer : spec.layers) {
    const model::LayerWeights& w = layer.weights;
    for (const auto* view : {&w.wq, &w.wk, &w.wv, &w.q_up, &w.index_q, &w.index_k, &w.index_weights,
                             &w.attn_gates, &w.wo, &w.gate, &w.up, &w.down, &w.router}) {
      sum += Elements(*view);
    }
    for (const auto* heads : {&w.key_up, &w.value_up}) {
      for (const kernels::TensorView& view : *heads) sum += Elements(view);
    }
    if (layer.mlp.num_experts == 0) continue;
    const double share = static_cast<double>(layer.mlp.top_k) / layer.mlp.num_experts;
    for (const auto* experts : {&w.expert_gate, &w.expert_up, &w.expert_down}) {
      for (const kernels::TensorView& view : *experts) sum += share * Elements(view);
    }
  }
  return sum;
}

double VolumeAt(const model::ModelSpec& spec, const model::SparsityPlan& plan, int64_t position,
                bool dense, NumericsClass numerics) {
  double volume = 0;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const model::AttentionSpec& attention = spec.layers[l].attention;
    const int32_t head_dim = attention.head_dim;
    for (const model::HeadSegment& segment : plan.layers[l].segments) {
      if (dense && segment.part > 0) continue;
      const auto all = static_cast<double>(plan.causal ? position + 1 : 2 * position + 1);
      const model::SparsePattern& pattern = *plan.patterns[static_cast<size_t>(segment.pattern)];
      const double keys = dense ? all : pattern.VisibleKeys(position, numerics);
      volume += keys * segment.query.count * head_dim;
      const model::PageRanking* ranking = dense ? nullptr : pattern.ranking();
      if (ranking != nullptr && ranking->by_index && keys < all) {
        volume += 0.5 * all * attention.indexer.num_heads * attention.indexer.head_dim;
      }
      if (ranking != nullptr && ranking->score == kernels::PageScore::kMeanShares && keys < all) {
        volume += 0.5 * all / kernels::kPageTokens * segment.query.count * head_dim;
      }
    }
  }
  return volume;
}

struct Sample {
  double rows = 0, volume = 0, attention = 0, rest = 0;  // the latter two in nanoseconds
};

absl::StatusOr<Sample> Time(const model::ModelSpec& spec, std::span<const int32_t> tokens,
                            int32_t logits, NumericsClass numerics, Lane* lane) {
  const int64_t begin = lane->length();
  const int64_t start = Clock::Real()->MonotonicNanos();
  RETURN_IF_ERROR(lane->Append(tokens, logits, numerics));
  const auto total = static_cast<double>(Clock::Real()->MonotonicNanos() - start);
  const auto attention = static_cast<double>(lane->output().times.attention_ns);
  return Sample{.rows = static_cast<double>(tokens.size()),
                .volume = AttentionVolume(spec, lane->plan(), begin, lane->length(), false,
                                          kVolumeSamples, numerics),
                .attention = attention,
                .rest = total - attention};
}

StepRates Fit(const std::vector<Sample>& samples) {
  StepRates rates;
  std::vector<double> rows, volume, attention;
  double all_rows = 0;
  for (const Sample& s : samples) {
    rows.push_back(s.rows);
    volume.push_back(s.volume);
    attention.push_back(s.attention);
    rates.row += s.rest;
    all_rows += s.rows;
  }
  rates.row /= all_rows;
  FitNonNegative(rows, volume, attention, &rates.attention_row, &rates.attention_volume);
  return rates;
}

}  // namespace

double AttentionVolume(const model::ModelSpec& spec, const model::SparsityPlan& plan, int64_t begin,
                       int64_t end, bool dense, int64_t samples, NumericsClass numerics) {
  const int64_t count = end - begin;
  if (count <= 0) return 0;
  const int64_t taken = std::min(samples, count);
  double sum = 0;
  for (int64_t s = 0; s < taken; ++s) {
    // The middle of each of `taken` equal parts.
    sum += VolumeAt(spec, plan, begin + (2 * s + 1) * count / (2 * taken), dense, numerics);
  }
  return sum / static_cast<double>(taken) * static_cast<double>(count);
}

PlanFlops FlopsOf(const model::ModelSpec& spec, const model::SparsityPlan& plan, int64_t length) {
  const double layers = 2 * LayerWeightsUsed(spec);
  const double head = 2 * Elements(spec.lm_head);
  // Scores and weighted values: a multiply-add each per visible key and channel.
  constexpr double kPerVolume = 4;
  const auto attention = [&](int64_t begin, int64_t end, bool dense) {
    // The last query alone is that of a generated token.
    const auto numerics =
        end - begin == 1 ? NumericsClass::kGenerated : NumericsClass::kPrompt;
    return kPerVolume *
           AttentionVolume(spec, plan, begin, end, dense, kVolumeSamples, numerics);
  };
  return {.prefill_linear = layers * static_cast<double>(length) + head,
          .prefill_attention = attention(0, length, false),
          .prefill_dense_attention = attention(0, length, true),
          .decode_linear = layers + head,
          .decode_attention = attention(length - 1, length, false),
          .decode_dense_attention = attention(length - 1, length, true)};
}

void FitNonNegative(const std::vector<double>& x1, const std::vector<double>& x2,
                    const std::vector<double>& y, double* a, double* b) {
  double s11 = 0, s12 = 0, s22 = 0, s1y = 0, s2y = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    s11 += x1[i] * x1[i];
    s12 += x1[i] * x2[i];
    s22 += x2[i] * x2[i];
    s1y += x1[i] * y[i];
    s2y += x2[i] * y[i];
  }
  const double determinant = s11 * s22 - s12 * s12;
  // Columns that are multiples of each other carry one unknown: it goes to the second.
  if (determinant > 1e-9 * s11 * s22) {
    *a = (s1y * s22 - s2y * s12) / determinant;
    *b = (s2y * s11 - s1y * s12) / determinant;
    if (*a >= 0 && *b >= 0) return;
    if (*b < 0) {
      *a = s1y / s11;
      *b = 0;
      return;
    }
  }
  *a = 0;
  *b = s22 > 0 ? s2y / s22 : 0;
}

absl::StatusOr<MachineRates> Calibrate(model::Model* model, int32_t tokens) {
  const int32_t step = std::min(model->options().max_step_tokens, tokens);
  tokens = tokens / step * step;
  const model::ModelSpec& spec = model->spec();
  ASSIGN_OR_RETURN(const std::unique_ptr<Lane> lane,
                   Lane::Create(model, model->plan(),
                                {.kv_dtype = model->options().kv_dtype,
                                 .max_tokens = std::min(tokens + 1, model->max_context()),
                                 .step_tokens = step}));
  std::mt19937 random(1);
  std::vector<int32_t> ids(static_cast<size_t>(step));
  std::vector<Sample> prefill, decode;
  for (int32_t at = 0; at < tokens; at += step) {
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(random() % static_cast<unsigned>(spec.vocab_size));
    }
    ASSIGN_OR_RETURN(const Sample sample, Time(spec, ids, 0, NumericsClass::kPrompt, lane.get()));
    prefill.push_back(sample);
    const int32_t every = std::max(1, tokens / step / kMaxSteps);
    if (at / step % every != 0 || lane->length() == model->max_context()) continue;
    for (int r = 0; r < kDecodeRepetitions; ++r) {
      ASSIGN_OR_RETURN(const Sample one, Time(spec, std::span(ids).first(1), 1,
                                              NumericsClass::kGenerated, lane.get()));
      lane->CutTo(at + step);
      if (r > 0) decode.push_back(one);
    }
  }
  if (prefill.size() > 1) prefill.erase(prefill.begin());  // warms up
  return MachineRates{.prefill = Fit(prefill), .decode = Fit(decode), .tokens = tokens};
}

PlanPrediction Predict(const model::ModelSpec& spec, const model::SparsityPlan& plan,
                       const MachineRates& rates, int64_t length) {
  const auto time = [&](const StepRates& r, int64_t begin, int64_t end, NumericsClass numerics) {
    return (static_cast<double>(end - begin) * (r.row + r.attention_row) +
            AttentionVolume(spec, plan, begin, end, false, kVolumeSamples, numerics) *
                r.attention_volume) *
           1e-9;
  };
  return {.time_to_first_token = time(rates.prefill, 0, length, NumericsClass::kPrompt),
          .decode_tokens_per_second =
              1 / time(rates.decode, length - 1, length, NumericsClass::kGenerated)};
}

}  // namespace longstride::cli

#include "model/fidelity/head_calibration.h"

#include <algorithm>
#include <utility>

#include "config/base/check.h"
#include "model/fidelity/divergence.h"
#include "model/fidelity/tasks.h"
#include "model/sparsity/layer_rules.h"

namespace longstride::model::fidelity {
namespace {

constexpr int32_t kScoredTokens = 64;  // of a window of text
constexpr TaskKind kRetrieval[] = {TaskKind::kSingleKey, TaskKind::kMultiKey, TaskKind::kMultiValue,
                                   TaskKind::kVariableTracking};

// Leaves the logits that predict the scored tokens in the lane.
absl::Status Predict(const CalibrationText& text, Lane* lane) {
  lane->Reset();
  const auto all = std::span<const int32_t>(text.tokens);
  const auto before = all.size() - 1 - static_cast<size_t>(text.scored);
  for (size_t begin = 0; begin < before;) {
    const size_t count = std::min(before - begin, static_cast<size_t>(lane->step_tokens()));
    RETURN_IF_ERROR(lane->Append(all.subspan(begin, count), 0));
    begin += count;
  }
  return lane->Append(all.subspan(before, static_cast<size_t>(text.scored)), text.scored);
}

struct Head {
  int32_t layer = 0, kv_head = 0;
};

}  // namespace

absl::StatusOr<std::vector<CalibrationText>> MakeCalibrationTexts(
    const Tokenizer& tokenizer, const std::vector<Document>& documents,
    const CalibrationTextOptions& options) {
  ASSIGN_OR_RETURN(WindowSet set, CutWindows(tokenizer, documents,
                                             {.window_tokens = options.tokens,
                                              .max_tokens = int64_t{options.tokens} *
                                                            std::max(2, options.pairs)}));
  std::vector<CalibrationText> texts;
  for (int32_t n = 0; n < options.pairs; ++n) {
    const TaskKind kind = kRetrieval[static_cast<size_t>(n) % std::size(kRetrieval)];
    ASSIGN_OR_RETURN(const TaskContext task, MakeTask(tokenizer, kind, options.tokens,
                                                      options.seed + static_cast<uint64_t>(n)));
    const TaskQuestion& question = task.questions.front();
    const std::vector<int32_t>& answer = question.candidates[static_cast<size_t>(question.right)];
    CalibrationText text{.tokens = task.tokens, .scored = static_cast<int32_t>(answer.size())};
    text.tokens.insert(text.tokens.end(), question.tail.begin(), question.tail.end());
    text.tokens.insert(text.tokens.end(), answer.begin(), answer.end());
    texts.push_back(std::move(text));
    // Short data gives fewer windows; then they serve again.
    TextWindow& window = set.windows[static_cast<size_t>(n) % set.windows.size()];
    texts.push_back(
        {.tokens = window.tokens, .scored = std::min(kScoredTokens, options.tokens / 2)});
  }
  return texts;
}

absl::StatusOr<std::vector<std::vector<double>>> ScoreHeads(Model* model,
                                                            std::span<const CalibrationText> texts,
                                                            const HeadCalibrationOptions& options) {
  const ModelSpec& spec = model->spec();
  std::vector<std::vector<double>> scores(spec.layers.size());
  std::vector<Head> heads;
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    const AttentionSpec& attention = spec.layers[l].attention;
    if (KindOf(attention, model->max_context()) != NativeKind::kFull) continue;
    scores[l].assign(static_cast<size_t>(attention.num_kv_heads), 0.0);
    for (int32_t h = 0; h < attention.num_kv_heads; ++h)
      heads.push_back({static_cast<int32_t>(l), h});
  }
  if (heads.empty()) {
    return absl::InvalidArgumentError(
        "every layer of the checkpoint limits what it reads by itself; there is no head to "
        "choose.");
  }
  const auto make_lane =
      [&](const SparsityPolicy& policy) -> absl::StatusOr<std::unique_ptr<Lane>> {
    ASSIGN_OR_RETURN(SparsityPlan plan, SparsityPlan::Resolve(policy, spec, options.lane.kv_dtype,
                                                              model->max_context()));
    return Lane::Create(model, std::move(plan), options.lane);
  };
  ASSIGN_OR_RETURN(const std::unique_ptr<Lane> baseline, make_lane({}));
  const auto vocab = static_cast<size_t>(spec.vocab_size);
  RowComparer comparer(spec.vocab_size);
  std::vector<float> logits;
  std::vector<RowSummary> rows;
  int64_t done = 0;
  const int64_t total = static_cast<int64_t>(texts.size() * (heads.size() + 1));
  const auto advance = [&] {
    if (options.progress) options.progress(++done, total);
  };
  // Text by text, so that the logits of one text are all that is held.
  for (const CalibrationText& text : texts) {
    LS_CHECK(text.scored >= 1 && text.scored < static_cast<int32_t>(text.tokens.size()));
    const auto scored = static_cast<size_t>(text.scored);
    RETURN_IF_ERROR(Predict(text, baseline.get()));
    logits.resize(scored * vocab);
    rows.clear();
    for (size_t r = 0; r < scored; ++r) {
      const float* row = baseline->Logits(static_cast<int32_t>(r));
      std::copy_n(row, vocab, logits.data() + r * vocab);
      rows.push_back(comparer.Summarize(row));
    }
    advance();
    for (const Head& head : heads) {
      const AttentionSpec& attention = spec.layers[static_cast<size_t>(head.layer)].attention;
      const int32_t per_kv = attention.num_heads / attention.num_kv_heads;
      const int32_t first = head.kv_head * per_kv;
      SparsityPolicy policy;
      LayerRule& rule = policy.rules.emplace_back();
      rule.layers.ranges = {{head.layer, head.layer}};
      rule.heads.ranges = {{first, first + per_kv - 1}};
      rule.policy = options.streaming;
      ASSIGN_OR_RETURN(const std::unique_ptr<Lane> lane, make_lane(policy));
      RETURN_IF_ERROR(Predict(text, lane.get()));
      double sum = 0;
      for (size_t r = 0; r < scored; ++r) {
        const float* row = lane->Logits(static_cast<int32_t>(r));
        sum += comparer.Kl(logits.data() + r * vocab, rows[r], row, comparer.Summarize(row));
      }
      scores[static_cast<size_t>(head.layer)][static_cast<size_t>(head.kv_head)] +=
          sum / static_cast<double>(scored) / static_cast<double>(texts.size());
      advance();
    }
  }
  return scores;
}

}  // namespace longstride::model::fidelity

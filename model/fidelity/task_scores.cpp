#include "model/fidelity/task_scores.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <span>

#include "model/fidelity/divergence.h"

namespace longstride::model::fidelity {
namespace {

constexpr size_t kTileTokens = 128;  // largest tile of queries, beside segments

absl::Status AppendAll(Lane* lane, std::span<const int32_t> tokens) {
  while (!tokens.empty()) {
    const size_t count = std::min(tokens.size(), static_cast<size_t>(lane->step_tokens()));
    RETURN_IF_ERROR(lane->Append(tokens.first(count), 0));
    tokens = tokens.subspan(count);
  }
  return absl::OkStatus();
}

// The right answer's margin. The lane stands where the context's whole tiles end, before and after;
// `rest` is what the context has behind them.
absl::StatusOr<double> Margin(std::span<const int32_t> rest, const TaskQuestion& question,
                              RowComparer* comparer, Lane* lane) {
  const int32_t context = lane->length();
  double right = 0;
  double wrong = -std::numeric_limits<double>::infinity();
  std::vector<int32_t> tokens;
  for (size_t c = 0; c < question.candidates.size(); ++c) {
    const std::vector<int32_t>& candidate = question.candidates[c];
    tokens.assign(rest.begin(), rest.end());
    tokens.insert(tokens.end(), question.tail.begin(), question.tail.end());
    tokens.insert(tokens.end(), candidate.begin(), candidate.end());
    if (static_cast<int32_t>(tokens.size()) > lane->step_tokens()) {
      return absl::InvalidArgumentError(StrCat(
          "A task's last tile and question take ", tokens.size(), " tokens, but a step takes ",
          lane->step_tokens(), "; raise --scheduler-max-step-tokens or pass --no-tasks."));
    }
    const auto scored = static_cast<int32_t>(candidate.size());
    RETURN_IF_ERROR(lane->Append(tokens, scored + 1));
    double sum = 0;
    for (int32_t t = 0; t < scored; ++t) {
      const float* logits = lane->Logits(t);
      sum += comparer->Summarize(logits).LogProbability(logits[candidate[static_cast<size_t>(t)]]);
    }
    lane->CutTo(context);
    const double mean = sum / scored;
    if (static_cast<int32_t>(c) == question.right) {
      right = mean;
    } else {
      wrong = std::max(wrong, mean);
    }
  }
  return right - wrong;
}

TaskResult Summarize(const std::vector<TaskPair>& pairs, TaskKind kind, int32_t tokens,
                     const BootstrapOptions& options) {
  TaskResult out{.name = std::string(TaskName(kind)),
                 .description = std::string(TaskDescription(kind)),
                 .tokens = tokens};
  struct Sums {
    double questions = 0, base = 0, plan = 0, margin = 0;
  };
  std::map<int32_t, Sums> contexts;
  for (const TaskPair& pair : pairs) {
    if (pair.kind != kind || (tokens != 0 && pair.tokens != tokens)) continue;
    const bool base = pair.base_margin > 0;
    const bool plan = pair.plan_margin > 0;
    Sums& sums = contexts[pair.context];
    sums.questions += 1;
    sums.base += base ? 1 : 0;
    sums.plan += plan ? 1 : 0;
    sums.margin += pair.plan_margin - pair.base_margin;
    out.only_base_right += base && !plan ? 1 : 0;
    out.only_plan_right += plan && !base ? 1 : 0;
    ++out.questions;
  }
  std::vector<double> questions, base, plan, change, margin;
  for (const auto& [context, sums] : contexts) {
    questions.push_back(sums.questions);
    base.push_back(sums.base);
    plan.push_back(sums.plan);
    change.push_back(sums.plan - sums.base);
    margin.push_back(sums.margin);
  }
  out.base_accuracy = BootstrapRatio(base, questions, options);
  out.plan_accuracy = BootstrapRatio(plan, questions, options);
  out.accuracy_change = BootstrapRatio(change, questions, options);
  out.margin_change = BootstrapRatio(margin, questions, options);
  out.mcnemar_p = McNemarExact(out.only_base_right, out.only_plan_right);
  return out;
}

}  // namespace

absl::Status AnswerTask(const TaskContext& task, int32_t context, int32_t vocab_size, Lane* base,
                        Lane* plan, std::vector<TaskPair>* pairs) {
  RowComparer comparer(vocab_size);
  // A prompt is served in one go: a pattern that pools the queries of a tile must not see one cut
  // between text and question.
  const size_t tile = std::max(kTileTokens, static_cast<size_t>(plan->plan().chunk_alignment));
  const size_t whole = task.tokens.size() / tile * tile;
  const std::span<const int32_t> text(task.tokens);
  for (Lane* lane : {base, plan}) {
    lane->Reset();
    RETURN_IF_ERROR(AppendAll(lane, text.first(whole)));
  }
  for (const TaskQuestion& question : task.questions) {
    TaskPair pair{.kind = task.kind, .tokens = task.target_tokens, .context = context};
    ASSIGN_OR_RETURN(pair.base_margin, Margin(text.subspan(whole), question, &comparer, base));
    ASSIGN_OR_RETURN(pair.plan_margin, Margin(text.subspan(whole), question, &comparer, plan));
    pairs->push_back(pair);
  }
  return absl::OkStatus();
}

std::vector<TaskResult> SummarizeTasks(const std::vector<TaskPair>& pairs,
                                       const BootstrapOptions& options) {
  std::vector<TaskResult> out;
  std::set<int32_t> lengths;
  for (const TaskPair& pair : pairs) lengths.insert(pair.tokens);
  for (const TaskKind kind : kTaskKinds) {
    for (const int32_t tokens : lengths) out.push_back(Summarize(pairs, kind, tokens, options));
  }
  if (lengths.empty()) return out;
  for (const TaskKind kind : kTaskKinds) out.push_back(Summarize(pairs, kind, 0, options));
  return out;
}

int WorstTask(const std::vector<TaskResult>& results) {
  int worst = -1;
  for (size_t i = 0; i < results.size(); ++i) {
    const TaskResult& r = results[i];
    if (r.tokens == 0 || r.questions == 0) continue;
    if (worst < 0) {
      worst = static_cast<int>(i);
      continue;
    }
    const TaskResult& w = results[static_cast<size_t>(worst)];
    if (r.accuracy_change.value < w.accuracy_change.value ||
        (r.accuracy_change.value == w.accuracy_change.value &&
         r.margin_change.value < w.margin_change.value)) {
      worst = static_cast<int>(i);
    }
  }
  return worst;
}

}  // namespace longstride::model::fidelity

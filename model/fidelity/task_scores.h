// The tasks' questions answered by two lanes on the same texts, and what the pairs say.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "model/fidelity/lane.h"
#include "model/fidelity/statistics.h"
#include "model/fidelity/tasks.h"

namespace longstride::model::fidelity {

// One question, answered twice. A margin is the mean log-probability a token of the right answer
// less that of the likeliest wrong one; above 0 the answer is right.
struct TaskPair {
  TaskKind kind = TaskKind::kSingleKey;
  int32_t tokens = 0;   // asked length of the context
  int32_t context = 0;  // questions of one context share it
  double base_margin = 0;
  double plan_margin = 0;
};

// All questions of one context, appended to `pairs`. Both lanes need room for the text and its
// longest question, and steps that hold that question and 128 tokens more.
absl::Status AnswerTask(const TaskContext& task, int32_t context, int32_t vocab_size, Lane* base,
                        Lane* plan, std::vector<TaskPair>* pairs);

struct TaskResult {
  std::string name;
  std::string description;
  int32_t tokens = 0;  // 0: all lengths together
  int64_t questions = 0;
  Estimate base_accuracy, plan_accuracy;
  Estimate accuracy_change;  // plan less baseline, paired; resampled by context
  Estimate margin_change;    // nats a token
  int64_t only_base_right = 0;
  int64_t only_plan_right = 0;
  double mcnemar_p = 1;
};

// One result per task and length, then one per task over all lengths, in the order of kTaskKinds.
std::vector<TaskResult> SummarizeTasks(const std::vector<TaskPair>& pairs,
                                       const BootstrapOptions& options);

// Index of the task and length that lost most accuracy; of equals the one that lost most margin.
// -1 for no results.
int WorstTask(const std::vector<TaskResult>& results);

}  // namespace longstride::model::fidelity

// Long-context tasks after RULER's definitions (arXiv 2404.06654), written by us: single-key,
// multi-key and multi-value retrieval, variable tracking, counting, and common words (aggregation).
// An answer is not generated but recognised: the right one and three distractors of the same form
// are scored by their likelihood, so that small models give a signal, too; guessing gets 1 in 4.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "model/text/tokenizer.h"

namespace longstride::model::fidelity {

enum class TaskKind : uint8_t {
  kSingleKey,         // one fact in filler; asked for it
  kMultiKey,          // eight facts of one form; asked for some
  kMultiValue,        // four values of one key; asked for all of them
  kVariableTracking,  // chains of assignments; asked for the value at a chain's end
  kCounting,          // a sentence that recurs; asked how often
  kCommonWords,       // a list of words; asked for the most frequent
};
inline constexpr TaskKind kTaskKinds[] = {TaskKind::kSingleKey,  TaskKind::kMultiKey,
                                          TaskKind::kMultiValue, TaskKind::kVariableTracking,
                                          TaskKind::kCounting,   TaskKind::kCommonWords};

std::string_view TaskName(TaskKind kind);         // "single_key": in the report
std::string_view TaskDescription(TaskKind kind);  // one line for people

struct TaskQuestion {
  std::vector<int32_t> tail;                     // what is asked, up to where the answers part
  std::vector<std::vector<int32_t>> candidates;  // the rest of each answer; not empty
  int32_t right = 0;                             // index of the right one
};

// A text with questions that are asked one after the other, each behind the text alone.
struct TaskContext {
  TaskKind kind = TaskKind::kSingleKey;
  int32_t target_tokens = 0;    // asked length
  std::vector<int32_t> tokens;  // at most that, and close to it
  std::vector<TaskQuestion> questions;
};

// Deterministic in (kind, tokens, seed) and the tokenizer. INVALID_ARGUMENT: `tokens` has no room
// for the task's facts.
absl::StatusOr<TaskContext> MakeTask(const Tokenizer& tokenizer, TaskKind kind, int32_t tokens,
                                     uint64_t seed);

}  // namespace longstride::model::fidelity

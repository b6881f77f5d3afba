// The rows of one step: ModelInput checked and flattened to what kernels take. Reused from step to
// step; a steady state allocates nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "config/base/status.h"
#include "model/kv_cache.h"
#include "model/model_input.h"
#include "model/model_spec.h"
#include "model/sparsity/sparsity_plan.h"

namespace longstride::model {

// What an input is checked against.
struct StepLimits {
  const ModelSpec* spec = nullptr;
  const SparsityPlan* plan = nullptr;
  const KvCache* cache = nullptr;
  int32_t max_step_tokens = 0;
  int32_t max_logits_rows = 0;
};

// Rows [row_begin, +num_rows) whose sequences use one rotary table.
struct RopeSpan {
  int32_t row_begin = 0;
  int32_t num_rows = 0;
  uint8_t variant = 0;
};

struct StepLayout {
  int32_t num_rows = 0;
  std::vector<int32_t> positions;              // [rows]
  std::vector<int32_t> slots;                  // [rows] position mod kPageTokens
  std::vector<std::vector<int32_t>> page_ids;  // [groups][rows] physical page of each row
  // [groups] with summaries: physical pages that the rows are written to, and the keys that each then
  // has; empty for other groups.
  std::vector<std::vector<int32_t>> written_pages, written_counts;
  std::vector<int32_t> kv_lens;                // [sequences] keys after this step; 0 without a run
  std::vector<uint8_t> generated;              // [sequences] 1: its tokens are generated ones
  std::vector<QueryRun> runs;
  std::vector<RopeSpan> rope_spans;

  // Rows that somebody wants logits or hidden states of, ascending, and their runs numbered as if
  // only they were there.
  std::vector<int32_t> wanted;
  std::vector<QueryRun> wanted_runs;
  std::vector<int32_t> logits_rows;  // indices into `wanted`
  std::vector<int32_t> hidden_rows;

  // Sums of (position + 1) over the rows: what dense causal attention would read.
  int64_t keys_all_rows = 0;
  int64_t keys_wanted_rows = 0;

  bool all_wanted() const { return static_cast<int32_t>(wanted.size()) == num_rows; }

  // INVALID_ARGUMENT: the input is malformed; nothing was changed then.
  absl::Status Set(const ModelInput& input, const StepLimits& limits);
};

}  // namespace longstride::model

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

// The rows that a step of `rows` decoded tokens is padded to, where the limits allow.
int32_t PaddedRows(int32_t rows);

struct StepLayout {
  int32_t num_rows = 0;       // those that Pad added included
  int32_t num_sequences = 0;  // rows of the page tables
  std::vector<int32_t> token_ids;              // [rows]
  std::vector<int32_t> positions;              // [rows]
  std::vector<int32_t> slots;                  // [rows] position mod kPageTokens
  std::vector<std::vector<int32_t>> page_ids;  // [groups][rows] physical page of each row
  // [groups] with summaries: physical pages that the rows are written to, and the keys that each then
  // has; empty for other groups.
  std::vector<std::vector<int32_t>> written_pages, written_counts;
  std::vector<int32_t> kv_lens;                // [sequences] keys after this step; 0 without a run
  std::vector<uint8_t> generated;              // [sequences] 1: its tokens are generated ones
  std::vector<kernels::PageTable> page_tables;  // [groups], of the input until Pad copies them
  std::vector<QueryRun> runs;
  std::vector<RopeSpan> rope_spans;

  // Rows that somebody wants logits or hidden states of, ascending, and their runs numbered as if
  // only they were there.
  std::vector<int32_t> wanted;
  std::vector<QueryRun> wanted_runs;
  std::vector<int32_t> logits_rows;  // indices into `wanted`
  std::vector<int32_t> hidden_rows;

  // What dense attention (causal or not, as the model is) would read: keys summed over the rows.
  int64_t keys_all_rows = 0;
  int64_t keys_wanted_rows = 0;

  bool all_wanted() const { return static_cast<int32_t>(wanted.size()) == num_rows; }

  // Whether every sequence has one generated token, whose logits are wanted and nothing else.
  bool decodes_only = false;
  bool padded = false;

  // INVALID_ARGUMENT: the input is malformed; nothing was changed then.
  absl::Status Set(const ModelInput& input, const StepLimits& limits);

  // Brings a step that decodes only to PaddedRows rows of as many sequences, and page tables to a
  // power of two of pages: sizes that stay for a while. The further rows are token 0 at position 0
  // of sequences without keys and pages; nothing is written for them. `runs` stay as they are.
  void Pad(const StepLimits& limits);

  // Makes a step on nothing: rows of token 0 at position 0, spread over `num_sequences` without keys
  // and pages, and page tables as wide as `context` tokens need.
  void SetIdle(int32_t rows, int32_t sequences, NumericsClass numerics, size_t num_groups,
               int32_t context);

 private:
  std::vector<std::vector<int32_t>> padded_pages_;  // [groups] behind page_tables
};

}  // namespace longstride::model

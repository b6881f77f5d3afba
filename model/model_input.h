// One step's work for the decoder: a ragged batch of runs of consecutive tokens, each of one
// sequence, and the page tables of the sequences in every cache group. Host memory, plain data; the
// model knows no requests.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/backend.h"
#include "kernels/paged_kv.h"
#include "kernels/tensor_view.h"
#include "model/sampler.h"

namespace longstride::model {

// Which numerics a token's keys and values were computed with; fixed by the token's role in its
// request, never by the schedule (docs/architecture.md, "Results do not depend on company").
enum class NumericsClass : uint8_t { kPrompt, kGenerated };

struct InputRun {
  int32_t sequence = 0;        // row of the page tables
  int32_t first_position = 0;  // absolute position of the run's first token
  int32_t num_tokens = 0;
  int32_t num_logits = 0;     // logits wanted for the last num_logits tokens of the run
  bool wants_hidden = false;  // final hidden states (after the output norm) of all the run's tokens
  uint8_t rope_variant = 0;   // RopeSpec::variants, fixed per request
  NumericsClass numerics = NumericsClass::kPrompt;
};

struct GroupPageTable {
  std::vector<int32_t> pages;  // [num_sequences, stride]; kNoPage where the sequence holds none
  int64_t stride = 0;
};

// A token to choose after the step.
struct TokenChoice {
  int32_t logits_row = 0;  // of all rows of logits that the runs want
  SamplingContext context;
};

struct ModelInput {
  int32_t num_sequences = 0;
  std::vector<InputRun> runs;               // by sequence; at most one run per sequence
  std::vector<int32_t> token_ids;           // the runs' tokens, one after the other
  std::vector<GroupPageTable> page_tables;  // one per cache group
  std::vector<TokenChoice> choices;         // by row, one for a row at most
};

// Keys that attention could have read (dense) and did, by pattern; exported as metrics.
struct PatternCounters {
  int32_t pattern = 0;       // index into SparsityPlan's distinct patterns
  int64_t keys_total = 0;    // keys a dense layer (causal or not, as the model is) would see
  int64_t keys_visible = 0;  // keys the selection allows
  int64_t keys_read = 0;     // keys scored by the kernel
};

// How the plan's attention of one generated token differs from the baseline's over the same queries
// and cache, in the heads of one segment of a layer's plan (fidelity/live_shadow.h).
struct ShadowSample {
  int32_t layer = 0;
  int32_t segment = 0;
  // Share of the baseline's softmax mass on keys that the plan reads too, mean over the heads.
  double captured_mass = 0;
  double output_error = 0;  // relative L2 of the heads' outputs
};

struct ShadowReport {
  std::vector<ShadowSample> samples;
  int64_t nanos = 0;  // of the host that it took within the step
};

struct StepTimes {
  int64_t selection_ns = 0;
  int64_t attention_ns = 0;
  int64_t linear_ns = 0;
  int64_t other_ns = 0;
};

struct ModelOutput {
  // How a step ran that may be replayed; none: it is not of that kind, or the backend replays none.
  std::optional<kernels::StepRun> repeatable;
  // [total num_logits, vocab] f32, in the order of the runs; owned by the model, valid until the
  // next Forward. No data where every row's token was chosen on the device.
  kernels::TensorView logits;
  // [choices] what was chosen on the device; nothing where the caller has to sample from `logits`.
  // A chosen token's row of logits is meaningless.
  std::vector<std::optional<SampledToken>> chosen;
  std::optional<kernels::KernelTimes> kernel_times;  // if this step was measured
  kernels::TensorView hidden;  // [tokens of runs with wants_hidden, dim] f32
  std::vector<PatternCounters> counters;
  std::optional<ShadowReport> shadow;  // if this step was sampled for live fidelity
  StepTimes times;
};

}  // namespace longstride::model

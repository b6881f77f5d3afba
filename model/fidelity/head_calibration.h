// Which key/value heads need all of the context, found without training: each head in turn reads
// only what a streaming head would while all others stay as they are, and its score is what that
// does to the model's predictions. DuoAttention (arXiv 2410.10819) trains a gate per head by
// gradient descent to the same end; this measures one head at a time, so that what two heads can do
// for each other is not seen.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "config/base/status.h"
#include "config/sparsity_policy.h"
#include "model/fidelity/lane.h"
#include "model/fidelity/text_windows.h"
#include "model/text/tokenizer.h"

namespace longstride::model::fidelity {

// A sequence whose last tokens are predicted with the checkpoint's own plan and with a head
// changed.
struct CalibrationText {
  std::vector<int32_t> tokens;
  int32_t scored = 0;  // of the tokens, the last; at least one more stands before them
};

struct CalibrationTextOptions {
  int32_t tokens = 0;  // length of each text, at most
  int32_t pairs = 0;   // of a retrieval prompt each with a window of real text
  uint64_t seed = 1;
};

// `pairs` prompts that ask for something far back (single-key, multi-key and multi-value retrieval
// and variable tracking in turn), of which the answer is scored, and as many windows of the
// documents, of which the last 64 tokens are. INVALID_ARGUMENT: CutWindows' and MakeTask's.
absl::StatusOr<std::vector<CalibrationText>> MakeCalibrationTexts(
    const Tokenizer& tokenizer, const std::vector<Document>& documents,
    const CalibrationTextOptions& options);

struct HeadCalibrationOptions {
  PatternPolicy streaming;  // what the head under test reads
  LaneOptions lane;
  std::function<void(int64_t done, int64_t total)> progress;  // sequences computed; may be null
};

// [layer][KV head], as HeadTable::scores: the KL divergence of the next-token distributions, in
// nats, mean over a text's scored tokens and then over the texts. Layers that the checkpoint itself
// limits have an empty row. INVALID_ARGUMENT: no layer sees everything, or the streaming pattern is
// bad.
absl::StatusOr<std::vector<std::vector<double>>> ScoreHeads(Model* model,
                                                            std::span<const CalibrationText> texts,
                                                            const HeadCalibrationOptions& options);

}  // namespace longstride::model::fidelity

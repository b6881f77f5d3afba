// `longstride calibrate-heads`: writes a head table (config/sparsity_policy.h) for a checkpoint.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "model/fidelity/head_calibration.h"
#include "server/cli/commands.h"
#include "server/cli/data_files.h"
#include "server/cli/fidelity_progress.h"
#include "server/cli/runtime.h"
#include "server/cli/to_options.h"

namespace longstride::cli {
namespace {

using nlohmann::ordered_json;
using Scores = std::vector<std::vector<double>>;

constexpr int64_t kMaxTokens = int64_t{1} << 24;
constexpr int64_t kUnusedCacheBytes = int64_t{256} << 20;  // lanes have caches of their own
constexpr int32_t kLeastText = 128;
constexpr int kRowsOnTerminal = 8;

struct Question {
  int64_t window = 0, sink_tokens = 0;  // of a streaming head
  model::fidelity::CalibrationTextOptions texts;
};

absl::StatusOr<Question> ReadQuestion(const Invocation& invocation) {
  const ServerConfig& config = invocation.config();
  if (!config.sparsity.plan.empty() || !config.sparsity.profile.empty()) {
    return absl::InvalidArgumentError(
        "Heads are measured against the checkpoint's own plan; leave out --sparsity-plan and "
        "--sparsity-profile.");
  }
  if (!invocation.Has("--out")) {
    return absl::InvalidArgumentError("No file for the table is given; name one with --out TABLE.");
  }
  Question question;
  ASSIGN_OR_RETURN(question.window, invocation.Int("--window", 256, 1, kMaxTokens));
  ASSIGN_OR_RETURN(question.sink_tokens, invocation.Int("--sink-tokens", 64, 0, kMaxTokens));
  ASSIGN_OR_RETURN(const int64_t tokens,
                   invocation.Int("--text-tokens", 2048, kLeastText, kMaxTokens));
  ASSIGN_OR_RETURN(const int64_t pairs, invocation.Int("--texts", 4, 1, 1000));
  ASSIGN_OR_RETURN(const int64_t seed, invocation.Int("--seed", 1, 0, int64_t{1} << 40));
  if (question.window + question.sink_tokens >= tokens) {
    return absl::InvalidArgumentError(
        StrCat("--text-tokens: a text of ", tokens, " tokens lies inside the ",
               question.window + question.sink_tokens,
               " that a streaming head reads; raise it, or lower --window or --sink-tokens."));
  }
  question.texts = {.tokens = static_cast<int32_t>(tokens),
                    .pairs = static_cast<int32_t>(pairs),
                    .seed = static_cast<uint64_t>(seed)};
  return question;
}

std::string TableJson(const model::Model& model, const Question& question, const Scores& scores,
                      const std::vector<model::fidelity::Document>& data) {
  std::string names;
  for (const auto& document : data) StrAppend(&names, names.empty() ? "" : ", ", document.name);
  ordered_json table;
  table["name"] = model.name();
  table["model"] = model.spec().digest;
  table["measured"] =
      StrCat("KL divergence in nats where this head alone streams, mean over ",
             question.texts.pairs, " retrieval prompts and as many windows of ", names,
             "; texts of ", question.texts.tokens, " tokens, seed ", question.texts.seed);
  table["patterns"] = {{"full", {{"pattern", "native"}}},
                       {"streaming",
                        {{"pattern", "window"},
                         {"window", question.window},
                         {"sink_tokens", question.sink_tokens}}}};
  // A line per layer.
  const std::string head = table.dump(2);
  std::string rows;
  for (const std::vector<double>& row : scores) {
    std::string cells;
    for (const double score : row) {
      StrAppend(&cells, cells.empty() ? "" : ", ", absl::StrFormat("%.4g", score));
    }
    StrAppend(&rows, rows.empty() ? "" : ",", "\n    [", cells, "]");
  }
  return StrCat(head.substr(0, head.rfind('}') - 1), ",\n  \"scores\": [", rows, "\n  ]\n}\n");
}

std::string Summary(const Scores& scores, const Question& question) {
  std::vector<std::pair<double, std::string>> heads;
  double sum = 0;
  for (size_t l = 0; l < scores.size(); ++l) {
    for (size_t h = 0; h < scores[l].size(); ++h) {
      heads.emplace_back(scores[l][h], StrCat("layer ", l, ", KV head ", h));
      sum += scores[l][h];
    }
  }
  std::sort(heads.rbegin(), heads.rend());
  std::string out =
      absl::StrFormat("%d KV heads, each by itself with a window of %d and %d sinks; KL in nats\n",
                      heads.size(), question.window, question.sink_tokens);
  for (size_t n = 0; n < heads.size() && n < kRowsOnTerminal; ++n) {
    absl::StrAppendFormat(&out, "  %-9.3g %s\n", heads[n].first, heads[n].second);
  }
  double half = 0;
  for (size_t n = 0; n < heads.size() / 2; ++n) half += heads[n].first;
  if (sum > 0 && heads.size() > 1) {
    absl::StrAppendFormat(&out, "The upper half of the heads holds %.3g%% of the sum.\n",
                          100 * half / sum);
  }
  return out;
}

absl::StatusOr<int> CalibrateHeads(const Invocation& invocation) {
  RETURN_IF_ERROR(ToModelOptions(invocation.config()).status());
  ASSIGN_OR_RETURN(const Question question, ReadQuestion(invocation));
  ASSIGN_OR_RETURN(const std::vector<model::fidelity::Document> data, ReadData(invocation));
  RETURN_IF_ERROR(CheckWritable(invocation, {"--out"}));
  LogWarningsOnly(invocation);
  FidelityProgress progress;
  progress.Update("loading the model", 0, 0);
  ServerConfig config = invocation.config();
  config.kv.memory = kUnusedCacheBytes;
  ASSIGN_OR_RETURN(const std::unique_ptr<model::Model> model, LoadModel(config));
  if (!model->spec().causal) {
    return absl::InvalidArgumentError(
        StrCat("the model ", model->name(),
               " is an encoder, and head tables are for models that predict what comes next; give "
               "a generating model."));
  }
  if (question.texts.tokens > model->max_context()) {
    return absl::InvalidArgumentError(StrCat("--text-tokens: got ", question.texts.tokens,
                                             "; this model serves at most ", model->max_context(),
                                             " tokens."));
  }
  ASSIGN_OR_RETURN(const std::vector<model::fidelity::CalibrationText> texts,
                   MakeCalibrationTexts(model->tokenizer(), data, question.texts));
  model::fidelity::HeadCalibrationOptions options;
  options.streaming.pattern = "window";
  options.streaming.params = {{"window", question.window}, {"sink_tokens", question.sink_tokens}};
  options.streaming.place = "--window, --sink-tokens";
  options.lane = {.kv_dtype = model->options().kv_dtype,
                  .max_tokens = question.texts.tokens,
                  .step_tokens = model->options().max_step_tokens};
  options.progress = [&](int64_t done, int64_t total) {
    progress.Update("computing texts, a head changed in each", done, total);
  };
  ASSIGN_OR_RETURN(const Scores scores, ScoreHeads(model.get(), texts, options));
  progress.Finish();
  RETURN_IF_ERROR(
      WriteFile(invocation.Text("--out", ""), TableJson(*model, question, scores, data)));
  std::cout << Summary(scores, question);
  return kExitOk;
}

}  // namespace

Command CalibrateHeadsCommand() {
  return {
      .name = "calibrate-heads",
      .arguments = "MODEL --data FILE [FILE...] --out TABLE",
      .summary = "measures which heads need all of the context, and writes a head table",
      .flags = {{"--data", "FILE", "Text to measure on; further files may follow."},
                {"--out", "TABLE", "The head table to write (JSON; docs/sparsity.md)."},
                {"--window", "N", "Last keys that a streaming head reads (default: 256)."},
                {"--sink-tokens", "N", "First keys that it reads (default: 64)."},
                {"--text-tokens", "N", "Length of a text (default: 2048)."},
                {"--texts", "N",
                 "Retrieval prompts, and windows of the data, to measure on (default: 4 each)."},
                {"--seed", "N", "Of the retrieval prompts (default: 1)."}},
      .first_is_model = true,
      .max_plain = kMaxDataFiles,
      .run = &CalibrateHeads};
}

}  // namespace longstride::cli

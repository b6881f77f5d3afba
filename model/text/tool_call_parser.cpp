#include "model/text/tool_call_parser.h"

#include <algorithm>

#include "model/text/output_machine.h"

namespace longstride::model {
namespace {

constexpr std::string_view kHermesTokens[] = {"<tool_call>", "</tool_call>", "<think>", "</think>"};
constexpr std::string_view kLlamaTokens[] = {"<|python_tag|>", "<|python_start|>", "<|python_end|>"};
constexpr std::string_view kMistralTokens[] = {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"};
constexpr std::string_view kHarmonyTokens[] = {"<|start|>", "<|end|>",    "<|message|>", "<|channel|>",
                                               "<|call|>",  "<|return|>", "<|constrain|>"};
constexpr std::string_view kCohereTokens[] = {
    "<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|END_ACTION|>",
    "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>",   "<|END_TEXT|>"};
constexpr std::string_view kPlainTokens[] = {"<think>", "</think>"};

}  // namespace

OutputSyntax DetectOutputSyntax(std::string_view source) {
  const auto has = [source](std::string_view mark) { return source.find(mark) != std::string_view::npos; };
  if (has("<|channel|>") && has("<|message|>")) return {OutputFormat::kHarmony, "", ""};
  if (has("<|START_ACTION|>") || has("<|START_THINKING|>")) {
    return {OutputFormat::kCohere, "<|START_THINKING|>", "<|END_THINKING|>"};
  }
  OutputSyntax syntax;
  if (has("<think>") || has("</think>")) {
    syntax.think_open = "<think>";
    syntax.think_close = "</think>";
  }
  if (has("[TOOL_CALLS]")) {
    syntax.format = OutputFormat::kMistral;
    if (syntax.think_open.empty() && has("[THINK]")) {
      syntax.think_open = "[THINK]";
      syntax.think_close = "[/THINK]";
    }
  } else if (has("<tool_call>")) {
    syntax.format = OutputFormat::kHermes;
  } else if (has("<|python_tag|>") || has("<|python_start|>") ||
             ((has("<|start_header_id|>") || has("<|header_start|>")) && has("ipython"))) {
    syntax.format = OutputFormat::kLlama;
  }
  return syntax;
}

std::span<const std::string_view> ControlTokens(OutputFormat format) {
  switch (format) {
    case OutputFormat::kPlain: return kPlainTokens;
    case OutputFormat::kHermes: return kHermesTokens;
    case OutputFormat::kLlama: return kLlamaTokens;
    case OutputFormat::kMistral: return kMistralTokens;
    case OutputFormat::kHarmony: return kHarmonyTokens;
    case OutputFormat::kCohere: return kCohereTokens;
  }
  return {};
}

bool EndsInReasoning(const OutputSyntax& syntax, std::string_view tail) {
  if (syntax.think_open.empty()) return false;
  const size_t open = tail.rfind(syntax.think_open), close = tail.rfind(syntax.think_close);
  return open != std::string_view::npos && (close == std::string_view::npos || close < open);
}

struct OutputParser::State {
  PartSink sink;
  std::unique_ptr<OutputMachine> machine;
  std::string buffer;
};

OutputParser::OutputParser(OutputParserOptions options) : state_(std::make_unique<State>()) {
  state_->machine = options.syntax.format == OutputFormat::kHarmony
                        ? MakeHarmonyMachine(std::move(options), &state_->sink)
                        : MakeTaggedMachine(std::move(options), &state_->sink);
}
OutputParser::~OutputParser() = default;

std::vector<OutputPart> OutputParser::Push(std::string_view text) {
  // In pieces: a machine moves the rest of its buffer with every mark that it takes off.
  constexpr size_t kPiece = 2048;
  while (!text.empty()) {
    state_->buffer += text.substr(0, kPiece);
    text.remove_prefix(std::min(kPiece, text.size()));
    state_->machine->Consume(&state_->buffer, /*at_end=*/false);
  }
  return state_->sink.Take();
}

std::vector<OutputPart> OutputParser::Finish() {
  state_->machine->Consume(&state_->buffer, /*at_end=*/true);
  state_->sink.Finish();
  return state_->sink.Take();
}

int OutputParser::num_tool_calls() const { return state_->sink.num_calls(); }

}  // namespace longstride::model

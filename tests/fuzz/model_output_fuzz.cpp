// What a model generates, cut anywhere, through the parsers of reasoning and tool calls. The input is
// the format, options, the size of the pieces, and the text.
#include "config/base/check.h"
#include "config/base/strings.h"
#include "model/text/tool_call_parser.h"
#include "tests/fuzz/fuzz_target.h"

namespace longstride::fuzz {
namespace {

using model::OutputPart;

// The parts as one text in which a stretch of one kind does not show how it was cut.
struct Transcript {
  std::string text;
  int kind = -1;
  int calls = 0;

  void Add(const std::vector<OutputPart>& parts) {
    for (const OutputPart& part : parts) {
      if (part.kind == OutputPart::kToolCall) {
        LS_CHECK_EQ(part.tool_index, calls);
        ++calls;
        StrAppend(&text, "\x01", "call ", part.tool_name, " ", part.tool_id);
      } else if (part.kind == OutputPart::kToolArguments) {
        LS_CHECK_EQ(part.tool_index, calls - 1);
      }
      if (part.kind != kind) StrAppend(&text, "\x01", static_cast<int>(part.kind));
      kind = part.kind;
      text += part.text;
    }
  }
};

Transcript Parse(const model::OutputParserOptions& options, std::string_view text, size_t piece) {
  model::OutputParser parser(options);
  Transcript transcript;
  for (size_t at = 0; at < text.size(); at += piece) {
    transcript.Add(parser.Push(text.substr(at, piece)));
  }
  transcript.Add(parser.Finish());
  LS_CHECK_EQ(parser.num_tool_calls(), transcript.calls);
  return transcript;
}

std::string Seed(model::OutputFormat format, std::string_view text, int flags = 0xf) {
  return std::string{static_cast<char>(format), static_cast<char>(flags), '\x02'} +
         std::string(text);
}

}  // namespace

void RunInput(std::string_view input) {
  InputParts parts(input);
  model::OutputParserOptions options;
  options.syntax.format = static_cast<model::OutputFormat>(parts.Byte() % 6);
  const uint8_t flags = parts.Byte();
  options.parse_tool_calls = flags & 1;
  options.parse_reasoning = flags & 2;
  if (flags & 4) {
    const bool cohere = options.syntax.format == model::OutputFormat::kCohere;
    options.syntax.think_open = cohere ? "<|START_THINKING|>" : "<think>";
    options.syntax.think_close = cohere ? "<|END_THINKING|>" : "</think>";
  }
  if (flags & 8) options.tool_names = {"f", "get_weather"};
  options.starts_in_reasoning = flags & 16;
  const size_t piece = 1 + parts.Byte() % 8;
  const std::string_view text = parts.rest();
  const Transcript whole = Parse(options, text, text.size() + 1);
  LS_CHECK_EQ(whole.text, Parse(options, text, piece).text);
  (void)model::DetectOutputSyntax(text);
  (void)model::EndsInReasoning(options.syntax, text);
}

std::vector<std::string> Seeds() {
  using model::OutputFormat;
  return {
      Seed(OutputFormat::kPlain, "Hello <think> x </think> y"),
      Seed(OutputFormat::kHermes,
           "<think>\nhm\n</think>\n\nSo.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": "
           "[1, -2.5e3, \"\\u00fc}\"]}}\n</tool_call><tool_call>{\"arguments\": \"{}\", \"id\": "
           "\"x\", \"name\": \"g\"}</tool_call>"),
      Seed(OutputFormat::kLlama, "{\"name\": \"f\", \"parameters\": {\"a\": null}}; {\"name\":\"f\"}"),
      Seed(OutputFormat::kLlama, "[f(a=1, b='x\\n', c=[True, (1, 2)]), get_weather(d={'k': None})]"),
      Seed(OutputFormat::kMistral, "text[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}]"),
      Seed(OutputFormat::kMistral, "[TOOL_CALLS]f[CALL_ID]abc[ARGS]{\"a\": 1}[TOOL_CALLS]g[ARGS]{}"),
      Seed(OutputFormat::kHarmony,
           "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to="
           "functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|><|start|>assistant<|channel|>"
           "final<|message|>done<|return|>"),
      Seed(OutputFormat::kCohere,
           "<|START_THINKING|>hm<|END_THINKING|><|START_ACTION|>[{\"tool_call_id\": \"0\", "
           "\"tool_name\": \"f\", \"parameters\": {\"a\": 1}}]<|END_ACTION|><|START_RESPONSE|>ok"
           "<|END_RESPONSE|>"),
  };
}

}  // namespace longstride::fuzz

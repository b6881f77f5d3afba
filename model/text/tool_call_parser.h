// Splits what a model generates into content, reasoning and tool calls, as it comes.
//
// The families mark these in their own ways, which their chat templates show; see OutputFormat.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longstride::model {

enum class OutputFormat {
  kPlain,    // content only
  kHermes,   // <tool_call>{"name": ..., "arguments": ...}</tool_call>: Qwen, Hermes
  kLlama,    // a message that is {"name": ..., "parameters": ...} or [f(a=1)]: Llama 3 and 4
  kMistral,  // [TOOL_CALLS] [{...}] or [TOOL_CALLS]name[ARGS]{...}
  kHarmony,  // <|channel|>analysis<|message|>...: gpt-oss
  kCohere,   // <|START_ACTION|>[{"tool_name": ..., "parameters": ...}]<|END_ACTION|>
};

struct OutputSyntax {
  OutputFormat format = OutputFormat::kPlain;
  // Tags around reasoning; empty where there is none or the format has its own.
  std::string think_open, think_close;
};

// Reads the syntax off a chat template's source.
OutputSyntax DetectOutputSyntax(std::string_view template_source);

// The special tokens that the parser needs to see in the text: they must not be skipped when ids are
// decoded (StreamDecoderOptions::keep).
std::span<const std::string_view> ControlTokens(OutputFormat format);

// Whether a prompt ends inside reasoning: the last opening tag is not closed. `tail` is the last
// stretch of the prompt that the template wrote; what users wrote does not count.
bool EndsInReasoning(const OutputSyntax& syntax, std::string_view tail);

struct OutputPart {
  enum Kind {
    kContent,
    kReasoning,
    kToolCall,       // begins the call number `tool_index`; once for each call, before its arguments
    kToolArguments,  // `text` goes on with the arguments of the call number `tool_index`
  } kind;
  std::string text;
  int tool_index = -1;
  std::string tool_name;
  std::string tool_id;  // where the model gave one
};

struct OutputParserOptions {
  OutputSyntax syntax;
  bool parse_tool_calls = true;     // false: calls are content
  bool parse_reasoning = true;      // false: thoughts, tags and all, are content
  bool starts_in_reasoning = false;  // see EndsInReasoning
  // Names of the tools on offer. Where a format has no mark for calls (kLlama), only these make one.
  std::vector<std::string> tool_names;
};

// The parts of a text do not depend on how it is cut into pieces, but for how the text within a
// stretch of one kind is cut. Nothing but marks and the blanks beside them is lost: what looks like a
// call and is none comes back as content. A call whose arguments turn out broken after they have
// begun keeps the valid start as arguments; the rest comes back as content. Not thread-safe.
class OutputParser {
 public:
  explicit OutputParser(OutputParserOptions options);
  ~OutputParser();

  std::vector<OutputPart> Push(std::string_view text);
  // Call at the end of the generation. Nothing may be pushed afterwards.
  std::vector<OutputPart> Finish();
  int num_tool_calls() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longstride::model

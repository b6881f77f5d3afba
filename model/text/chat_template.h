// Conversations to prompts, through the checkpoint's own Jinja template.
//
// The engine is our own and bounded: steps, output, recursion, ranges and sizes have limits, so that
// no template and no conversation can hold a thread. Every span of a prompt knows whether the
// template wrote it or the conversation did; only the template's spans may hold special tokens.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/text/tokenizer.h"

namespace longstride::model {

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments_json;  // an object, as text
};

struct ChatMessage {
  std::string role;
  std::optional<std::string> content;
  std::vector<std::string> text_parts;  // instead of content: parts of type text
  std::vector<ToolCall> tool_calls;     // of an assistant
  std::string tool_call_id;             // of a tool's answer
  std::string name;
  std::string reasoning;  // what the assistant thought before its content
};

struct ChatInput {
  std::vector<ChatMessage> messages;
  std::vector<std::string> tools_json;  // OpenAI's tool objects
  // Further variables of the template, as JSON ("enable_thinking": "false"). They may not replace
  // those that this struct fills.
  std::map<std::string, std::string> kwargs_json;
  bool add_generation_prompt = true;
  // The last message is the start of the answer: the prompt ends with it. Not with
  // add_generation_prompt.
  bool continue_final_message = false;
};

struct RenderedSpan {
  std::string text;
  bool from_template;
};

// Immutable and thread-safe.
class ChatTemplate {
 public:
  static constexpr size_t kMaxSourceBytes = 256 * 1024;

  // The texts of the special tokens are what {{ bos_token }} and {{ eos_token }} write; either may be
  // empty. InvalidArgument names the line; Unimplemented a tag that is not supported.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source,
                                                             std::string_view bos_token,
                                                             std::string_view eos_token);
  ~ChatTemplate();

  // `now` is what strftime_now formats, in UTC.
  // InvalidArgument: the template refuses the conversation (its own words), a limit is exceeded, or
  // a JSON text is broken. Unimplemented: a filter or test that is not known.
  absl::StatusOr<std::vector<RenderedSpan>> Render(const ChatInput& input, absl::Time now) const;

  const std::string& source() const { return source_; }
  // Found by trying: whether tools, tool calls and system messages reach the prompt.
  bool supports_tools() const { return supports_tools_; }
  bool supports_tool_calls() const { return supports_tool_calls_; }
  bool supports_system() const { return supports_system_; }

 private:
  struct Program;
  ChatTemplate();
  void Probe();

  std::string source_, bos_token_, eos_token_;
  std::unique_ptr<const Program> program_;
  bool supports_tools_ = false;
  bool supports_tool_calls_ = false;
  bool supports_system_ = false;
  bool arguments_as_text_ = false;   // tool call arguments are rendered from text, not from an object
  bool content_as_parts_ = false;    // the template knows lists of parts ...
  bool content_needs_parts_ = false;  // ... and nothing else
};

// For Tokenizer::Encode, with add_special off. Borrows the spans.
std::vector<TextSpan> ToTextSpans(const std::vector<RenderedSpan>& spans);

// The published turn format of a family whose checkpoints may come without a template; `architecture`
// as GGUF and config.json spell it. FailedPrecondition for the others.
absl::StatusOr<std::string_view> DefaultTemplateFor(std::string_view architecture);

}  // namespace longstride::model

#include "model/text/chat_template.h"

#include <algorithm>

#include "config/base/status.h"
#include "model/text/jinja/evaluator.h"
#include "model/text/jinja/json_value.h"
#include "model/text/jinja/parser.h"
#include "model/text/jinja/strings.h"
#include "model/text/unicode.h"

namespace longstride::model {
namespace {

using jinja::Dict;
using jinja::Origin;
using jinja::Text;
using jinja::Value;

constexpr std::string_view kReserved[] = {"messages", "tools", "add_generation_prompt", "bos_token",
                                          "eos_token"};

// How much a conversation weighs, for the budgets.
size_t InputBytes(const ChatInput& input) {
  size_t bytes = 0;
  for (const ChatMessage& m : input.messages) {
    bytes += m.role.size() + m.name.size() + m.reasoning.size() + m.tool_call_id.size() + 64;
    if (m.content.has_value()) bytes += m.content->size();
    for (const std::string& part : m.text_parts) bytes += part.size();
    for (const ToolCall& c : m.tool_calls) bytes += c.id.size() + c.name.size() + c.arguments_json.size();
  }
  for (const std::string& tool : input.tools_json) bytes += tool.size();
  for (const auto& [name, json] : input.kwargs_json) bytes += name.size() + json.size();
  return bytes;
}

absl::Status CheckText(std::string_view text, std::string_view what) {
  if (FirstInvalidUtf8(text) == std::string_view::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat(what, " is not valid UTF-8"));
}

// Builds the values that a template sees.
struct InputBuilder {
  bool arguments_as_text = false;
  bool content_as_parts = false;
  bool content_needs_parts = false;

  absl::StatusOr<Value> Part(const std::string& text) const {
    Dict part;
    part.Put("type", Value::FromTemplate("text"));
    part.Put("text", Value::FromInput(text));
    return Value::MakeDict(std::move(part));
  }

  absl::StatusOr<Value> Content(const ChatMessage& message) const {
    const bool as_parts = message.text_parts.empty() ? content_needs_parts : content_as_parts;
    if (as_parts) {
      std::vector<Value> parts;
      for (const std::string& text : message.text_parts) {
        ASSIGN_OR_RETURN(Value part, Part(text));
        parts.push_back(std::move(part));
      }
      if (message.text_parts.empty()) {
        ASSIGN_OR_RETURN(Value part, Part(message.content.value_or("")));
        parts.push_back(std::move(part));
      }
      return Value::MakeList(std::move(parts));
    }
    if (message.text_parts.empty()) return Value::FromInput(message.content.value_or(""));
    std::string joined;
    for (const std::string& text : message.text_parts) {
      if (&text != &message.text_parts.front()) joined += '\n';
      joined += text;
    }
    return Value::FromInput(std::move(joined));
  }

  absl::StatusOr<Value> Call(const ToolCall& call) const {
    Dict function;
    function.Put("name", Value::FromInput(call.name));
    Value arguments = Value::FromInput(call.arguments_json);
    if (!arguments_as_text) {
      // What is no object, as a model may well write it, stays the text that it is.
      auto parsed = jinja::ParseJson(call.arguments_json, Origin::kInput, "tool call arguments");
      if (parsed.ok() && parsed->AsDict() != nullptr) arguments = *std::move(parsed);
    }
    function.Put("arguments", std::move(arguments));
    Dict dict;
    if (!call.id.empty()) dict.Put("id", Value::FromInput(call.id));
    dict.Put("type", Value::FromTemplate("function"));
    ASSIGN_OR_RETURN(Value function_value, Value::MakeDict(std::move(function)));
    dict.Put("function", std::move(function_value));
    return Value::MakeDict(std::move(dict));
  }

  absl::StatusOr<Value> Message(const ChatMessage& message) const {
    for (const std::string* text : {&message.role, &message.name, &message.reasoning, &message.tool_call_id}) {
      RETURN_IF_ERROR(CheckText(*text, "a field of a message"));
    }
    RETURN_IF_ERROR(CheckText(message.content.value_or(""), "the content of a message"));
    for (const std::string& part : message.text_parts) {
      RETURN_IF_ERROR(CheckText(part, "the content of a message"));
    }
    Dict dict;
    dict.Put("role", Value::FromInput(message.role));
    ASSIGN_OR_RETURN(Value content, Content(message));
    dict.Put("content", std::move(content));
    if (!message.tool_calls.empty()) {
      std::vector<Value> calls;
      for (const ToolCall& call : message.tool_calls) {
        RETURN_IF_ERROR(CheckText(StrCat(call.id, call.name, call.arguments_json), "a tool call"));
        ASSIGN_OR_RETURN(Value value, Call(call));
        calls.push_back(std::move(value));
      }
      ASSIGN_OR_RETURN(Value list, Value::MakeList(std::move(calls)));
      dict.Put("tool_calls", std::move(list));
    }
    if (!message.tool_call_id.empty()) dict.Put("tool_call_id", Value::FromInput(message.tool_call_id));
    if (!message.name.empty()) dict.Put("name", Value::FromInput(message.name));
    if (!message.reasoning.empty()) {
      // The families do not agree on the name.
      for (const std::string_view name : {"reasoning_content", "reasoning", "thinking"}) {
        dict.Put(name, Value::FromInput(message.reasoning));
      }
    }
    return Value::MakeDict(std::move(dict));
  }

  absl::StatusOr<std::vector<std::pair<std::string, Value>>> Variables(const ChatInput& input) const {
    std::vector<std::pair<std::string, Value>> variables;
    std::vector<Value> messages, tools;
    for (const ChatMessage& message : input.messages) {
      ASSIGN_OR_RETURN(Value value, Message(message));
      messages.push_back(std::move(value));
    }
    ASSIGN_OR_RETURN(Value message_list, Value::MakeList(std::move(messages)));
    variables.emplace_back("messages", std::move(message_list));
    for (size_t i = 0; i < input.tools_json.size(); ++i) {
      ASSIGN_OR_RETURN(Value tool, jinja::ParseJson(input.tools_json[i], Origin::kInput, StrCat("tools[", i, "]")));
      tools.push_back(std::move(tool));
    }
    Value tool_list = jinja::None{};
    if (!tools.empty()) {
      ASSIGN_OR_RETURN(tool_list, Value::MakeList(std::move(tools)));
    }
    variables.emplace_back("tools", std::move(tool_list));
    variables.emplace_back("documents", jinja::None{});
    variables.emplace_back("add_generation_prompt", Value(input.add_generation_prompt));
    for (const auto& [name, json] : input.kwargs_json) {
      if (std::find(std::begin(kReserved), std::end(kReserved), name) != std::end(kReserved)) {
        return absl::InvalidArgumentError(
            StrCat("chat template variable \"", name, "\" is set by the server and cannot be replaced"));
      }
      ASSIGN_OR_RETURN(Value value, jinja::ParseJson(json, Origin::kInput,
                                                     StrCat("chat template variable \"", name, "\"")));
      variables.emplace_back(name, std::move(value));
    }
    return variables;
  }
};

// Ends the prompt where the last message ends.
absl::StatusOr<Text> CutAtFinalMessage(const ChatInput& input, const Text& prompt) {
  const ChatMessage& last = input.messages.back();
  const std::string content = last.text_parts.empty() ? last.content.value_or("") : last.text_parts.back();
  const Text trimmed = jinja::Strip(Text(content, Origin::kInput), jinja::Side::kBoth, std::nullopt);
  const size_t at = trimmed.empty() ? std::string_view::npos : prompt.view().rfind(trimmed.view());
  if (at == std::string_view::npos) {
    return absl::InvalidArgumentError(
        "continue_final_message: the chat template does not write the last message as it is; it may "
        "be empty");
  }
  const Text behind = jinja::Strip(Text(content, Origin::kInput), jinja::Side::kLeft, std::nullopt);
  const bool kept = prompt.view().substr(at, behind.size()) == behind.view();
  return prompt.Slice(0, at + (kept ? behind.size() : trimmed.size()));
}

}  // namespace

struct ChatTemplate::Program {
  jinja::Body body;
};

ChatTemplate::ChatTemplate() = default;
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source,
                                                                  std::string_view bos_token,
                                                                  std::string_view eos_token) {
  ASSIGN_OR_RETURN(jinja::Body body, jinja::Parse(source));
  std::unique_ptr<ChatTemplate> chat(new ChatTemplate);
  chat->source_ = std::string(source);
  chat->bos_token_ = std::string(bos_token);
  chat->eos_token_ = std::string(eos_token);
  chat->program_ = std::make_unique<const Program>(Program{std::move(body)});
  chat->Probe();
  return chat;
}

absl::StatusOr<std::vector<RenderedSpan>> ChatTemplate::Render(const ChatInput& input,
                                                               absl::Time now) const {
  if (input.messages.empty()) return absl::InvalidArgumentError("messages is empty; send at least one");
  if (input.continue_final_message && input.add_generation_prompt) {
    return absl::InvalidArgumentError(
        "continue_final_message and add_generation_prompt exclude each other; set one of them");
  }
  const InputBuilder builder{arguments_as_text_, content_as_parts_, content_needs_parts_};
  ASSIGN_OR_RETURN(auto variables, builder.Variables(input));
  variables.emplace_back("bos_token", Value::FromTemplate(bos_token_));
  variables.emplace_back("eos_token", Value::FromTemplate(eos_token_));
  const size_t bytes = InputBytes(input);
  jinja::RenderLimits limits;
  limits.max_steps = 2'000'000 + static_cast<int64_t>(bytes / 8);
  limits.max_text_bytes = 4 * bytes + (1 << 20);
  jinja::Evaluator evaluator(limits, now);
  ASSIGN_OR_RETURN(Text prompt, evaluator.Render(program_->body, std::move(variables)));
  if (input.continue_final_message) {
    ASSIGN_OR_RETURN(prompt, CutAtFinalMessage(input, prompt));
  }
  std::vector<RenderedSpan> spans;
  for (const Text::Span& span : prompt.Spans()) {
    spans.push_back({std::string(span.bytes), span.origin == Origin::kTemplate});
  }
  return spans;
}

// What the template makes of messages is found by trying, as templates do not declare it.
void ChatTemplate::Probe() {
  const auto prompt_of = [this](const ChatInput& input) {
    std::string prompt;
    const auto spans = Render(input, absl::UnixEpoch());
    if (spans.ok()) {
      for (const RenderedSpan& span : *spans) prompt += span.text;
    }
    return prompt;
  };
  const auto has = [](const std::string& prompt, std::string_view what) {
    return prompt.find(what) != std::string::npos;
  };
  const auto message = [](std::string_view role, std::string_view content) {
    ChatMessage m;
    m.role = std::string(role);
    m.content = std::string(content);
    return m;
  };
  ChatInput plain;
  plain.messages.push_back(message("user", "probe-user"));
  const bool text_works = has(prompt_of(plain), "probe-user");

  ChatInput parts = plain;
  parts.messages[0].content.reset();
  parts.messages[0].text_parts = {"probe-user"};
  content_as_parts_ = true;
  const std::string with_parts = prompt_of(parts);
  content_as_parts_ = has(with_parts, "probe-user") && !has(with_parts, "'probe-user'") &&
                      !has(with_parts, "\"probe-user\"");
  content_needs_parts_ = !text_works && content_as_parts_;

  ChatInput system = plain;
  system.messages.insert(system.messages.begin(), message("system", "probe-system"));
  supports_system_ = has(prompt_of(system), "probe-system");

  ChatInput tools = plain;
  tools.tools_json = {
      R"({"type": "function", "function": {"name": "probe_tool", "description": "d",)"
      R"( "parameters": {"type": "object", "properties": {"probe_key": {"type": "string",)"
      R"( "description": "d"}}, "required": ["probe_key"]}}})"};
  supports_tools_ = has(prompt_of(tools), "probe_tool");

  ChatInput calls = tools;
  calls.messages.push_back(message("assistant", ""));
  // Nine letters and digits, as Mistral's templates require of an id.
  calls.messages.back().tool_calls = {{"probecall", "probe_tool", R"({"probe_key": "probe-value"})"}};
  calls.messages.push_back(message("tool", "probe-result"));
  calls.messages.back().tool_call_id = "probecall";
  calls.messages.back().name = "probe_tool";
  const std::string as_object = prompt_of(calls);
  arguments_as_text_ = true;
  const std::string as_text = prompt_of(calls);
  const bool object_works = has(as_object, "probe-value") && !has(as_object, "{'probe_key'");
  const bool text_arguments_work = has(as_text, R"("probe_key")");
  arguments_as_text_ = !object_works && text_arguments_work;
  supports_tool_calls_ = object_works || text_arguments_work;
}

std::vector<TextSpan> ToTextSpans(const std::vector<RenderedSpan>& spans) {
  std::vector<TextSpan> out;
  for (const RenderedSpan& span : spans) out.push_back({span.text, span.from_template});
  return out;
}

}  // namespace longstride::model

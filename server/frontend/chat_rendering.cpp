#include "server/frontend/chat_rendering.h"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "model/text/chat_template.h"
#include "model/text/tool_call_parser.h"
#include "server/frontend/error_mapping.h"

namespace longstride::frontend {
namespace {

// Variables that the renderer itself sets.
constexpr std::string_view kReserved[] = {"messages",  "tools",     "add_generation_prompt",
                                          "bos_token", "eos_token", "raise_exception"};

model::ChatMessage ToTemplate(const ChatMessage& message, bool knows_developer) {
  model::ChatMessage out;
  out.role = message.role == "developer" && !knows_developer ? "system" : message.role;
  out.content = message.content;
  out.name = message.name;
  out.reasoning = message.reasoning;
  out.tool_call_id = message.tool_call_id;
  for (const ToolCall& call : message.tool_calls) {
    out.tool_calls.push_back({call.id, call.name, call.arguments});
  }
  return out;
}

absl::Status CheckVariables(const ChatRequest& request) {
  for (const auto& [name, value] : request.template_variables) {
    if (std::find(std::begin(kReserved), std::end(kReserved), name) != std::end(kReserved)) {
      return InvalidParam("chat_template_kwargs",
                          StrCat("'", name,
                                 "' is set by the server and cannot be a template "
                                 "variable of the request"));
    }
  }
  return absl::OkStatus();
}

// The model's parser with our types, ids for calls, and at most one call where that was asked for.
class DialectParser final : public OutputParser {
 public:
  DialectParser(model::OutputParserOptions options, bool one_call,
                std::function<std::string()> new_id)
      : parser_(std::move(options)), one_call_(one_call), new_id_(std::move(new_id)) {}

  void Push(std::string_view text, ParsedText* out) override { Append(parser_.Push(text), out); }
  void Finish(ParsedText* out) override { Append(parser_.Finish(), out); }

 private:
  void Append(std::vector<model::OutputPart> parts, ParsedText* out) {
    for (model::OutputPart& part : parts) {
      switch (part.kind) {
        case model::OutputPart::kContent:
          out->content += part.text;
          break;
        case model::OutputPart::kReasoning:
          out->reasoning += part.text;
          break;
        case model::OutputPart::kToolCall: {
          if (one_call_ && part.tool_index > 0) break;
          ToolCallDelta& call = out->tool_calls.emplace_back();
          call.index = part.tool_index;
          call.id = part.tool_id.empty() ? new_id_() : std::move(part.tool_id);
          call.name = std::move(part.tool_name);
          call.arguments = std::move(part.text);
          break;
        }
        case model::OutputPart::kToolArguments:
          if (one_call_ && part.tool_index > 0) break;
          AppendArguments(part.tool_index, std::move(part.text), out);
          break;
      }
    }
  }

  static void AppendArguments(int32_t index, std::string text, ParsedText* out) {
    if (out->tool_calls.empty() || out->tool_calls.back().index != index) {
      out->tool_calls.emplace_back().index = index;
    }
    out->tool_calls.back().arguments += text;
  }

  model::OutputParser parser_;
  const bool one_call_;
  const std::function<std::string()> new_id_;
};

// What the prompt ends with, where the template wrote it: shows whether the answer begins inside
// reasoning. What users wrote does not count.
std::string_view TemplateTail(const std::vector<model::RenderedSpan>& spans) {
  return spans.empty() || !spans.back().from_template ? std::string_view()
                                                      : std::string_view(spans.back().text);
}

void SetUpParser(const ChatRequest& request, const ServedModel& model, bool offers_tools,
                 std::string_view tail, std::function<std::string()> new_id, RenderedChat* out) {
  model::OutputParserOptions options;
  options.syntax = model::DetectOutputSyntax(model.chat_template->source());
  const model::OutputFormat format = options.syntax.format;
  // These two put everything, plain answers too, between marks of their own.
  const bool marks_all =
      format == model::OutputFormat::kHarmony || format == model::OutputFormat::kCohere;
  if (!offers_tools && !marks_all && options.syntax.think_open.empty()) return;
  options.parse_tool_calls = offers_tools;
  options.starts_in_reasoning = model::EndsInReasoning(options.syntax, tail);
  for (const ToolDefinition& tool : request.tools) options.tool_names.push_back(tool.name);
  for (const std::string_view token : model::ControlTokens(format)) {
    const std::optional<int32_t> id = model.tokenizer->FindToken(token);
    if (id.has_value()) out->keep_token_ids.push_back(*id);
  }
  out->make_parser = [options = std::move(options), one_call = !request.parallel_tool_calls,
                      new_id = std::move(new_id)]() -> std::unique_ptr<OutputParser> {
    return std::make_unique<DialectParser>(options, one_call, new_id);
  };
}

absl::Status CheckTools(const model::ChatTemplate& chat_template) {
  if (!chat_template.supports_tools()) {
    return UnsupportedParam("tools",
                            "this model's chat template does not know tools; leave 'tools' out");
  }
  if (model::DetectOutputSyntax(chat_template.source()).format == model::OutputFormat::kPlain) {
    return UnsupportedParam("tools",
                            "this model's chat template writes tool calls in a form that is not "
                            "supported; leave 'tools' out");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RenderedChat> RenderChat(const ChatRequest& request, const ServedModel& model,
                                        absl::Time now, std::function<std::string()> new_id) {
  const model::ChatTemplate* chat_template = model.chat_template;
  if (chat_template == nullptr) {
    return UnsupportedParam("messages",
                            "this model has no chat template; use /v1/completions with a prompt, "
                            "or start the server with a template");
  }
  const bool offers_tools = !request.tools.empty() && request.tool_choice != ToolChoice::kNone;
  if (offers_tools) RETURN_IF_ERROR(CheckTools(*chat_template));
  RETURN_IF_ERROR(CheckVariables(request));
  const bool knows_developer = chat_template->source().find("developer") != std::string_view::npos;
  model::ChatInput input;
  for (const ChatMessage& message : request.messages) {
    input.messages.push_back(ToTemplate(message, knows_developer));
  }
  if (offers_tools) {
    for (const ToolDefinition& tool : request.tools) input.tools_json.push_back(tool.json);
  }
  input.kwargs_json = request.template_variables;
  input.add_generation_prompt = request.add_generation_prompt;
  input.continue_final_message = request.continue_final_message;
  auto rendered = chat_template->Render(input, now);
  if (!rendered.ok()) return WithParam(rendered.status(), "messages");

  // Only the template's own text may hold special tokens: what a user wrote stays text.
  std::vector<model::TextSpan> spans;
  spans.reserve(rendered->size());
  for (const model::RenderedSpan& span : *rendered) {
    spans.push_back({span.text, span.from_template});
  }
  auto ids = model.tokenizer->Encode(spans, {.add_special = false});
  if (!ids.ok()) return InvalidParam("messages", ToStd(ids.status().message()));
  RenderedChat out;
  out.ids = *std::move(ids);
  SetUpParser(request, model, offers_tools, TemplateTail(*rendered), std::move(new_id), &out);
  return out;
}

}  // namespace longstride::frontend

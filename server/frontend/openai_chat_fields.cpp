#include <utility>

#include "server/frontend/error_mapping.h"
#include "server/frontend/openai_fields.h"

namespace longstride::frontend {
namespace {

using nlohmann::json;

constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};

// `content`: text, null, or a list of text parts.
absl::Status ReadContent(JsonFields* fields, ChatMessage* out) {
  const json* content = fields->Find("content");
  if (content == nullptr) return absl::OkStatus();
  if (content->is_string()) {
    out->content = content->get_ref<const std::string&>();
    return absl::OkStatus();
  }
  const std::string param = fields->Path("content");
  if (!content->is_array()) {
    return InvalidParam(param, StrCat("'", param, "' must be a string or a list of parts, got ",
                                      JsonTypeName(*content)));
  }
  for (std::size_t i = 0; i < content->size(); ++i) {
    const json& part = (*content)[i];
    const std::string place = StrCat(param, "[", i, "]");
    const auto type = part.is_object() ? part.find("type") : part.end();
    if (!part.is_object() || type == part.end() || !type->is_string()) {
      return InvalidParam(place, StrCat("'", place, "' must be an object with a 'type'"));
    }
    if (*type != "text") {
      return UnsupportedParam(place, StrCat("'", place, "' is not text; only parts of type 'text' ",
                                            "are supported by this model"));
    }
    const auto text = part.find("text");
    if (text == part.end() || !text->is_string()) {
      return InvalidParam(place, StrCat("'", place, ".text' must be a string"));
    }
    out->content += text->get_ref<const std::string&>();
  }
  return absl::OkStatus();
}

absl::Status ReadToolCalls(JsonFields* fields, ChatMessage* out) {
  const json* calls = fields->Find("tool_calls");
  if (calls == nullptr) return absl::OkStatus();
  const std::string param = fields->Path("tool_calls");
  if (!calls->is_array()) return InvalidParam(param, StrCat("'", param, "' must be a list"));
  for (std::size_t i = 0; i < calls->size(); ++i) {
    const json& call = (*calls)[i];
    const std::string place = StrCat(param, "[", i, "]");
    const auto function = call.is_object() ? call.find("function") : call.end();
    if (!call.is_object() || function == call.end() || !function->is_object()) {
      return InvalidParam(place, StrCat("'", place, "' must be an object with a 'function'"));
    }
    ToolCall tool;
    JsonFields outer(call, place);
    RETURN_IF_ERROR(outer.String("id", &tool.id));
    JsonFields inner(*function, StrCat(place, ".function"));
    RETURN_IF_ERROR(inner.String("name", &tool.name));
    const json* arguments = inner.Find("arguments");
    if (arguments != nullptr && arguments->is_object()) {
      tool.arguments = arguments->dump(-1, ' ', false, json::error_handler_t::replace);
    } else {
      RETURN_IF_ERROR(inner.String("arguments", &tool.arguments));
      // Templates render the arguments as a mapping: what is no JSON object cannot be rendered.
      if (tool.arguments.empty()) tool.arguments = "{}";
      const auto parsed = ParseJson(tool.arguments);
      if (!parsed.ok() || !parsed->is_object()) {
        return InvalidParam(inner.Path("arguments"), StrCat("'", inner.Path("arguments"),
                                                            "' must be the text of a JSON object"));
      }
    }
    if (tool.name.empty()) {
      return InvalidParam(inner.Path("name"), StrCat("'", inner.Path("name"), "' is missing"));
    }
    out->tool_calls.push_back(std::move(tool));
  }
  return absl::OkStatus();
}

absl::Status ReadMessage(const json& value, const std::string& place, ChatMessage* out) {
  if (!value.is_object()) {
    return InvalidParam(place,
                        StrCat("'", place, "' must be an object, got ", JsonTypeName(value)));
  }
  JsonFields fields(value, place);
  RETURN_IF_ERROR(fields.String("role", &out->role));
  bool known = false;
  for (const std::string_view role : kRoles) known = known || out->role == role;
  if (!known) {
    return InvalidParam(fields.Path("role"),
                        StrCat("'", fields.Path("role"),
                               "' must be one of system, developer, user, assistant, tool"));
  }
  RETURN_IF_ERROR(ReadContent(&fields, out));
  RETURN_IF_ERROR(fields.String("name", &out->name));
  RETURN_IF_ERROR(fields.String("reasoning", &out->reasoning));
  RETURN_IF_ERROR(fields.String("reasoning_content", &out->reasoning));
  RETURN_IF_ERROR(fields.String("tool_call_id", &out->tool_call_id));
  RETURN_IF_ERROR(ReadToolCalls(&fields, out));
  if (const json* audio = fields.Find("audio"); audio != nullptr) {
    return UnsupportedParam(fields.Path("audio"), "audio is not supported by this model");
  }
  return absl::OkStatus();
}

absl::Status ReadTools(JsonFields* fields, std::vector<ToolDefinition>* out) {
  const json* tools = fields->Find("tools");
  if (tools == nullptr) return absl::OkStatus();
  if (!tools->is_array()) return InvalidParam("tools", "'tools' must be a list");
  for (std::size_t i = 0; i < tools->size(); ++i) {
    const json& tool = (*tools)[i];
    const std::string place = StrCat("tools[", i, "]");
    if (!tool.is_object()) return InvalidParam(place, StrCat("'", place, "' must be an object"));
    const auto type = tool.find("type");
    if (type == tool.end() || *type != "function") {
      return UnsupportedParam(StrCat(place, ".type"),
                              StrCat("'", place, ".type' must be 'function'"));
    }
    const auto function = tool.find("function");
    if (function == tool.end() || !function->is_object()) {
      return InvalidParam(StrCat(place, ".function"),
                          StrCat("'", place, ".function' must be an object"));
    }
    ToolDefinition definition;
    JsonFields inner(*function, StrCat(place, ".function"));
    RETURN_IF_ERROR(inner.String("name", &definition.name));
    RETURN_IF_ERROR(inner.String("description", &definition.description));
    const json* parameters = inner.Find("parameters");
    if (parameters != nullptr && !parameters->is_object()) {
      return InvalidParam(inner.Path("parameters"),
                          StrCat("'", inner.Path("parameters"), "' must be a JSON Schema object"));
    }
    definition.json = tool.dump(-1, ' ', false, json::error_handler_t::replace);
    out->push_back(std::move(definition));
  }
  return absl::OkStatus();
}

absl::Status ReadToolChoice(JsonFields* fields, ChatRequest* out) {
  const json* choice = fields->Find("tool_choice");
  if (choice == nullptr) return absl::OkStatus();
  if (*choice == "none") {
    out->tool_choice = ToolChoice::kNone;
    return absl::OkStatus();
  }
  if (*choice == "auto") return absl::OkStatus();
  if (*choice == "required" || choice->is_object()) {
    return UnsupportedParam("tool_choice",
                            "'tool_choice' may be 'auto' or 'none': forcing a call needs "
                            "constrained output, which is not supported");
  }
  return InvalidParam("tool_choice", "'tool_choice' must be 'auto' or 'none'");
}

}  // namespace

absl::Status ReadChatFields(JsonFields* fields, ChatRequest* out) {
  const json* messages = fields->Find("messages");
  if (messages == nullptr || !messages->is_array()) {
    return InvalidParam("messages", "'messages' must be a list of messages");
  }
  out->messages.resize(messages->size());
  for (std::size_t i = 0; i < messages->size(); ++i) {
    RETURN_IF_ERROR(ReadMessage((*messages)[i], StrCat("messages[", i, "]"), &out->messages[i]));
  }
  RETURN_IF_ERROR(ReadTools(fields, &out->tools));
  RETURN_IF_ERROR(ReadToolChoice(fields, out));
  RETURN_IF_ERROR(fields->Bool("parallel_tool_calls", &out->parallel_tool_calls));
  RETURN_IF_ERROR(fields->Bool("add_generation_prompt", &out->add_generation_prompt));
  RETURN_IF_ERROR(fields->Bool("continue_final_message", &out->continue_final_message));
  if (const json* given = fields->Find("chat_template_kwargs"); given != nullptr) {
    if (!given->is_object()) {
      return InvalidParam("chat_template_kwargs", "'chat_template_kwargs' must be an object");
    }
    for (const auto& [name, value] : given->items()) {
      out->template_variables[name] = value.dump(-1, ' ', false, json::error_handler_t::replace);
    }
  }
  if (const json* effort = fields->Find("reasoning_effort"); effort != nullptr) {
    if (!effort->is_string()) {
      return InvalidParam("reasoning_effort", "'reasoning_effort' must be a string");
    }
    out->template_variables["reasoning_effort"] = effort->dump();
  }
  return absl::OkStatus();
}

}  // namespace longstride::frontend

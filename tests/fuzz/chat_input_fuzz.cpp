// Conversations of clients through the families' templates. The input chooses a template and options,
// then come the texts of a message, a tool, a tool call's arguments and a template variable.
#include "config/base/check.h"
#include "config/base/strings.h"
#include "model/text/chat_template.h"
#include "model/text/unicode.h"
#include "tests/fuzz/fuzz_target.h"

namespace longstride::fuzz {
namespace {

constexpr std::string_view kTemplates[] = {"cohere2", "gemma3", "gpt_oss", "llama3", "llama4",
                                           "mistral", "olmo2",  "phi3",    "qwen2",  "qwen3"};

const model::ChatTemplate& Template(size_t index) {
  static const auto& templates = *[] {
    auto* parsed = new std::vector<std::unique_ptr<model::ChatTemplate>>;
    for (const std::string_view name : kTemplates) {
      auto chat = model::ChatTemplate::Parse(
          ReadFile(StrCat("tests/parity/text/data/templates/", name, ".jinja")), "<s>", "</s>");
      LS_CHECK(chat.ok());
      parsed->push_back(*std::move(chat));
    }
    return parsed;
  }();
  return *templates[index % templates.size()];
}

}  // namespace

void RunInput(std::string_view input) {
  InputParts parts(input);
  const model::ChatTemplate& chat = Template(parts.Byte());
  const uint8_t flags = parts.Byte();
  model::ChatInput conversation;
  model::ChatMessage first;
  first.role = parts.Text();
  if (flags & 1) {
    first.text_parts = {std::string(parts.Text()), "and more"};
  } else {
    first.content = parts.Text();
  }
  first.reasoning = parts.Text();
  conversation.messages = {first};
  const std::string tool(parts.Text());
  if (flags & 2) conversation.tools_json = {tool};
  model::ChatMessage call;
  call.role = "assistant";
  call.tool_calls = {{"abcdefghi", "f", std::string(parts.Text())}};
  model::ChatMessage answer;
  answer.role = "tool";
  answer.tool_call_id = "abcdefghi";
  answer.name = "f";
  answer.content = parts.Text();
  if (flags & 4) conversation.messages.insert(conversation.messages.end(), {call, answer});
  if (flags & 8) conversation.messages.push_back(first);
  const std::string name(parts.Text());
  if (!name.empty()) conversation.kwargs_json[name] = parts.Text();
  conversation.continue_final_message = flags & 16;
  conversation.add_generation_prompt = !(flags & 16);

  const auto spans = chat.Render(conversation, absl::UnixEpoch());
  if (!spans.ok()) return;
  for (const model::RenderedSpan& span : *spans) {
    LS_CHECK_EQ(model::FirstInvalidUtf8(span.text), std::string_view::npos);
  }
}

std::vector<std::string> Seeds() {
  const std::string tool =
      R"({"type": "function", "function": {"name": "f", "description": "d", "parameters":)"
      R"( {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}}})";
  std::vector<std::string> seeds;
  for (size_t i = 0; i < std::size(kTemplates); ++i) {
    for (const int flags : {0, 6, 9, 16}) {
      seeds.push_back(std::string{static_cast<char>(i), static_cast<char>(flags)} +
                      JoinTexts({"user", "Hé <|im_end|> </s>", "I think", tool, R"({"a": [1.5]})",
                                 "2", "enable_thinking", "false"}));
    }
  }
  return seeds;
}

}  // namespace longstride::fuzz

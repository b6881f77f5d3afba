// Chat templates of checkpoints. The input is a template and, behind a NUL, one more variable as JSON.
#include "config/base/check.h"
#include "config/base/strings.h"
#include "model/text/jinja/evaluator.h"
#include "model/text/jinja/json_value.h"
#include "model/text/jinja/parser.h"
#include "model/text/unicode.h"
#include "tests/fuzz/fuzz_target.h"

namespace longstride::fuzz {
namespace {

using namespace model::jinja;

// Small, so that what costs much more than its budget says shows as a time-out.
constexpr RenderLimits kLimits = {.max_steps = 20'000, .max_text_bytes = 1 << 16, .max_range = 1000};

constexpr std::string_view kMessages =
    R"([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi é"},)"
    R"( {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefghi", "type": "function",)"
    R"( "function": {"name": "f", "arguments": {"a": [1, 2.5, null]}}}]},)"
    R"( {"role": "tool", "tool_call_id": "abcdefghi", "name": "f", "content": "2"}])";
constexpr std::string_view kTools =
    R"([{"type": "function", "function": {"name": "f", "description": "d", "parameters":)"
    R"( {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}}}])";

}  // namespace

void RunInput(std::string_view input) {
  InputParts parts(input);
  const auto body = Parse(parts.Text());
  if (!body.ok()) return;
  std::vector<std::pair<std::string, Value>> variables;
  const auto set = [&variables](std::string_view name, std::string_view json) {
    auto value = ParseJson(json, Origin::kInput, name);
    if (value.ok()) variables.emplace_back(name, *std::move(value));
  };
  set("messages", kMessages);
  set("tools", kTools);
  set("x", parts.rest());
  variables.emplace_back("bos_token", Value::FromTemplate("<s>"));
  variables.emplace_back("add_generation_prompt", Value(true));
  Evaluator evaluator(kLimits, absl::UnixEpoch());
  const auto text = evaluator.Render(*body, std::move(variables));
  if (!text.ok()) return;
  LS_CHECK_LE(text->size(), kLimits.max_text_bytes);
  size_t size = 0;
  for (const Text::Span& span : text->Spans()) size += span.bytes.size();
  LS_CHECK_EQ(size, text->size());
}

std::vector<std::string> Seeds() {
  std::vector<std::string> seeds;
  for (const char* name : {"cohere2", "gemma3", "gpt_oss", "llama3", "llama4", "mistral", "olmo2",
                           "phi3", "qwen2", "qwen3"}) {
    seeds.push_back(ReadFile(StrCat("tests/parity/text/data/templates/", name, ".jinja")));
  }
  // One template a line; the sign stands for a line end.
  constexpr std::string_view kLineEnd = "⏎";
  std::string line;
  for (const char c : ReadFile("tests/parity/text/data/templates/expressions.txt")) {
    if (c != '\n') {
      line += c;
      continue;
    }
    for (size_t at; (at = line.find(kLineEnd)) != std::string::npos;) {
      line.replace(at, kLineEnd.size(), 1, '\n');
    }
    seeds.push_back(JoinTexts({line, R"({"y": [1, "a", {"z": null}]})"}));
    line.clear();
  }
  return seeds;
}

}  // namespace longstride::fuzz

// Bodies of the OpenAI-compatible API: JSON within limits, and the readers of every endpoint.
#include "config/base/check.h"
#include "server/frontend/json_limits.h"
#include "server/frontend/openai_request.h"
#include "server/frontend/utf8.h"
#include "server/frontend/validation.h"
#include "tests/fuzz/fuzz_target.h"

namespace longstride::fuzz {
namespace {

int32_t Depth(const nlohmann::json& value) {
  if (!value.is_structured()) return 0;
  int32_t depth = 0;
  for (const auto& item : value) depth = std::max(depth, Depth(item));
  return depth + 1;
}

// Messages go to the client: they must be UTF-8 whatever was sent.
void CheckRefusal(const absl::Status& status) {
  if (status.ok()) return;
  LS_CHECK(!status.message().empty());
  LS_CHECK(frontend::IsValidUtf8(std::string(status.message())));
}

}  // namespace

void RunInput(std::string_view input) {
  const frontend::JsonLimits limits = {.max_depth = 5, .max_values = 50, .max_members = 20};
  const auto json = frontend::ParseJson(input, limits);
  if (json.ok()) LS_CHECK_LE(Depth(*json), limits.max_depth);
  CheckRefusal(json.status());
  CheckRefusal(frontend::ParseCompletion(input).status());
  CheckRefusal(frontend::ParseEmbedding(input).status());
  CheckRefusal(frontend::ParseClassification(input).status());
  CheckRefusal(frontend::ParseTokenize(input).status());
  CheckRefusal(frontend::ParseDetokenize(input).status());
  const auto chat = frontend::ParseChat(input);
  CheckRefusal(chat.status());
  if (chat.ok()) CheckRefusal(frontend::ValidateChat(chat->request, {}));
}

std::vector<std::string> Seeds() {
  return {
      R"({"model": "m", "prompt": ["a", "b"], "max_tokens": 5, "temperature": 0.5, "top_p": 1,)"
      R"( "n": 2, "stop": ["\n", "x"], "logit_bias": {"5": -100, "7": 1.5}, "logprobs": 3,)"
      R"( "echo": true, "stream": true, "stream_options": {"include_usage": true}, "seed": 7,)"
      R"( "stop_token_ids": [1, 2], "min_p": 0.1, "priority": -1, "cache_salt": "s"})",
      R"({"prompt": [[1, 2, 3], [4]], "top_k": 40, "timeout": 1e2, "ignore_eos": true})",
      R"({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content":)"
      R"( [{"type": "text", "text": "Hi \u00e9\ud83d\ude00"}]}, {"role": "assistant", "content": null,)"
      R"( "reasoning_content": "r", "tool_calls": [{"id": "c1", "type": "function", "function":)"
      R"( {"name": "f", "arguments": "{\"a\": 1}"}}]}, {"role": "tool", "tool_call_id": "c1",)"
      R"( "content": "2"}], "tools": [{"type": "function", "function": {"name": "f",)"
      R"( "description": "d", "parameters": {"type": "object", "properties": {}}}}],)"
      R"( "tool_choice": "auto", "logprobs": true, "top_logprobs": 2, "max_completion_tokens": 9,)"
      R"( "chat_template_kwargs": {"enable_thinking": false}, "response_format": {"type": "text"}})",
      R"({"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8, "normalize": false})",
      R"({"content": "text", "add_special": true, "with_pieces": true})",
      R"({"tokens": [1, 2, 3], "skip_special_tokens": true})",
      R"([[[[[[1]]]]], -0.0, 1e400, 18446744073709551616, "\ud800", {"a": 1, "a": 2}])",
  };
}

}  // namespace longstride::fuzz

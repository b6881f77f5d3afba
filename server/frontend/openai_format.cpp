#include "server/frontend/openai_format.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "config/base/strings.h"
#include "server/frontend/utf8.h"

namespace longstride::frontend {
namespace {

constexpr float kLeastLogprob = -9999.0f;

float Clamp(float logprob) {
  return std::isnan(logprob) ? kLeastLogprob : std::max(logprob, kLeastLogprob);
}

int64_t Characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

double PerSecond(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

}  // namespace

std::string_view FinishName(FinishKind finish) {
  switch (finish) {
    case FinishKind::kStop:
      return "stop";
    case FinishKind::kLength:
      return "length";
    case FinishKind::kToolCalls:
      return "tool_calls";
  }
  return "stop";
}

void WriteUsage(const engine::RequestUsage& usage, JsonWriter* json) {
  json->BeginObject();
  json->Field("prompt_tokens", usage.prompt_tokens);
  json->Field("completion_tokens", usage.generated_tokens);
  json->Field("total_tokens", usage.prompt_tokens + usage.generated_tokens);
  json->Key("prompt_tokens_details");
  json->BeginObject();
  json->Field("cached_tokens", usage.cached_tokens);
  json->EndObject();
  json->Key("sparse_details");
  json->BeginObject();
  json->Field("kv_tokens_total", usage.kv_tokens_total);
  json->Field("kv_tokens_attended", usage.kv_tokens_attended);
  json->Field("kv_bytes_peak", usage.kv_bytes_peak);
  json->EndObject();
  json->EndObject();
}

void WriteTimings(const engine::RequestUsage& usage, JsonWriter* json) {
  const int64_t computed = usage.prompt_tokens - usage.cached_tokens;
  json->BeginObject();
  json->Field("queue_ms", usage.queue_seconds * 1e3);
  json->Field("cache_n", usage.cached_tokens);
  json->Field("prompt_n", computed);
  json->Field("prompt_ms", usage.prefill_seconds * 1e3);
  json->Field("prompt_per_second", PerSecond(computed, usage.prefill_seconds));
  json->Field("predicted_n", usage.generated_tokens);
  json->Field("predicted_ms", usage.decode_seconds * 1e3);
  json->Field("predicted_per_second", PerSecond(usage.generated_tokens, usage.decode_seconds));
  json->Field("preemptions", usage.preemptions);
  json->EndObject();
}

void WriteStopReason(const GenerationEvent& event, JsonWriter* json) {
  json->Key("stop_reason");
  if (!event.stop_string.empty()) {
    json->String(event.stop_string);
  } else if (event.stop_token.has_value()) {
    json->Int(*event.stop_token);
  } else {
    json->Null();
  }
}

void WriteToolCallDelta(const ToolCallDelta& call, bool streamed, JsonWriter* json) {
  json->BeginObject();
  if (streamed) json->Field("index", call.index);
  if (!call.id.empty()) {
    json->Field("id", call.id);
    json->Field("type", "function");
  }
  json->Key("function");
  json->BeginObject();
  if (!call.name.empty()) json->Field("name", call.name);
  json->Field("arguments", call.arguments);
  json->EndObject();
  json->EndObject();
}

void WriteIds(const std::vector<int32_t>& ids, JsonWriter* json) {
  json->BeginArray();
  for (const int32_t id : ids) json->Int(id);
  json->EndArray();
}

std::string_view LogprobWriter::Bytes(int32_t token) const {
  const auto bytes = tokenizer_.TokenBytes(token);
  return bytes.ok() ? *bytes : std::string_view();
}

std::string LogprobWriter::Spell(int32_t token) const {
  if (tokens_as_ids_) return StrCat("token_id:", token);
  const std::string_view bytes = Bytes(token);
  if (IsValidUtf8(bytes)) return std::string(bytes);
  std::string spelled = "bytes:";
  for (const char c : bytes) {
    StrAppend(&spelled, "\\x", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
  }
  return spelled;
}

void LogprobWriter::WriteChat(const std::vector<engine::TokenOutput>& tokens,
                              JsonWriter* json) const {
  const auto entry = [&](int32_t token, float logprob) {
    json->Field("token", Spell(token));
    json->Key("logprob");
    json->Float(Clamp(logprob));
    json->Key("bytes");
    json->BeginArray();
    for (const char c : Bytes(token)) json->Int(static_cast<unsigned char>(c));
    json->EndArray();
  };
  json->BeginObject();
  json->Key("content");
  json->BeginArray();
  for (const engine::TokenOutput& token : tokens) {
    json->BeginObject();
    entry(token.token, token.logprob);
    json->Key("top_logprobs");
    json->BeginArray();
    for (const model::TokenLogprob& top : token.top) {
      json->BeginObject();
      entry(top.token, top.logprob);
      json->EndObject();
    }
    json->EndArray();
    json->EndObject();
  }
  json->EndArray();
  json->Key("refusal");
  json->Null();
  json->EndObject();
}

void LogprobWriter::WriteCompletion(const std::vector<engine::TokenOutput>& tokens,
                                    std::size_t without, int64_t* offset, JsonWriter* json) const {
  json->BeginObject();
  json->Key("tokens");
  json->BeginArray();
  for (const auto& token : tokens) json->String(Spell(token.token));
  json->EndArray();
  json->Key("token_logprobs");
  json->BeginArray();
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    i < without ? json->Null() : json->Float(Clamp(tokens[i].logprob));
  }
  json->EndArray();
  json->Key("top_logprobs");
  json->BeginArray();
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i < without) {
      json->Null();
      continue;
    }
    // Two tokens may spell the same text; the better one keeps the key. The sampled one is always
    // in.
    std::set<std::string> written;
    json->BeginObject();
    const auto add = [&](int32_t token, float logprob) {
      const std::string spelled = Spell(token);
      if (!written.insert(spelled).second) return;
      json->Key(spelled);
      json->Float(Clamp(logprob));
    };
    bool sampled_in = false;
    for (const auto& top : tokens[i].top) {
      add(top.token, top.logprob);
      sampled_in = sampled_in || top.token == tokens[i].token;
    }
    if (!sampled_in) add(tokens[i].token, tokens[i].logprob);
    json->EndObject();
  }
  json->EndArray();
  json->Key("text_offset");
  json->BeginArray();
  for (const auto& token : tokens) {
    json->Int(*offset);
    *offset += Characters(token.text);
  }
  json->EndArray();
  json->EndObject();
}

void LogprobWriter::WritePrompt(const std::vector<engine::TokenOutput>& tokens,
                                JsonWriter* json) const {
  json->BeginArray();
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i == 0) {
      json->Null();
      continue;
    }
    json->BeginObject();
    const auto add = [&](int32_t token, float logprob, int32_t rank) {
      json->Key(StrCat(token));
      json->BeginObject();
      json->Key("logprob");
      json->Float(Clamp(logprob));
      json->Key("rank");
      rank > 0 ? json->Int(rank) : json->Null();
      json->Field("decoded_token", Bytes(token));
      json->EndObject();
    };
    bool own = false;
    int32_t rank = 0;
    for (const auto& top : tokens[i].top) {
      add(top.token, top.logprob, ++rank);
      own = own || top.token == tokens[i].token;
    }
    if (!own) add(tokens[i].token, tokens[i].logprob, 0);
    json->EndObject();
  }
  json->EndArray();
}

void WriteHeader(const GenerationInfo& info, std::string_view object, JsonWriter* json) {
  json->Field("id", info.id);
  json->Field("object", object);
  json->Field("created", absl::ToUnixSeconds(info.created));
  json->Field("model", info.model->name);
  json->Field("system_fingerprint", info.model->Fingerprint());
}

}  // namespace longstride::frontend

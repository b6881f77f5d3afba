// Native events to the JSON of the OpenAI-compatible API.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/frontend/generation.h"
#include "server/frontend/json_writer.h"
#include "server/frontend/openai_request.h"

namespace longstride::frontend {

enum class ApiKind { kCompletion, kChat };

std::string_view FinishName(FinishKind finish);

// {"prompt_tokens":…,"completion_tokens":…,…,"sparse_details":{…}}
void WriteUsage(const engine::RequestUsage& usage, JsonWriter* json);
// Durations and rates of one request (llama.cpp's names, and the queue).
void WriteTimings(const engine::RequestUsage& usage, JsonWriter* json);
// "stop_reason": the stop string or token id that matched, else null.
void WriteStopReason(const GenerationEvent& event, JsonWriter* json);
void WriteToolCallDelta(const ToolCallDelta& call, bool streamed, JsonWriter* json);
void WriteIds(const std::vector<int32_t>& ids, JsonWriter* json);

// Log-probabilities of -infinity, which JSON lacks, are written as -9999.
class LogprobWriter {
 public:
  LogprobWriter(const model::Tokenizer& tokenizer, bool tokens_as_ids)
      : tokenizer_(tokenizer), tokens_as_ids_(tokens_as_ids) {}

  // Chat: {"content":[{"token","logprob","bytes","top_logprobs":[…]}],"refusal":null}
  void WriteChat(const std::vector<engine::TokenOutput>& tokens, JsonWriter* json) const;
  // Completions: {"tokens","token_logprobs","top_logprobs","text_offset"}. `offset` counts the
  // characters of the choice's text so far. The first `without` tokens have no log-probability (the
  // first of a prompt).
  void WriteCompletion(const std::vector<engine::TokenOutput>& tokens, std::size_t without,
                       int64_t* offset, JsonWriter* json) const;
  // vLLM's `prompt_logprobs`: null for the first, then {"id":{"logprob","rank","decoded_token"}}.
  void WritePrompt(const std::vector<engine::TokenOutput>& tokens, JsonWriter* json) const;

 private:
  std::string_view Bytes(int32_t token) const;
  // As text; what is no whole character as OpenAI writes it: "bytes:\xe2\x80".
  std::string Spell(int32_t token) const;

  const model::Tokenizer& tokenizer_;
  const bool tokens_as_ids_;
};

// What stays the same in all chunks or the whole answer: id, object, created, model, fingerprint.
void WriteHeader(const GenerationInfo& info, std::string_view object, JsonWriter* json);

}  // namespace longstride::frontend

// JSON bodies of the OpenAI-compatible API (and the tokenizer endpoints) to native requests. Types
// and shapes are checked here; ranges are the validator's.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "server/frontend/api_types.h"

namespace longstride::frontend {

// How the answer is to look; nothing the engine needs to know.
struct AnswerOptions {
  bool stream = false;
  bool include_usage = false;     // stream_options.include_usage
  bool continuous_usage = false;  // stream_options.continuous_usage_stats
  bool progress = false;          // return_progress: chunks while the prompt is processed
  bool timings = false;
  bool return_token_ids = false;
  bool tokens_as_ids = false;  // "token_id:123" instead of the token's text in logprobs
  bool logprobs = false;
  bool echo = false;
  bool prompt_logprobs = false;  // asked for by that name
  std::vector<std::string> ignored_fields;
};

struct CompletionCall {
  CompletionRequest request;
  AnswerOptions answer;
};

struct ChatCall {
  ChatRequest request;
  AnswerOptions answer;
};

struct EmbeddingCall {
  EmbedRequest request;
  bool base64 = false;
  std::vector<std::string> ignored_fields;
};

struct ClassificationCall {
  ClassifyRequest request;
  std::vector<std::string> ignored_fields;
};

struct TokenizeCall {
  bool is_chat = false;
  TokenizeRequest text;
  ChatRequest chat;
  bool llama_cpp = false;  // the body had `content`: answer in that server's form
  bool with_pieces = false;
  std::vector<std::string> ignored_fields;
};

// INVALID_ARGUMENT (malformed, with param) or UNIMPLEMENTED (a known field that is not supported).
absl::StatusOr<CompletionCall> ParseCompletion(std::string_view body);
absl::StatusOr<ChatCall> ParseChat(std::string_view body);
absl::StatusOr<EmbeddingCall> ParseEmbedding(std::string_view body);
absl::StatusOr<ClassificationCall> ParseClassification(std::string_view body);
absl::StatusOr<TokenizeCall> ParseTokenize(std::string_view body);
absl::StatusOr<DetokenizeRequest> ParseDetokenize(std::string_view body);

}  // namespace longstride::frontend

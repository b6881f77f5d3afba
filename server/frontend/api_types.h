// Requests as both transports hand them to InferenceService: native types, not yet validated. An
// absent optional means the model's default.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace longstride::frontend {

// Who calls, from the transport.
struct CallContext {
  std::string request_id;              // for logs and the x-request-id header
  std::string client;                  // fairness key
  bool authenticated = false;          // `client` is the name of an API key
  std::optional<absl::Time> deadline;  // of the transport (gRPC)
};

struct GenerationFields {
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> typical_p;
  std::optional<double> repetition_penalty;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::optional<int64_t> top_k;
  std::optional<int64_t> seed;
  std::vector<std::pair<int64_t, double>> logit_bias;
  std::vector<int64_t> allowed_token_ids;
  std::vector<int64_t> banned_token_ids;

  std::optional<int64_t> max_tokens;
  std::optional<int64_t> min_tokens;
  std::optional<int64_t> n;
  std::vector<std::string> stop;
  std::vector<int64_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_in_output = false;
  bool skip_special_tokens = true;

  std::optional<int64_t> logprobs;  // how many of the best, 0: the sampled token's alone
  std::optional<int64_t> prompt_logprobs;
  std::optional<int64_t> priority;  // lower first
  std::string cache_salt;
  std::optional<double> timeout_seconds;
  bool use_prefix_cache = true;
  bool progress = false;  // progress events while the prompt is processed
};

struct PromptInput {
  std::string text;
  std::vector<int64_t> ids;  // used where is_ids
  bool is_ids = false;
};

struct CompletionRequest {
  std::string model;  // "" : the served one
  std::vector<PromptInput> prompts;
  bool add_special_tokens = true;     // around text prompts
  bool parse_special_tokens = false;  // recognise control tokens in text prompts
  bool echo = false;                  // the answer begins with the prompt
  GenerationFields fields;
};

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // a JSON object as text
};

struct ChatMessage {
  std::string role;
  std::string content;
  std::string name;
  std::string reasoning;
  std::string tool_call_id;
  std::vector<ToolCall> tool_calls;
};

struct ToolDefinition {
  std::string name;
  std::string description;
  std::string json;  // the whole definition as the client sent it, for the template
};

enum class ToolChoice { kAuto, kNone };

struct ChatRequest {
  std::string model;
  std::vector<ChatMessage> messages;
  std::vector<ToolDefinition> tools;
  ToolChoice tool_choice = ToolChoice::kAuto;
  bool parallel_tool_calls = true;
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  std::map<std::string, std::string> template_variables;  // further ones; values as JSON text
  GenerationFields fields;
};

struct EmbedRequest {
  std::string model;
  std::vector<PromptInput> inputs;
  bool add_special_tokens = true;
  bool normalize = true;
  std::optional<int64_t> dimensions;
  std::optional<int64_t> priority;
  std::optional<double> timeout_seconds;
  std::string cache_salt;
};

struct ClassifyRequest {
  std::string model;
  std::vector<PromptInput> inputs;
  bool add_special_tokens = true;
  std::optional<int64_t> priority;
  std::optional<double> timeout_seconds;
};

struct TokenizeRequest {
  std::string model;
  std::string text;
  bool add_special_tokens = true;
  bool parse_special_tokens = false;
  bool with_pieces = false;
};

struct TokenPiece {
  int32_t id = 0;
  std::string bytes;
};

struct TokenizeResult {
  std::vector<int32_t> ids;
  std::vector<TokenPiece> pieces;  // where asked for
  int32_t max_context = 0;
};

struct DetokenizeRequest {
  std::string model;
  std::vector<int64_t> ids;
  bool skip_special_tokens = false;
};

}  // namespace longstride::frontend

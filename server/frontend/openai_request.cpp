#include "server/frontend/openai_request.h"

#include <utility>

#include "server/frontend/error_mapping.h"
#include "server/frontend/openai_fields.h"

namespace longstride::frontend {

using nlohmann::json;

absl::StatusOr<CompletionCall> ParseCompletion(std::string_view body) {
  ASSIGN_OR_RETURN(const json parsed, ParseBody(body));
  JsonFields fields(parsed, "");
  CompletionCall call;
  RETURN_IF_ERROR(RefuseUnsupported(&fields, false));
  RETURN_IF_ERROR(fields.String("model", &call.request.model));
  RETURN_IF_ERROR(ReadPrompts(&fields, "prompt", &call.request.prompts));
  RETURN_IF_ERROR(ReadGenerationFields(&fields, &call.request.fields, &call.answer));
  RETURN_IF_ERROR(fields.Int("logprobs", &call.request.fields.logprobs));
  RETURN_IF_ERROR(fields.Bool("echo", &call.request.echo));
  RETURN_IF_ERROR(fields.Bool("add_special_tokens", &call.request.add_special_tokens));
  RETURN_IF_ERROR(fields.Bool("parse_special_tokens", &call.request.parse_special_tokens));
  call.answer.echo = call.request.echo;
  call.answer.logprobs = call.request.fields.logprobs.has_value();
  // An echoed prompt carries its own log-probabilities: what evaluation harnesses ask for.
  if (call.answer.echo && call.answer.logprobs &&
      !call.request.fields.prompt_logprobs.has_value()) {
    call.request.fields.prompt_logprobs = call.request.fields.logprobs;
  }
  call.answer.ignored_fields = fields.Ignored();
  return call;
}

absl::StatusOr<ChatCall> ParseChat(std::string_view body) {
  ASSIGN_OR_RETURN(const json parsed, ParseBody(body));
  JsonFields fields(parsed, "");
  ChatCall call;
  RETURN_IF_ERROR(RefuseUnsupported(&fields, true));
  RETURN_IF_ERROR(fields.String("model", &call.request.model));
  RETURN_IF_ERROR(ReadChatFields(&fields, &call.request));
  GenerationFields& generation = call.request.fields;
  RETURN_IF_ERROR(ReadGenerationFields(&fields, &generation, &call.answer));
  std::optional<int64_t> max_completion_tokens;
  RETURN_IF_ERROR(fields.Int("max_completion_tokens", &max_completion_tokens));
  if (max_completion_tokens.has_value()) generation.max_tokens = max_completion_tokens;
  std::optional<int64_t> top_logprobs;
  RETURN_IF_ERROR(fields.Bool("logprobs", &call.answer.logprobs));
  RETURN_IF_ERROR(fields.Int("top_logprobs", &top_logprobs));
  if (top_logprobs.has_value() && !call.answer.logprobs) {
    return InvalidParam("top_logprobs", "'top_logprobs' needs 'logprobs' to be true");
  }
  if (call.answer.logprobs) generation.logprobs = top_logprobs.value_or(0);
  if (generation.logprobs.has_value() && (*generation.logprobs < 0 || *generation.logprobs > 20)) {
    return InvalidParam("top_logprobs",
                        StrCat("'top_logprobs' is ", *generation.logprobs, "; allowed is 0 to 20"));
  }
  call.answer.ignored_fields = fields.Ignored();
  return call;
}

absl::StatusOr<EmbeddingCall> ParseEmbedding(std::string_view body) {
  ASSIGN_OR_RETURN(const json parsed, ParseBody(body));
  JsonFields fields(parsed, "");
  EmbeddingCall call;
  EmbedRequest& request = call.request;
  RETURN_IF_ERROR(fields.String("model", &request.model));
  RETURN_IF_ERROR(ReadPrompts(&fields, "input", &request.inputs));
  std::string format = "float";
  RETURN_IF_ERROR(fields.String("encoding_format", &format));
  if (format != "float" && format != "base64") {
    return InvalidParam("encoding_format", "'encoding_format' must be 'float' or 'base64'");
  }
  call.base64 = format == "base64";
  RETURN_IF_ERROR(fields.Int("dimensions", &request.dimensions));
  RETURN_IF_ERROR(fields.Bool("add_special_tokens", &request.add_special_tokens));
  RETURN_IF_ERROR(fields.Bool("normalize", &request.normalize));
  RETURN_IF_ERROR(fields.Int("priority", &request.priority));
  RETURN_IF_ERROR(fields.Number("timeout", &request.timeout_seconds));
  RETURN_IF_ERROR(fields.String("cache_salt", &request.cache_salt));
  call.ignored_fields = fields.Ignored();
  return call;
}

absl::StatusOr<ClassificationCall> ParseClassification(std::string_view body) {
  ASSIGN_OR_RETURN(const json parsed, ParseBody(body));
  JsonFields fields(parsed, "");
  ClassificationCall call;
  ClassifyRequest& request = call.request;
  RETURN_IF_ERROR(fields.String("model", &request.model));
  RETURN_IF_ERROR(ReadPrompts(&fields, "input", &request.inputs));
  RETURN_IF_ERROR(fields.Bool("add_special_tokens", &request.add_special_tokens));
  RETURN_IF_ERROR(fields.Int("priority", &request.priority));
  RETURN_IF_ERROR(fields.Number("timeout", &request.timeout_seconds));
  call.ignored_fields = fields.Ignored();
  return call;
}

absl::StatusOr<TokenizeCall> ParseTokenize(std::string_view body) {
  ASSIGN_OR_RETURN(const json parsed, ParseBody(body));
  JsonFields fields(parsed, "");
  TokenizeCall call;
  std::string model;
  RETURN_IF_ERROR(fields.String("model", &model));
  call.text.model = model;
  call.chat.model = model;
  bool with_token_strs = false;
  RETURN_IF_ERROR(fields.Bool("with_pieces", &call.with_pieces));
  RETURN_IF_ERROR(fields.Bool("return_token_strs", &with_token_strs));
  call.with_pieces = call.with_pieces || with_token_strs;
  call.text.with_pieces = call.with_pieces;
  if (fields.Find("messages") != nullptr) {
    call.is_chat = true;
    RETURN_IF_ERROR(ReadChatFields(&fields, &call.chat));
  } else if (fields.Find("content") != nullptr) {
    // llama.cpp's body: special tokens are neither added nor, unless asked for, recognised.
    call.llama_cpp = true;
    call.text.add_special_tokens = false;
    RETURN_IF_ERROR(fields.String("content", &call.text.text));
    RETURN_IF_ERROR(fields.Bool("add_special", &call.text.add_special_tokens));
    RETURN_IF_ERROR(fields.Bool("parse_special", &call.text.parse_special_tokens));
  } else if (fields.Find("prompt") != nullptr) {
    RETURN_IF_ERROR(fields.String("prompt", &call.text.text));
    RETURN_IF_ERROR(fields.Bool("add_special_tokens", &call.text.add_special_tokens));
    RETURN_IF_ERROR(fields.Bool("parse_special_tokens", &call.text.parse_special_tokens));
  } else {
    return InvalidParam("prompt", "send 'prompt', 'messages' or 'content' to be tokenised");
  }
  call.ignored_fields = fields.Ignored();
  return call;
}

absl::StatusOr<DetokenizeRequest> ParseDetokenize(std::string_view body) {
  ASSIGN_OR_RETURN(const json parsed, ParseBody(body));
  JsonFields fields(parsed, "");
  DetokenizeRequest request;
  RETURN_IF_ERROR(fields.String("model", &request.model));
  if (fields.Find("tokens") == nullptr) {
    return InvalidParam("tokens", "'tokens' must be a list of token ids");
  }
  RETURN_IF_ERROR(fields.Ints("tokens", &request.ids));
  RETURN_IF_ERROR(fields.Bool("skip_special_tokens", &request.skip_special_tokens));
  return request;
}

}  // namespace longstride::frontend

// The one validator of both transports: every limit of a request, in one table, and the translation
// to what the engine takes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "server/engine/request.h"
#include "server/frontend/api_types.h"
#include "server/frontend/served_model.h"

namespace longstride::frontend {

struct RequestLimits {
  int64_t max_choices = 8;
  int64_t max_prompts = 128;  // prompts of one completion request
  int64_t max_vector_inputs = 2048;
  int64_t max_stop_strings = 16;
  int64_t max_stop_bytes = 256;  // of each
  int64_t max_logit_bias = 1024;
  int64_t max_token_list = 1024;  // stop, allowed and banned ids
  int64_t max_logprobs = 20;
  int64_t max_prompt_logprobs = 5;
  int64_t max_prompt_logprobs_tokens = 32 << 10;  // of the prompt: memory grows with both
  int64_t max_tools = 128;
  int64_t max_messages = 4096;
  int64_t max_cache_salt_bytes = 1024;
  double max_timeout_seconds = 24 * 3600;
  int64_t default_completion_tokens = 16;  // what OpenAI's API gives when max_tokens is absent
};

// What a request is for, where that changes the rules.
struct ValidationContext {
  const ServedModel* model = nullptr;
  const RequestLimits* limits = nullptr;
  bool chat = false;  // max_tokens defaults to what is left of the context
  bool echo = false;
};

// Everything but the prompt: fills `out` and takes the model's defaults for what is absent. Errors
// are INVALID_ARGUMENT or UNIMPLEMENTED with the parameter's name as param.
absl::Status ValidateFields(const GenerationFields& fields, const ValidationContext& context,
                            engine::GenerationRequest* out);

// The prompt's length against the context, once it is tokenised; sets max_tokens. Call after
// ValidateFields, with out->prompt filled in.
absl::Status ValidateLengths(const GenerationFields& fields, const ValidationContext& context,
                             engine::GenerationRequest* out);

// Token ids of a prompt: in the vocabulary, not empty.
absl::StatusOr<std::vector<int32_t>> ValidatePromptIds(const std::vector<int64_t>& ids,
                                                       const ServedModel& model,
                                                       std::string_view param);

absl::Status ValidateCacheSalt(const std::string& salt, const RequestLimits& limits);
absl::Status ValidateChat(const ChatRequest& request, const RequestLimits& limits);

}  // namespace longstride::frontend

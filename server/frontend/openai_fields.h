// Shared by the parsers of OpenAI bodies; included by .cpp files only.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "server/frontend/api_types.h"
#include "server/frontend/json_limits.h"
#include "server/frontend/openai_request.h"

namespace longstride::frontend {

absl::StatusOr<nlohmann::json> ParseBody(std::string_view body);
// Sampling, limits, stop, streaming and the extensions that completions and chat share.
absl::Status ReadGenerationFields(JsonFields* fields, GenerationFields* out, AnswerOptions* answer);
// Known fields that are not supported: UNIMPLEMENTED by name if one is set to anything that asks
// for something.
absl::Status RefuseUnsupported(JsonFields* fields, bool chat);
// `messages`, `tools`, `tool_choice` and what belongs to them.
absl::Status ReadChatFields(JsonFields* fields, ChatRequest* out);
// A string, a list of strings, a list of ids, or a list of lists of ids.
absl::Status ReadPrompts(JsonFields* fields, std::string_view name, std::vector<PromptInput>* out);

}  // namespace longstride::frontend

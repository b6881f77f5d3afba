// JSON of model facts and tokenizer answers.
#pragma once

#include <string>

#include "server/frontend/api_types.h"
#include "server/frontend/served_model.h"

namespace longstride::frontend {

// {"object":"list","data":[model]}
std::string ModelListJson(const ServedModel& model);
// One entry: OpenAI's keys, max_model_len, and what identifies the function served (digests, plan).
std::string ModelJson(const ServedModel& model);
std::string TokenizeJson(const TokenizeResult& result, bool llama_cpp, bool with_pieces);

}  // namespace longstride::frontend

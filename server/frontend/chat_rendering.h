// From chat messages to token ids by the model's chat template, and back from its output to
// content, reasoning and tool calls in the template's dialect.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "config/base/status.h"
#include "server/frontend/api_types.h"
#include "server/frontend/generation.h"
#include "server/frontend/served_model.h"

namespace longstride::frontend {

struct RenderedChat {
  std::vector<int32_t> ids;
  // Follows the output of one choice; null where the dialect has nothing to tell apart.
  OutputParserFactory make_parser;
  // Special tokens that the parser must see in the text.
  std::vector<int32_t> keep_token_ids;
};

// INVALID_ARGUMENT: the template refuses the messages. UNIMPLEMENTED: the model has no template, or
// tools are asked for that its template does not know. Special tokens in message text are text.
// `new_id` names tool calls that the model leaves unnamed; it must outlive the parsers.
absl::StatusOr<RenderedChat> RenderChat(const ChatRequest& request, const ServedModel& model,
                                        absl::Time now, std::function<std::string()> new_id);

}  // namespace longstride::frontend

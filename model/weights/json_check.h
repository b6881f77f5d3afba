// Limits on untrusted JSON text before a parser builds anything from it.
#pragma once

#include <cstddef>
#include <string_view>

#include "config/base/status.h"

namespace longstride::model {

// INVALID_ARGUMENT where the text is longer than max_bytes or nests deeper than max_depth. Syntax
// is left to the parser. `what` names the text in the message.
absl::Status CheckJsonLimits(std::string_view text, std::string_view what, size_t max_bytes,
                             int max_depth);

}  // namespace longstride::model

// JSON for files that people write: comments are allowed, duplicate keys are errors, size and depth
// are bounded. For code files only: nlohmann::json stays out of the headers of other folders.
#pragma once

#include <cstdint>
#include <string_view>

#include "config/base/status.h"
#include "nlohmann/json.hpp"

namespace longstride {

struct StrictJsonLimits {
  int64_t max_bytes = int64_t{1} << 20;
  int max_depth = 16;
};

// `what` names the text in messages ("the sparsity plan"). INVALID_ARGUMENT: not JSON (line and
// column), a duplicate key, too large, too deep, a number outside 64 bits, or invalid UTF-8.
absl::StatusOr<nlohmann::json> ParseStrictJson(std::string_view text, std::string_view what,
                                               const StrictJsonLimits& limits = {});

}  // namespace longstride

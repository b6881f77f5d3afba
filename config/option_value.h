// Sizes and durations as people write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "config/base/status.h"

namespace longstride {

// "512MiB", "1.5GiB", "4096", "2GB" (10^9). INVALID_ARGUMENT: not a size, negative, or beyond 2^62.
absl::StatusOr<int64_t> ParseBytes(std::string_view text);
// The largest binary unit that leaves a whole number: 536870912 -> "512MiB".
std::string FormatBytes(int64_t bytes);
// For people: "1.4 GiB".
std::string FormatBytesShort(int64_t bytes);

// "400ms", "1m30s", "0". INVALID_ARGUMENT: no unit, infinite, or negative.
absl::StatusOr<absl::Duration> ParseDurationText(std::string_view text);

}  // namespace longstride

#include "config/option_value.h"

#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "config/nearest_name.h"

namespace longstride {
namespace {

constexpr double kMaxBytes = 4611686018427387904.0;  // 2^62

constexpr std::array<std::pair<std::string_view, double>, 14> kUnits = {{
    {"", 1},
    {"B", 1},
    {"K", 1024.0},
    {"KiB", 1024.0},
    {"kB", 1e3},
    {"KB", 1e3},
    {"MiB", 1048576.0},
    {"M", 1048576.0},
    {"MB", 1e6},
    {"GiB", 1073741824.0},
    {"G", 1073741824.0},
    {"GB", 1e9},
    {"TiB", 1099511627776.0},
    {"TB", 1e12},
}};

}  // namespace

absl::StatusOr<int64_t> ParseBytes(std::string_view text) {
  size_t digits = 0;
  while (digits < text.size() &&
         (std::isdigit(static_cast<unsigned char>(text[digits])) != 0 || text[digits] == '.')) {
    ++digits;
  }
  size_t unit_begin = digits;
  while (unit_begin < text.size() && text[unit_begin] == ' ') ++unit_begin;
  const std::string_view unit = text.substr(unit_begin);
  double number = 0;
  if (digits > 0 && absl::SimpleAtod(std::string(text.substr(0, digits)), &number)) {
    for (const auto& [name, factor] : kUnits) {
      if (unit != name) continue;
      const double bytes = number * factor;
      if (!(bytes <= kMaxBytes)) break;
      return static_cast<int64_t>(bytes);
    }
  }
  return absl::InvalidArgumentError(StrCat(
      "got ", Quoted(text), "; a size is a number with a unit such as 512MiB, 1.5GiB or 2GB"));
}

std::string FormatBytes(int64_t bytes) {
  constexpr std::array<std::string_view, 5> kNames = {"", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes != 0 && unit + 1 < kNames.size() && bytes % 1024 == 0) {
    bytes /= 1024;
    ++unit;
  }
  return StrCat(bytes, kNames[unit]);
}

std::string FormatBytesShort(int64_t bytes) {
  constexpr std::array<const char*, 5> kNames = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (std::abs(value) >= 1024 && unit + 1 < kNames.size()) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.*f %s", unit == 0 ? 0 : 1, value, kNames[unit]);
}

absl::StatusOr<absl::Duration> ParseDurationText(std::string_view text) {
  absl::Duration duration;
  if (!absl::ParseDuration(std::string(text), &duration) || duration == absl::InfiniteDuration() ||
      duration < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(StrCat(
        "got ", Quoted(text), "; a duration is a number with a unit such as 400ms, 30s or 1m30s"));
  }
  return duration;
}

}  // namespace longstride

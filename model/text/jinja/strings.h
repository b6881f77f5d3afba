// Python's string functions on texts; the result keeps the origin of every byte that is kept.
#pragma once

#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/text/jinja/text.h"

namespace longstride::model::jinja {

enum class Side { kBoth, kLeft, kRight };
// Without `characters`: white space.
Text Strip(const Text& text, Side side, std::optional<std::string_view> characters);

// Splits at `separator`, or at runs of white space; at most `max_splits` times if that is >= 0.
// REQUIRES: the separator is not empty.
std::vector<Text> Split(const Text& text, std::optional<std::string_view> separator, int64_t max_splits,
                        bool from_right);
std::vector<Text> SplitLines(const Text& text, bool keep_ends);

// Replaces the first `count` (all if negative) occurrences. InvalidArgument beyond `limit` bytes.
absl::StatusOr<Text> Replace(const Text& text, const Text& from, const Text& to, int64_t count,
                             size_t limit);

enum class Case { kUpper, kLower, kTitle, kCapitalize, kSwap };
// Full Unicode case mapping. Where an origin changes inside, the whole counts as input.
Text ChangeCase(const Text& text, Case c);

// Whether the text is not empty and all characters fulfil `is`.
bool AllCharacters(std::string_view text, const std::function<bool(char32_t)>& is);
// Python's islower and isupper.
bool IsCased(std::string_view text, bool lower);

// Pads to `width` characters.
enum class Align { kLeft, kRight, kCenter };
absl::StatusOr<Text> Pad(const Text& text, int64_t width, Align align, char fill, size_t limit);

}  // namespace longstride::model::jinja

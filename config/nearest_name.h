// "Did you mean": the nearest of a list of names, for error messages about unknown keys and values.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longstride {

// The candidate with the smallest edit distance to `name`, if that is at most 2 or a third of the
// name's length; "" otherwise. Ties: the first candidate.
std::string NearestName(std::string_view name, std::span<const std::string> candidates);

// " Did you mean 'window'?" or "" where nothing is near.
std::string DidYouMean(std::string_view name, std::span<const std::string> candidates);

// "a, b, c".
std::string JoinNames(std::span<const std::string> names);

// User text as it may stand in a message: quoted with '…', control and non-ASCII bytes escaped, cut
// after 64 bytes.
std::string Quoted(std::string_view text);

}  // namespace longstride

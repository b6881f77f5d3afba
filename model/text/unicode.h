// UTF-8 and the little of Unicode that tokenizers need.
//
// All functions take UTF-8. Those that say REQUIRES valid UTF-8 are called only after
// FirstInvalidUtf8() said npos. Thread-safe: no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace longstride::model {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// Byte offset of the first byte that is not part of well-formed UTF-8 (Unicode 15, table 3-7:
// no overlong forms, no surrogates, at most U+10FFFF); std::string_view::npos if there is none.
size_t FirstInvalidUtf8(std::string_view text);

// Number of bytes of the well-formed sequence that `lead` begins: 1..4, or 0 if it begins none.
int Utf8SequenceLength(unsigned char lead);

// Decodes the code point at `pos` and moves `pos` behind it. REQUIRES valid UTF-8, pos < size.
char32_t DecodeUtf8(std::string_view text, size_t* pos);
void AppendUtf8(char32_t code_point, std::string* out);

// What an incremental decoder may do with the bytes at the start of `bytes`.
struct Utf8Prefix {
  enum Kind { kComplete, kInvalid, kIncomplete };
  Kind kind;
  int length;  // kComplete: of the sequence; otherwise: of the longest well-formed start (>= 1)
};
// REQUIRES: bytes not empty.
Utf8Prefix ClassifyUtf8Prefix(std::string_view bytes);

// Replaces each maximal ill-formed part by U+FFFD (the W3C practice, Unicode 15 section 3.9).
std::string ReplaceInvalidUtf8(std::string_view bytes);

// White_Space, as \s of the regular expressions of the tokenizers means it (25 code points).
bool IsWhiteSpace(char32_t c);
// General category N*, P* or ASCII punctuation, [alphabetic, M*, Nd, Pc].
bool IsNumeric(char32_t c);
bool IsPunctuation(char32_t c);
bool IsWordCharacter(char32_t c);

// Regular expression engines and libraries differ in the Unicode version they know. Tokenizers
// follow Unicode 16; code points younger than Unicode 14 (and U+180E, which PCRE2 alone takes for a
// blank) are replaced by an older one with the same general category and the same length in UTF-8,
// so that offsets stay valid. Returns false, leaving *out alone, if nothing needs to be replaced.
bool MapYoungCodePoints(std::string_view text, std::string* out);

enum class NormalizationForm { kNfc, kNfd, kNfkc, kNfkd };
// Leaves code points younger than Unicode 11 alone, as the tokenizers that models were trained with
// do. REQUIRES valid UTF-8. Internal if the Unicode library reports a failure.
absl::StatusOr<std::string> NormalizeUnicode(std::string_view text, NormalizationForm form);
// Lower-cases each code point by itself (no context, no locale): what tokenizers do.
std::string LowercaseUnicode(std::string_view text);

}  // namespace longstride::model

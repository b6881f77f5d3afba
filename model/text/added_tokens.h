// Tokens that are found in a text before the model sees it: special tokens, user-defined symbols.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/text/byte_trie.h"

namespace longstride::model {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // swallows the blanks before it
  bool rstrip = false;       // and behind it
  bool normalized = false;   // is looked for after normalisation
  bool special = false;      // control, not text: only where the caller trusts the text
};

// Sorted, disjoint [begin, end) byte ranges in which special tokens may be recognised.
using TrustedRanges = std::vector<std::pair<size_t, size_t>>;

// A stretch of text, or of an added token (with the blanks that it swallowed).
struct TextSegment {
  size_t begin, end;
  int32_t token = -1;  // -1: text
};

// Finds added tokens: at the leftmost place, the longest. Immutable and thread-safe.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  // `tokens` with an empty content are left out.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  bool empty() const { return all_.empty(); }
  bool has_special() const { return has_special_; }
  // Cuts `text` (valid UTF-8) into segments that cover it. A special token is recognised only where
  // all its bytes lie in one of `trusted`.
  std::vector<TextSegment> Split(std::string_view text, const TrustedRanges& trusted) const;

 private:
  const AddedToken* LongestAt(std::string_view text, size_t pos, size_t trusted_end) const;

  std::vector<AddedToken> tokens_;
  ByteTrie all_;    // values are indices into tokens_
  ByteTrie plain_;  // those that are not special
  bool has_special_ = false;
};

}  // namespace longstride::model

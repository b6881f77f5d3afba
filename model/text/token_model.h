// Turning one piece of text into token ids: byte-pair encoding and unigram.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace longstride::model {

// Immutable and thread-safe.
class TokenModel {
 public:
  virtual ~TokenModel() = default;

  // Appends the ids of `piece` (valid UTF-8, not empty) to `ids`.
  // InvalidArgument if a character has no token and the vocabulary has no unknown token either.
  virtual absl::Status Encode(std::string_view piece, std::vector<int32_t>* ids) const = 0;

  // End of the longest start of `text` that may be encoded by itself, `text` being what is left of a
  // piece: Encode(head) + Encode(tail) == Encode(text). text.size() where no cut is known.
  virtual size_t IndependentPrefix(std::string_view text) const { return text.size(); }
};

}  // namespace longstride::model

// What tokenizer.ggml.pre means. Internal to model/text.
#pragma once

#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "model/text/normalizer.h"
#include "model/text/pre_tokenizer.h"

namespace longstride::model {

// Steps before the byte-level model, in order: "N" splits off every single digit; anything else is an
// expression to split by.
struct GgufPreTokenizer {
  std::string_view name;
  std::span<const std::string_view> steps;
  bool nfc;            // texts are normalised to NFC first
  bool ignore_merges;  // a piece that is a token is that token
  bool add_bos;        // unless the file says otherwise
};

// nullptr if `name` is not known.
const GgufPreTokenizer* FindGgufPreTokenizer(std::string_view name);
std::span<const GgufPreTokenizer> GgufPreTokenizers();

absl::StatusOr<PreTokenizer> BuildGgufPreTokenizer(const GgufPreTokenizer& kind);

}  // namespace longstride::model

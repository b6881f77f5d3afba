// What the loaders of tokenizer.json and GGUF build, and Tokenizer runs. Internal to model/text.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/text/added_tokens.h"
#include "model/text/normalizer.h"
#include "model/text/pre_tokenizer.h"
#include "model/text/token_model.h"
#include "model/text/vocabulary.h"

namespace longstride::model {

// How token texts become the bytes of a text: the "decoder" of tokenizer.json in the one order that
// the families use: replacements, byte fallback, then stripping the whole text.
struct DecoderSpec {
  bool byte_level = false;             // texts spell bytes with GPT-2's alphabet
  std::vector<ReplaceStep> replacements;
  bool byte_fallback = false;          // <0xNN> is a byte
  std::string metaspace;               // stands for a blank; empty: none
  bool metaspace_drops_first = false;  // and for nothing in the first token
  char strip_left = 0;                 // character to strip from the start of the text ...
  int strip_left_count = 0;            // ... at most so many times
  bool added_tokens_are_text = false;  // added tokens spell no bytes, whatever byte_level says
  bool join_with_blanks = false;       // no decoder at all: tokens are words
};

struct TokenizerParts {
  Vocabulary vocab;
  std::vector<AddedToken> added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<TokenModel> model;
  DecoderSpec decoder;
  std::vector<int32_t> prefix_ids, suffix_ids;
  std::optional<int32_t> bos, eos, unk, pad;
  std::vector<int32_t> eog;  // sorted
  std::vector<bool> is_special;  // by id
  // Built from `added`.
  AddedTokenMatcher raw_matcher, normalized_matcher;
};

// Splits `added` into the matchers, marks the special ids, and completes `eog` from `eos` and from
// the names by which the families' ends of turn are known.
absl::Status FinishParts(TokenizerParts* parts);

// The alphabet of byte-level tokenizers: printable characters for all bytes (GPT-2).
char32_t ByteToAlphabet(unsigned char byte);
// -1 for a character that is not of the alphabet.
int AlphabetToByte(char32_t c);
// `text` with every character replaced by its byte; nullopt if one is not of the alphabet.
std::optional<std::string> AlphabetToBytes(std::string_view text);
// The byte that "<0xNN>" names; -1 for other texts.
int ParseByteToken(std::string_view text);

}  // namespace longstride::model

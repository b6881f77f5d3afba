// Token ids to text as they come, never half a character.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace longstride::model {

class Tokenizer;

struct StreamDecoderOptions {
  bool skip_special = true;
  // Special tokens that are not skipped all the same, for OutputParser.
  std::vector<int32_t> keep = {};
  // Whether the first token begins a text. SentencePiece-style tokenizers then drop the blank that
  // stands for the start of a text; false keeps it, as when a completion goes on from a prompt.
  bool at_text_start = true;
};

// The concatenation of what Push and Flush return equals Tokenizer::Decode of all ids, wherever the
// ids are cut. Not thread-safe; borrows the tokenizer.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, StreamDecoderOptions options);

  // The characters that are complete now; maybe none. InvalidArgument for an id out of range, which
  // leaves the decoder as it was.
  absl::StatusOr<std::string> Push(int32_t id);
  // What is left at the end: U+FFFD for an unfinished character. The decoder starts over.
  std::string Flush();
  // Bytes of an unfinished character that wait for the next token.
  size_t pending_bytes() const { return pending_.size(); }

 private:
  void AppendToken(int32_t id);
  std::string TakeComplete(bool at_end);

  const Tokenizer* tokenizer_;
  StreamDecoderOptions options_;
  std::string pending_;
  bool first_token_ = true;
  int blanks_to_strip_ = 0;
};

}  // namespace longstride::model

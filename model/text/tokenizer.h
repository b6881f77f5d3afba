// Text to token ids and back, for the tokenizers of the model families that Longstride serves.
//
// Kinds: byte-level BPE (GPT-2 and its descendants), SentencePiece-style BPE with byte fallback, and
// unigram; read from Hugging Face's tokenizer.json or from GGUF metadata. A component that is not
// known is refused by name, never guessed. Ids equal those of the `tokenizers` library.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/text/gguf_vocab.h"

namespace longstride::model {

// A stretch of text of one origin. Special tokens (control tokens such as <|im_start|>) are
// recognised only where parse_special is true: text from users is text, whatever it spells.
struct TextSpan {
  std::string_view text;
  bool parse_special = false;
};

struct EncodeOptions {
  bool add_special = true;     // what the model wants around a text, such as BOS
  bool parse_special = false;  // of the overload that takes one string
};

struct TokenizerParts;
struct DecoderSpec;

// Immutable and thread-safe: one instance is shared by all requests.
class Tokenizer {
 public:
  static constexpr size_t kMaxTextBytes = size_t{1} << 30;

  // `config_json` is tokenizer_config.json, or empty. Errors name the field or component:
  // InvalidArgument for a broken file, Unimplemented for a component that is not supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromTokenizerJson(std::string_view json,
                                                                      std::string_view config_json);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const GgufVocab& vocab);
  // The values of tokenizer.ggml.pre that FromGguf knows for byte-level vocabularies.
  static std::vector<std::string_view> KnownGgufPreTokenizers();

  explicit Tokenizer(TokenizerParts parts);
  ~Tokenizer();

  // Encodes the concatenation of `spans`. A boundary between spans cuts nothing: words and merges
  // run across it, and only decides where special tokens may be recognised.
  // InvalidArgument for invalid UTF-8 (names the byte offset in the concatenation) and for more than
  // kMaxTextBytes; ResourceExhausted if a pathological text exceeds the limits of the splitter.
  absl::StatusOr<std::vector<int32_t>> Encode(std::span<const TextSpan> spans,
                                              EncodeOptions options = {}) const;
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              EncodeOptions options = {}) const;

  // The text of `ids`, in valid UTF-8: bytes that form no character become U+FFFD. `skip_special`
  // leaves special tokens out. InvalidArgument for an id out of range.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, bool skip_special) const;

  // The bytes that a token adds to a text (not necessarily whole characters; nothing for an id that
  // the vocabulary leaves out). The first token of a text may lose a blank: see StreamDecoder.
  absl::StatusOr<std::string_view> TokenBytes(int32_t id) const;
  // The token as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>").
  absl::StatusOr<std::string_view> TokenText(int32_t id) const;
  // The id of a token spelled so; nullopt if there is none.
  std::optional<int32_t> FindToken(std::string_view text) const;

  // One more than the largest id. A model may have more rows: ids from here on are refused.
  int32_t vocab_size() const;
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> unk_id() const;
  std::optional<int32_t> pad_id() const;
  // Tokens that end a generation: EOS and the families' ends of turn. Sorted.
  std::span<const int32_t> eog_ids() const;
  // What add_special puts before and behind a text.
  std::span<const int32_t> prefix_ids() const;
  std::span<const int32_t> suffix_ids() const;

  // False for ids out of range.
  bool IsSpecial(int32_t id) const;
  bool IsEndOfGeneration(int32_t id) const;
  // Whether the token is a single byte of byte fallback, such as <0x0A>.
  bool IsByte(int32_t id) const;

 private:
  friend class StreamDecoder;
  struct Encoder;

  absl::Status CheckId(int32_t id) const;
  const DecoderSpec& decoder() const;
  void BuildTokenBytes();

  std::unique_ptr<const TokenizerParts> parts_;
  std::string bytes_;              // TokenBytes of all ids, one after the other
  std::vector<uint64_t> offsets_;  // into bytes_, one more than ids
  std::vector<uint8_t> flags_;     // per id
};

}  // namespace longstride::model

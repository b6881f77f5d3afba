// Cutting a normalised text into the pieces that the model sees one by one: the "pre_tokenizer" of
// tokenizer.json.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "model/text/regex.h"

namespace longstride::model {

// What becomes of the matches of a split.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {  // by `regex` if set, else by the literal `pattern`
  std::string pattern;
  std::shared_ptr<const Regex> regex;
  SplitBehavior behavior;
  bool invert;  // what lies between the matches counts as the match
};
// Splits at runs or single characters of a class.
enum class CharacterClass { kNumeric, kWhiteSpace, kPunctuation };
struct ClassSplitStep {
  CharacterClass cls;
  SplitBehavior behavior;
};
struct WordsStep {};  // runs of word characters and of others; blanks are dropped
// GPT-2's: the model then works on bytes. `regex` is GPT-2's expression, or null.
struct ByteLevelStep {
  bool add_prefix_space;
  std::shared_ptr<const Regex> regex;
};
struct MetaspaceStep {
  enum class Prepend { kAlways, kFirst, kNever };
  std::string replacement;  // one character, "▁"
  Prepend prepend;
  bool split;
};
using PreTokenizerStep =
    std::variant<SplitStep, ClassSplitStep, WordsStep, ByteLevelStep, MetaspaceStep>;

// A text and the parts of it that remain.
struct PreTokenizedText {
  struct Piece {
    size_t begin, end;
  };
  std::string text;
  std::vector<Piece> pieces;
  bool at_start;  // whether the first piece is the start of the whole input
};

// Immutable and thread-safe.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {}

  // Whether a ByteLevel step is there, and so the model works on bytes.
  bool is_byte_level() const;
  // Splits `text` (valid UTF-8). Piece order is text order; no piece is empty.
  absl::StatusOr<PreTokenizedText> Split(std::string text, bool at_start) const;

 private:
  std::vector<PreTokenizerStep> steps_;
};

}  // namespace longstride::model

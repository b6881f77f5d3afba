// What is done to a text before it is split: the "normalizer" of tokenizer.json.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "model/text/regex.h"
#include "model/text/unicode.h"

namespace longstride::model {

struct LowercaseStep {};
struct StripStep {
  bool left, right;
};
struct PrependStep {  // an empty text stays empty
  std::string prefix;
};
struct ReplaceStep {  // every match, left to right; `regex` if set, else the literal `pattern`
  std::string pattern;
  std::shared_ptr<const Regex> regex;
  std::string content;
};
using NormalizerStep =
    std::variant<NormalizationForm, LowercaseStep, StripStep, PrependStep, ReplaceStep>;

// Immutable and thread-safe.
class Normalizer {
 public:
  Normalizer() = default;
  explicit Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {}

  bool empty() const { return steps_.empty(); }
  // REQUIRES valid UTF-8, which the result is too. `continues`: the text goes on from another one,
  // so nothing is put before it. ResourceExhausted where the steps make the text far longer.
  absl::Status Apply(std::string* text, bool continues = false) const;

 private:
  std::vector<NormalizerStep> steps_;
};

// What a text may grow to where a file says what replaces its parts: more than any family's does, and
// little enough that no file can turn a short text into gigabytes.
constexpr size_t GrowthLimit(size_t text_bytes) { return 32 * text_bytes + 256; }

// `text` with every occurrence of `from` (not empty) replaced.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to);
// As ReplaceStep does it. ResourceExhausted where the result would be longer than `max_bytes`.
absl::StatusOr<std::string> ApplyReplace(const ReplaceStep& step, std::string_view text,
                                         size_t max_bytes);

}  // namespace longstride::model

#include "model/text/pre_tokenizer.h"

#include <algorithm>

#include "config/base/status.h"
#include "model/text/normalizer.h"
#include "model/text/unicode.h"

namespace longstride::model {
namespace {

using Piece = PreTokenizedText::Piece;

bool InClass(CharacterClass cls, char32_t c) {
  switch (cls) {
    case CharacterClass::kNumeric: return IsNumeric(c);
    case CharacterClass::kWhiteSpace: return IsWhiteSpace(c);
    case CharacterClass::kPunctuation: return IsPunctuation(c);
  }
  return false;
}

// Every character of the class is a match of its own, as Hugging Face's char predicates are.
void FindClass(std::string_view text, CharacterClass cls, std::vector<RegexPiece>* out) {
  size_t boundary = 0, pos = 0;
  while (pos < text.size()) {
    const size_t start = pos;
    if (!InClass(cls, DecodeUtf8(text, &pos))) continue;
    if (boundary < start) out->push_back({boundary, start, false});
    out->push_back({start, pos, true});
    boundary = pos;
  }
  if (boundary < text.size()) out->push_back({boundary, text.size(), false});
}

void FindLiteral(std::string_view text, std::string_view pattern, std::vector<RegexPiece>* out) {
  size_t boundary = 0;
  while (true) {
    const size_t hit = text.find(pattern, boundary);
    if (hit == std::string_view::npos) break;
    if (boundary < hit) out->push_back({boundary, hit, false});
    boundary = hit + pattern.size();
    out->push_back({hit, boundary, true});
  }
  if (boundary < text.size()) out->push_back({boundary, text.size(), false});
}

// Runs of word characters, and runs of neither word characters nor blanks.
void AppendWords(std::string_view text, size_t offset, std::vector<Piece>* out) {
  enum Kind { kBlank, kWord, kOther };
  Kind run = kBlank;
  size_t start = 0, pos = 0;
  while (pos < text.size()) {
    const size_t at = pos;
    const char32_t c = DecodeUtf8(text, &pos);
    const Kind kind = IsWordCharacter(c) ? kWord : IsWhiteSpace(c) ? kBlank : kOther;
    if (kind != run) {
      if (run != kBlank) out->push_back({offset + start, offset + at});
      run = kind;
      start = at;
    }
  }
  if (run != kBlank) out->push_back({offset + start, offset + text.size()});
}

// Appends what `behavior` makes of the matches, `offset` added.
void AppendSplit(const std::vector<RegexPiece>& found, SplitBehavior behavior, size_t offset,
                 std::vector<Piece>* out) {
  const size_t base = out->size();
  const auto push = [&](const RegexPiece& p) { out->push_back({offset + p.begin, offset + p.end}); };
  bool previous = false;
  switch (behavior) {
    case SplitBehavior::kRemoved:
      for (const RegexPiece& p : found) {
        if (!p.is_match) push(p);
      }
      return;
    case SplitBehavior::kIsolated:
      for (const RegexPiece& p : found) push(p);
      return;
    case SplitBehavior::kContiguous:
      for (const RegexPiece& p : found) {
        if (p.is_match == previous && out->size() > base) {
          out->back().end = offset + p.end;
        } else {
          push(p);
        }
        previous = p.is_match;
      }
      return;
    case SplitBehavior::kMergedWithPrevious:
      for (const RegexPiece& p : found) {
        if (p.is_match && !previous && out->size() > base) {
          out->back().end = offset + p.end;
        } else {
          push(p);
        }
        previous = p.is_match;
      }
      return;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = found.size(); i-- > 0;) {
        const RegexPiece& p = found[i];
        if (p.is_match && !previous && out->size() > base) {
          out->back().begin = offset + p.begin;
        } else {
          push(p);
        }
        previous = p.is_match;
      }
      std::reverse(out->begin() + static_cast<std::ptrdiff_t>(base), out->end());
      return;
  }
}

// Applies one step. Keeps a copy of the text with young code points mapped for the matchers.
class Splitter {
 public:
  explicit Splitter(PreTokenizedText* state) : state_(state) { Remap(); }

  absl::Status operator()(const SplitStep& step) {
    return Each([&](std::string_view text, size_t offset) -> absl::Status {
      found_.clear();
      if (step.regex != nullptr) {
        RETURN_IF_ERROR(step.regex->Split(text, &found_));
      } else {
        FindLiteral(text, step.pattern, &found_);
      }
      if (step.invert) {
        for (RegexPiece& p : found_) p.is_match = !p.is_match;
      }
      AppendSplit(found_, step.behavior, offset, &next_);
      return absl::OkStatus();
    });
  }
  absl::Status operator()(const ClassSplitStep& step) {
    return Each([&](std::string_view text, size_t offset) {
      found_.clear();
      FindClass(text, step.cls, &found_);
      AppendSplit(found_, step.behavior, offset, &next_);
      return absl::OkStatus();
    });
  }
  absl::Status operator()(const WordsStep&) {
    return Each([&](std::string_view text, size_t offset) {
      AppendWords(text, offset, &next_);
      return absl::OkStatus();
    });
  }
  absl::Status operator()(const ByteLevelStep& step) {
    if (step.add_prefix_space) PrependSpaces();
    if (step.regex == nullptr) return absl::OkStatus();
    return (*this)(SplitStep{"", step.regex, SplitBehavior::kIsolated, false});
  }
  absl::Status operator()(const MetaspaceStep& step) {
    std::string text;
    for (size_t i = 0; i < state_->pieces.size(); ++i) {
      Piece& piece = state_->pieces[i];
      const std::string replaced = ReplaceAll(
          std::string_view(state_->text).substr(piece.begin, piece.end - piece.begin), " ",
          step.replacement);
      const size_t begin = text.size();
      const bool first = state_->at_start && i == 0 && piece.begin == 0;
      const bool wanted = step.prepend == MetaspaceStep::Prepend::kAlways ||
                          (step.prepend == MetaspaceStep::Prepend::kFirst && first);
      if (wanted && !replaced.starts_with(step.replacement)) text += step.replacement;
      text += replaced;
      piece = {begin, text.size()};
    }
    SetText(std::move(text));
    if (!step.split) return absl::OkStatus();
    return (*this)(SplitStep{step.replacement, nullptr, SplitBehavior::kMergedWithNext, false});
  }

 private:
  template <typename F>
  absl::Status Each(F split) {
    next_.clear();
    const std::string_view text = mapped_ ? std::string_view(copy_) : std::string_view(state_->text);
    for (const Piece& piece : state_->pieces) {
      RETURN_IF_ERROR(split(text.substr(piece.begin, piece.end - piece.begin), piece.begin));
    }
    state_->pieces.swap(next_);
    return absl::OkStatus();
  }

  void PrependSpaces() {
    std::string text;
    text.reserve(state_->text.size() + 16);
    for (Piece& piece : state_->pieces) {
      const size_t begin = text.size();
      if (state_->text[piece.begin] != ' ') text += ' ';
      text.append(state_->text, piece.begin, piece.end - piece.begin);
      piece = {begin, text.size()};
    }
    SetText(std::move(text));
  }

  void SetText(std::string text) {
    state_->text = std::move(text);
    Remap();
  }
  void Remap() { mapped_ = MapYoungCodePoints(state_->text, &copy_); }

  PreTokenizedText* state_;
  std::string copy_;
  bool mapped_ = false;
  std::vector<RegexPiece> found_;
  std::vector<Piece> next_;
};

}  // namespace

bool PreTokenizer::is_byte_level() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const PreTokenizerStep& step) {
    return std::holds_alternative<ByteLevelStep>(step);
  });
}

absl::StatusOr<PreTokenizedText> PreTokenizer::Split(std::string text, bool at_start) const {
  PreTokenizedText state;
  state.text = std::move(text);
  state.at_start = at_start;
  if (!state.text.empty()) state.pieces.push_back({0, state.text.size()});
  if (steps_.empty()) return state;
  Splitter splitter(&state);
  for (const PreTokenizerStep& step : steps_) RETURN_IF_ERROR(std::visit(splitter, step));
  return state;
}

}  // namespace longstride::model

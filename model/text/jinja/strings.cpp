#include "model/text/jinja/strings.h"

#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>

#include "config/base/status.h"
#include "model/text/jinja/operators.h"
#include "model/text/unicode.h"

namespace longstride::model::jinja {
namespace {

// Python's str.isspace: white space and the information separators.
bool IsPythonSpace(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); }

size_t PreviousCharacter(std::string_view text, size_t end) {
  size_t start = end - 1;
  while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
  return start;
}

bool IsLineEnd(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

std::string CaseOf(std::string_view text, Case c) {
  icu::UnicodeString unicode =
      icu::UnicodeString::fromUTF8(icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
  std::string out;
  if (c == Case::kUpper || c == Case::kLower) {
    (c == Case::kUpper ? unicode.toUpper(icu::Locale::getRoot()) : unicode.toLower(icu::Locale::getRoot()))
        .toUTF8String(out);
    return out;
  }
  bool inside = false;  // of a word, or of the text
  for (int32_t i = 0; i < unicode.length();) {
    const UChar32 code = unicode.char32At(i);
    i += U16_LENGTH(code);
    icu::UnicodeString one(code);
    const bool upper = c == Case::kSwap ? u_islower(code) != 0 : !inside;
    if (c == Case::kSwap && u_islower(code) == 0 && u_isupper(code) == 0) {
      one.toUTF8String(out);
    } else {
      (upper ? one.toUpper(icu::Locale::getRoot()) : one.toLower(icu::Locale::getRoot())).toUTF8String(out);
    }
    inside = c == Case::kCapitalize || u_isalpha(code) != 0;
  }
  return out;
}

}  // namespace

Text Strip(const Text& text, Side side, std::optional<std::string_view> characters) {
  const std::string_view s = text.view();
  const auto strips = [&](size_t begin, size_t end) {
    size_t pos = begin;
    if (!characters.has_value()) return IsPythonSpace(DecodeUtf8(s, &pos));
    return characters->find(s.substr(begin, end - begin)) != std::string_view::npos;
  };
  size_t begin = 0, end = s.size();
  while (side != Side::kRight && begin < end) {
    size_t next = begin;
    (void)DecodeUtf8(s, &next);
    if (!strips(begin, next)) break;
    begin = next;
  }
  while (side != Side::kLeft && begin < end) {
    const size_t start = PreviousCharacter(s, end);
    if (!strips(start, end)) break;
    end = start;
  }
  return text.Slice(begin, end);
}

std::vector<Text> Split(const Text& text, std::optional<std::string_view> separator, int64_t max_splits,
                        bool from_right) {
  const std::string_view s = text.view();
  std::vector<std::pair<size_t, size_t>> parts;
  if (!separator.has_value()) {
    std::vector<std::pair<size_t, size_t>> words;
    for (size_t pos = 0; pos < s.size();) {
      const size_t start = pos;
      if (IsPythonSpace(DecodeUtf8(s, &pos))) continue;
      if (!words.empty() && words.back().second == start) {
        words.back().second = pos;
      } else {
        words.emplace_back(start, pos);
      }
    }
    const auto limit = static_cast<size_t>(max_splits);
    if (max_splits >= 0 && words.size() > limit + 1) {
      if (from_right) {  // what is left over is one part, without blanks at its end
        const size_t keep = words.size() - limit;
        words[0] = {0, words[keep - 1].second};
        words.erase(words.begin() + 1, words.begin() + static_cast<std::ptrdiff_t>(keep));
      } else {
        words[limit].second = s.size();
        words.resize(limit + 1);
      }
    }
    parts = std::move(words);
  } else if (from_right) {
    size_t end = s.size();
    while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
      const size_t hit =
          end < separator->size() ? std::string_view::npos : s.rfind(*separator, end - separator->size());
      if (hit == std::string_view::npos) break;
      parts.emplace_back(hit + separator->size(), end);
      end = hit;
    }
    parts.emplace_back(0, end);
    std::reverse(parts.begin(), parts.end());
  } else {
    size_t begin = 0;
    while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
      const size_t hit = s.find(*separator, begin);
      if (hit == std::string_view::npos) break;
      parts.emplace_back(begin, hit);
      begin = hit + separator->size();
    }
    parts.emplace_back(begin, s.size());
  }
  std::vector<Text> out;
  for (const auto& [begin, end] : parts) out.push_back(text.Slice(begin, end));
  return out;
}

std::vector<Text> SplitLines(const Text& text, bool keep_ends) {
  std::vector<Text> lines;
  const std::string_view s = text.view();
  size_t begin = 0;
  for (size_t pos = 0; pos < s.size();) {
    const size_t end = pos;
    const char32_t c = DecodeUtf8(s, &pos);
    if (!IsLineEnd(c)) continue;
    if (c == '\r' && pos < s.size() && s[pos] == '\n') ++pos;
    lines.push_back(text.Slice(begin, keep_ends ? pos : end));
    begin = pos;
  }
  if (begin < s.size()) lines.push_back(text.Slice(begin, s.size()));
  return lines;
}

absl::StatusOr<Text> Replace(const Text& text, const Text& from, const Text& to, int64_t count,
                             size_t limit) {
  Text out;
  const std::string_view s = text.view();
  size_t pos = 0;
  for (int64_t done = 0; count < 0 || done < count; ++done) {
    size_t hit = pos;
    if (from.empty()) {  // before every character and at the end
      if (done > 0) {
        if (pos >= s.size()) break;
        (void)DecodeUtf8(s, &hit);
      }
    } else {
      hit = s.find(from.view(), pos);
    }
    if (hit == std::string_view::npos) break;
    out.AppendSlice(text, pos, hit);
    out.Append(to);
    pos = hit + from.size();
    if (out.size() > limit) {
      return absl::InvalidArgumentError(
          StrCat("the chat template makes a text of more than ", limit, " bytes"));
    }
  }
  out.AppendSlice(text, pos, s.size());
  return out;
}

Text ChangeCase(const Text& text, Case c) { return Text(CaseOf(text.view(), c), text.MixedOrigin()); }

bool AllCharacters(std::string_view text, const std::function<bool(char32_t)>& is) {
  for (size_t pos = 0; pos < text.size();) {
    if (!is(DecodeUtf8(text, &pos))) return false;
  }
  return !text.empty();
}

bool IsCased(std::string_view text, bool lower) {
  bool cased = false;
  for (size_t pos = 0; pos < text.size();) {
    const auto c = static_cast<UChar32>(DecodeUtf8(text, &pos));
    if (lower ? u_isupper(c) || u_istitle(c) : u_islower(c) || u_istitle(c)) return false;
    cased = cased || (lower ? u_islower(c) : u_isupper(c));
  }
  return cased;
}

absl::StatusOr<Text> Pad(const Text& text, int64_t width, Align align, char fill, size_t limit) {
  const int64_t missing = width - CountCharacters(text.view());
  if (missing <= 0) return text;
  if (static_cast<uint64_t>(missing) > limit) {
    return absl::InvalidArgumentError("the chat template pads a text beyond the size limit");
  }
  // Python puts the odd blank of a centred text on the left if the width is odd, too.
  const int64_t left = align == Align::kLeft    ? 0
                       : align == Align::kRight ? missing
                                                : missing / 2 + (missing & width & 1);
  Text out(std::string(static_cast<size_t>(left), fill), Origin::kTemplate);
  out.Append(text);
  out.Append(std::string(static_cast<size_t>(missing - left), fill), Origin::kTemplate);
  return out;
}

}  // namespace longstride::model::jinja

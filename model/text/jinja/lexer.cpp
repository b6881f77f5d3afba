#include "model/text/jinja/lexer.h"

#include <cctype>
#include <charconv>
#include <cstring>

#include "config/base/status.h"
#include "model/text/unicode.h"

namespace longstride::model::jinja {
namespace {

bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Line ends become \n, and one at the very end of the template goes.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

size_t SkipBlanks(std::string_view s, size_t pos) {
  while (pos < s.size()) {
    size_t next = pos;
    if (!IsWhiteSpace(DecodeUtf8(s, &next))) break;
    pos = next;
  }
  return pos;
}

std::string_view TrimRight(std::string_view s) {
  size_t end = s.size();
  while (end > 0) {
    size_t start = end - 1;
    while (start > 0 && (static_cast<unsigned char>(s[start]) & 0xC0) == 0x80) --start;
    size_t next = start;
    if (!IsWhiteSpace(DecodeUtf8(s, &next))) break;
    end = start;
  }
  return s.substr(0, end);
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)), s_(source_) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < s_.size()) RETURN_IF_ERROR(Outside());
    Emit(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  absl::Status Error(std::string_view message) const {
    return absl::InvalidArgumentError(StrCat("chat template, line ", line_, ": ", message));
  }
  void Emit(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  // Moves to `end`, counting lines.
  void Advance(size_t end) {
    for (; pos_ < end; ++pos_) line_ += s_[pos_] == '\n';
  }
  bool At(size_t pos, std::string_view what) const { return s_.substr(pos, what.size()) == what; }

  // Text up to the next tag, then the tag.
  absl::Status Outside() {
    size_t tag = pos_;
    while (true) {
      tag = s_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= s_.size()) {
        tag = std::string_view::npos;
        break;
      }
      const char c = s_[tag + 1];
      if (c == '{' || c == '%' || c == '#') break;
      ++tag;
    }
    if (tag == std::string_view::npos) {
      Emit(TokenKind::kData, std::string(s_.substr(pos_)));
      Advance(s_.size());
      return absl::OkStatus();
    }
    const char kind = s_[tag + 1];
    size_t inside = tag + 2;
    const char sign = inside < s_.size() && (s_[inside] == '-' || s_[inside] == '+') ? s_[inside] : 0;
    if (sign != 0) ++inside;
    EmitData(s_.substr(pos_, tag - pos_), sign, /*lstrip=*/kind != '{');
    Advance(inside);
    line_starting_ = false;
    if (kind == '#') return Comment();
    if (kind == '%' && IsRaw(inside)) return Raw(inside);
    Emit(kind == '%' ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, "");
    return Inside(kind == '%');
  }

  // `text` before a tag that has `sign`; whitespace goes as the sign and lstrip_blocks say.
  void EmitData(std::string_view text, char sign, bool lstrip) {
    if (sign == '-') {
      text = TrimRight(text);
    } else if (sign != '+' && lstrip) {
      const size_t newline = text.rfind('\n');
      const size_t start = newline == std::string_view::npos ? 0 : newline + 1;
      if ((start > 0 || line_starting_) && SkipBlanks(text, start) == text.size()) {
        text = text.substr(0, start);
      }
    }
    if (!text.empty()) Emit(TokenKind::kData, std::string(text));
  }

  // Behind the end of a block or comment: the sign `before` it decides what is swallowed.
  void CloseTag(size_t end, char before, bool trim_newline) {
    if (before == '-') {
      end = SkipBlanks(s_, end);
    } else if (trim_newline && before != '+' && At(end, "\n")) {
      ++end;
    }
    Advance(end);
    line_starting_ = end > 0 && s_[end - 1] == '\n';
  }

  absl::Status Comment() {
    const size_t end = s_.find("#}", pos_);
    if (end == std::string_view::npos) return Error("a comment is not closed");
    const char before = end > pos_ ? s_[end - 1] : 0;
    CloseTag(end + 2, before == '-' || before == '+' ? before : 0, /*trim_newline=*/true);
    return absl::OkStatus();
  }

  // Whether a block that goes on at `pos` is {% raw %}.
  bool IsRaw(size_t pos) const {
    pos = SkipBlanks(s_, pos);
    if (!At(pos, "raw")) return false;
    pos = SkipBlanks(s_, pos + 3);
    return At(pos, "%}") || At(pos, "-%}");
  }

  absl::Status Raw(size_t inside) {
    size_t end = SkipBlanks(s_, SkipBlanks(s_, inside) + 3);
    const bool strip = s_[end] == '-';
    CloseTag(end + (strip ? 3 : 2), strip ? '-' : 0, /*trim_newline=*/false);
    size_t from = pos_;
    while (true) {
      const size_t tag = s_.find("{%", from);
      if (tag == std::string_view::npos) return Error("{% raw %} is not closed by {% endraw %}");
      size_t name = tag + 2;
      const char sign = At(name, "-") ? '-' : At(name, "+") ? '+' : 0;
      name = SkipBlanks(s_, sign != 0 ? name + 1 : name);
      if (At(name, "endraw")) {
        const size_t close = SkipBlanks(s_, name + 6);
        const char before = At(close, "-%}") ? '-' : At(close, "+%}") ? '+' : 0;
        const size_t stop = before != 0 ? close + 1 : close;
        if (At(stop, "%}")) {
          EmitData(s_.substr(pos_, tag - pos_), sign, /*lstrip=*/true);
          CloseTag(stop + 2, before, /*trim_newline=*/true);
          return absl::OkStatus();
        }
      }
      from = tag + 2;
    }
  }

  // The expression tokens of a tag, and its end.
  absl::Status Inside(bool block) {
    std::string open;  // brackets that wait to be closed
    const std::string_view close = block ? "%}" : "}}";
    while (true) {
      Advance(SkipBlanks(s_, pos_));
      if (pos_ >= s_.size()) return Error(StrCat("a tag is not closed by ", close));
      if (open.empty()) {
        const char c = s_[pos_];
        const bool sign = (c == '-' || (c == '+' && block)) && At(pos_ + 1, close);
        if (sign || At(pos_, close)) {
          Emit(block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, "");
          CloseTag(pos_ + (sign ? 3 : 2), sign ? c : 0, /*trim_newline=*/block);
          return absl::OkStatus();
        }
      }
      RETURN_IF_ERROR(Expression(&open));
    }
  }

  absl::Status Expression(std::string* open) {
    const char c = s_[pos_];
    if (c == '"' || c == '\'') return String();
    if (IsDigit(c)) return Number();
    if (IsNameStart(c)) {
      size_t end = pos_ + 1;
      while (end < s_.size() && (IsNameStart(s_[end]) || IsDigit(s_[end]))) ++end;
      Emit(TokenKind::kName, std::string(s_.substr(pos_, end - pos_)));
      Advance(end);
      return absl::OkStatus();
    }
    for (const std::string_view op : {"//", "**", "==", "!=", ">=", "<="}) {
      if (!At(pos_, op)) continue;
      Emit(TokenKind::kOperator, std::string(op));
      Advance(pos_ + 2);
      return absl::OkStatus();
    }
    if (std::strchr("+-/*%~[](){}><=.:|,;", c) == nullptr || c == '\0') {
      return Error("a character that no expression may have");
    }
    if (c == '(' || c == '[' || c == '{') open->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (open->empty() || open->back() != c) {
        return Error(StrCat("'", std::string(1, c), "' closes nothing"));
      }
      open->pop_back();
    }
    Emit(TokenKind::kOperator, std::string(1, c));
    Advance(pos_ + 1);
    return absl::OkStatus();
  }

  absl::Status Number() {
    size_t end = pos_;
    int base = 10;
    std::string digits;
    if (s_[pos_] == '0' && pos_ + 1 < s_.size()) {
      const char b = static_cast<char>(s_[pos_ + 1] | 0x20);
      base = b == 'x' ? 16 : b == 'o' ? 8 : b == 'b' ? 2 : 10;
      if (base != 10) end += 2;
    }
    const auto take_digits = [&] {
      while (end < s_.size() && (std::isxdigit(static_cast<unsigned char>(s_[end])) || s_[end] == '_')) {
        if (base != 16 && !IsDigit(s_[end]) && s_[end] != '_') break;
        if (s_[end] != '_') digits += s_[end];
        ++end;
      }
    };
    take_digits();
    bool is_float = false;
    // In "list.0.1" the numbers are indices.
    const bool index = !tokens_.empty() && tokens_.back().text == "." &&
                       tokens_.back().kind == TokenKind::kOperator;
    if (base == 10 && !index && end + 1 < s_.size() && s_[end] == '.' && IsDigit(s_[end + 1])) {
      is_float = true;
      digits += '.';
      ++end;
      take_digits();
    }
    if (base == 10 && !index && end < s_.size() && (s_[end] | 0x20) == 'e') {
      const size_t sign = end + 1 < s_.size() && (s_[end + 1] == '+' || s_[end + 1] == '-') ? 1 : 0;
      if (end + 1 + sign < s_.size() && IsDigit(s_[end + 1 + sign])) {
        is_float = true;
        digits += 'e';
        if (sign != 0 && s_[end + 1] == '-') digits += '-';
        end += 1 + sign;
        take_digits();
      }
    }
    Token token{is_float ? TokenKind::kFloat : TokenKind::kInteger, "", line_};
    const char* last = digits.data() + digits.size();
    const std::from_chars_result read =
        is_float ? std::from_chars(digits.data(), last, token.number)
                 : std::from_chars(digits.data(), last, token.integer, base);
    if (read.ec != std::errc() || read.ptr != last) return Error("a number is out of range");
    tokens_.push_back(std::move(token));
    Advance(end);
    return absl::OkStatus();
  }

  absl::Status String() {
    const char quote = s_[pos_];
    size_t end = pos_ + 1;
    while (end < s_.size() && s_[end] != quote) end += s_[end] == '\\' ? 2 : 1;
    if (end >= s_.size()) return Error("a string is not closed");
    std::string value;
    RETURN_IF_ERROR(Unescape(s_.substr(pos_ + 1, end - pos_ - 1), &value));
    Emit(TokenKind::kString, std::move(value));
    Advance(end + 1);
    return absl::OkStatus();
  }

  // Python's escapes. One that Python does not know stays as it is written.
  absl::Status Unescape(std::string_view raw, std::string* out) {
    for (size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] != '\\' || i + 1 >= raw.size()) {
        *out += raw[i];
        continue;
      }
      const char c = raw[++i];
      constexpr std::string_view kNames = "abfnrtv\\'\"", kValues = "\a\b\f\n\r\t\v\\'\"";
      const size_t simple = kNames.find(c);
      if (simple != std::string_view::npos) {
        *out += kValues[simple];
      } else if (c == '\n') {
        continue;  // a line that goes on
      } else if (c == 'x' || c == 'u' || c == 'U') {
        RETURN_IF_ERROR(UnescapeCode(raw, c == 'x' ? 2 : c == 'u' ? 4 : 8, 16, &i, out));
      } else if (c >= '0' && c <= '7') {
        size_t digits = 1;
        while (digits < 3 && i + digits < raw.size() && raw[i + digits] >= '0' && raw[i + digits] <= '7') {
          ++digits;
        }
        --i;
        RETURN_IF_ERROR(UnescapeCode(raw, digits, 8, &i, out));
      } else {
        *out += '\\';
        *out += c;
      }
    }
    return absl::OkStatus();
  }

  // `digits` digits behind raw[*i].
  absl::Status UnescapeCode(std::string_view raw, size_t digits, int base, size_t* i,
                            std::string* out) {
    uint32_t code = 0;
    if (raw.size() - *i - 1 < digits) return Error("a string escape is cut short");
    const char* first = raw.data() + *i + 1;
    const auto read = std::from_chars(first, first + digits, code, base);
    if (read.ec != std::errc() || read.ptr != first + digits || code > 0x10FFFF ||
        (code >= 0xD800 && code <= 0xDFFF)) {
      return Error("a string escape is no character");
    }
    AppendUtf8(code, out);
    *i += digits;
    return absl::OkStatus();
  }

  std::string source_;
  std::string_view s_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Lex(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    return absl::InvalidArgumentError(StrCat("the chat template has ", source.size(),
                                             " bytes; at most ", kMaxTemplateBytes,
                                             " are allowed"));
  }
  if (const size_t bad = FirstInvalidUtf8(source); bad != std::string_view::npos) {
    return absl::InvalidArgumentError(
        StrCat("the chat template is not valid UTF-8 at byte ", bad));
  }
  return Lexer(NormalizeNewlines(source)).Run();
}

}  // namespace longstride::model::jinja

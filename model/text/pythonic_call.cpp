#include "model/text/pythonic_call.h"

#include <nlohmann/json.hpp>

#include "config/base/strings.h"
#include "model/text/json_scanner.h"
#include "model/text/unicode.h"

namespace longstride::model {
namespace {

using Json = nlohmann::ordered_json;
constexpr int kMaxDepth = 32;
constexpr size_t kMaxCallBytes = 64 * 1024;

bool IsNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Recursive descent that tells apart "wrong" and "cut short".
class Reader {
 public:
  explicit Reader(std::string_view text) : s_(text) {}

  PythonicCall Run() {
    PythonicCall call;
    std::string arguments = "{";
    if (!Name(&call.name, /*dots=*/true) || !Take('(')) return Failed();
    bool first = true;
    while (!AtEnd() && s_[pos_] != ')') {
      if (!first && !Take(',')) return Failed();
      SkipBlanks();
      if (!first && !AtEnd() && s_[pos_] == ')') break;
      std::string key, value;
      if (!Name(&key, /*dots=*/false) || !Take('=') || !Literal(&value, 0)) return Failed();
      arguments += StrCat(first ? "" : ", ", Json(key).dump(), ": ", value);
      first = false;
      SkipBlanks();
    }
    if (!Take(')')) return Failed();
    call.kind = PythonicCall::kCall;
    call.arguments_json = arguments + "}";
    call.size = pos_;
    return call;
  }

 private:
  PythonicCall Failed() const {
    PythonicCall call;
    call.kind = short_ && s_.size() < kMaxCallBytes ? PythonicCall::kMore : PythonicCall::kBad;
    return call;
  }
  bool AtEnd() {
    short_ = short_ || pos_ >= s_.size();
    return pos_ >= s_.size();
  }
  void SkipBlanks() {
    while (pos_ < s_.size() && (s_[pos_] == ' ' || s_[pos_] == '\n' || s_[pos_] == '\t' || s_[pos_] == '\r')) {
      ++pos_;
    }
  }
  bool Take(char c) {
    SkipBlanks();
    if (AtEnd() || s_[pos_] != c) return false;
    ++pos_;
    return true;
  }
  bool Name(std::string* name, bool dots) {
    SkipBlanks();
    if (AtEnd() || !IsNameStart(s_[pos_])) return false;
    while (!AtEnd() && (IsNameStart(s_[pos_]) || IsDigit(s_[pos_]) || (dots && (s_[pos_] == '.' || s_[pos_] == '-')))) {
      *name += s_[pos_++];
    }
    return !AtEnd();
  }

  bool Literal(std::string* out, int depth) {
    SkipBlanks();
    if (depth > kMaxDepth || AtEnd()) return false;
    const char c = s_[pos_];
    if (c == '\'' || c == '"') return String(out);
    if (c == '[' || c == '(') return Sequence(out, c == '[' ? ']' : ')', depth);
    if (c == '{') return Mapping(out, depth);
    if (IsNameStart(c)) return Word(out);
    return Number(out);
  }

  bool Word(std::string* out) {
    std::string word;
    if (!Name(&word, false)) return false;
    if (word == "True" || word == "true") {
      *out += "true";
    } else if (word == "False" || word == "false") {
      *out += "false";
    } else if (word == "None" || word == "null") {
      *out += "null";
    } else {
      return false;
    }
    return true;
  }

  bool Number(std::string* out) {
    std::string number;
    while (!AtEnd() && (IsDigit(s_[pos_]) || std::string_view("+-.eE_").find(s_[pos_]) != std::string_view::npos)) {
      if (s_[pos_] != '_') number += s_[pos_];
      ++pos_;
    }
    if (pos_ >= s_.size()) return false;
    if (number.starts_with('+')) number.erase(0, 1);
    if (number.ends_with('.')) number += '0';
    if (!Json::accept(number)) return false;
    *out += number;
    return true;
  }

  bool String(std::string* out) {
    const char quote = s_[pos_++];
    std::string value;
    while (true) {
      if (AtEnd()) return false;
      const char c = s_[pos_++];
      if (c == quote) break;
      if (c != '\\') {
        value += c;
        continue;
      }
      if (AtEnd()) return false;
      if (!Escape(s_[pos_++], &value)) return false;
    }
    if (FirstInvalidUtf8(value) != std::string_view::npos) return false;
    *out += Json(value).dump();
    return true;
  }

  bool Escape(char c, std::string* value) {
    constexpr std::string_view kNames = "abfnrtv\\'\"/", kValues = "\a\b\f\n\r\t\v\\'\"/";
    if (const size_t at = kNames.find(c); at != std::string_view::npos) {
      *value += kValues[at];
      return true;
    }
    if (c == '\n') return true;
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      *value += '\\';
      *value += c;
      return true;
    }
    uint32_t code = 0;
    for (size_t i = 0; i < digits; ++i) {
      if (AtEnd()) return false;
      const char d = s_[pos_++];
      const int digit = IsDigit(d)             ? d - '0'
                        : d >= 'a' && d <= 'f' ? d - 'a' + 10
                        : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                               : -1;
      if (digit < 0) return false;
      code = code * 16 + static_cast<uint32_t>(digit);
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return false;
    AppendUtf8(code, value);
    return true;
  }

  bool Sequence(std::string* out, char close, int depth) {
    ++pos_;
    *out += '[';
    bool first = true;
    while (true) {
      SkipBlanks();
      if (AtEnd()) return false;
      if (s_[pos_] == close) break;
      if (!first && !Take(',')) return false;
      SkipBlanks();
      if (AtEnd()) return false;
      if (!first && s_[pos_] == close) break;
      if (!first) *out += ", ";
      if (!Literal(out, depth + 1)) return false;
      first = false;
    }
    ++pos_;
    *out += ']';
    return true;
  }

  bool Mapping(std::string* out, int depth) {
    ++pos_;
    *out += '{';
    bool first = true;
    while (true) {
      SkipBlanks();
      if (AtEnd()) return false;
      if (s_[pos_] == '}') break;
      if (!first && !Take(',')) return false;
      SkipBlanks();
      if (AtEnd()) return false;
      if (!first && s_[pos_] == '}') break;
      if (!first) *out += ", ";
      if (s_[pos_] != '\'' && s_[pos_] != '"') return false;
      if (!String(out) || !Take(':')) return false;
      *out += ": ";
      if (!Literal(out, depth + 1)) return false;
      first = false;
    }
    ++pos_;
    *out += '}';
    return true;
  }

  std::string_view s_;
  size_t pos_ = 0;
  bool short_ = false;
};

}  // namespace

PythonicCall ReadPythonicCall(std::string_view text) {
  return Reader(text.substr(0, kMaxCallBytes)).Run();
}

}  // namespace longstride::model

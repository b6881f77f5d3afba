#include "server/frontend/json_writer.h"

#include <charconv>
#include <cmath>

#include "server/frontend/utf8.h"

namespace longstride::frontend {
namespace {

template <typename T>
void AppendNumber(T value, std::string* out) {
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  out->append(buffer, result.ptr);
}

void AppendEscape(unsigned char c, std::string* out) {
  switch (c) {
    case '"':
      *out += "\\\"";
      return;
    case '\\':
      *out += "\\\\";
      return;
    case '\n':
      *out += "\\n";
      return;
    case '\r':
      *out += "\\r";
      return;
    case '\t':
      *out += "\\t";
      return;
    case '\b':
      *out += "\\b";
      return;
    case '\f':
      *out += "\\f";
      return;
    default:
      break;
  }
  static constexpr char kHex[] = "0123456789abcdef";
  *out += "\\u00";
  out->push_back(kHex[c >> 4]);
  out->push_back(kHex[c & 15]);
}

}  // namespace

void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  std::size_t plain = 0;  // start of the bytes that can be copied as they are
  std::size_t i = 0;
  while (i < text.size()) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
      ++i;
      continue;
    }
    if (c >= 0x80) {
      const std::size_t length = Utf8CharLength(text.substr(i));
      if (length > 0) {
        i += length;
        continue;
      }
    }
    out->append(text.substr(plain, i - plain));
    if (c >= 0x80) {
      *out += "\xEF\xBF\xBD";
    } else {
      AppendEscape(c, out);
    }
    plain = ++i;
  }
  out->append(text.substr(plain));
  out->push_back('"');
}

void JsonWriter::Int(int64_t value) {
  Comma();
  AppendNumber(value, out_);
}

void JsonWriter::Double(double value) {
  if (!std::isfinite(value)) return Null();
  Comma();
  AppendNumber(value, out_);
}

void JsonWriter::Float(float value) {
  if (!std::isfinite(value)) return Null();
  Comma();
  AppendNumber(value, out_);
}

}  // namespace longstride::frontend

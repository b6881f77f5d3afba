#include "model/text/jinja/format.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "absl/strings/str_format.h"
#include "config/base/status.h"
#include "model/text/unicode.h"

namespace longstride::model::jinja {
namespace {

absl::Status TooLong(size_t limit) {
  return absl::InvalidArgumentError(
      StrCat("the chat template makes a text of more than ", limit, " bytes"));
}

bool IsPrintable(char32_t c) {
  if (c == ' ') return true;
  return (U_MASK(u_charType(static_cast<UChar32>(c))) &
          (U_GC_C_MASK | U_GC_ZS_MASK | U_GC_ZL_MASK | U_GC_ZP_MASK)) == 0;
}

// Python's quotes: single, unless there are single and no double ones inside.
void AppendQuoted(std::string_view text, std::string* out) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  *out += quote;
  size_t pos = 0;
  while (pos < text.size()) {
    const size_t start = pos;
    const char32_t c = DecodeUtf8(text, &pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      *out += '\\';
      *out += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      *out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (IsPrintable(c)) {
      out->append(text, start, pos - start);
    } else {
      *out += c < 0x100     ? absl::StrFormat("\\x%02x", static_cast<uint32_t>(c))
              : c < 0x10000 ? absl::StrFormat("\\u%04x", static_cast<uint32_t>(c))
                            : absl::StrFormat("\\U%08x", static_cast<uint32_t>(c));
    }
  }
  *out += quote;
}

// Scalars as str() and repr() both write them; false for texts and containers.
bool AppendScalar(const Value& value, std::string* out) {
  if (value.IsUndefined()) return true;
  if (value.IsNone()) {
    *out += "None";
  } else if (const bool* b = value.Get<bool>()) {
    *out += *b ? "True" : "False";
  } else if (const int64_t* i = value.Get<int64_t>()) {
    *out += StrCat(*i);
  } else if (const double* d = value.Get<double>()) {
    *out += FormatFloat(*d);
  } else if (value.AsNamespace() != nullptr || value.AsLoop() != nullptr) {
    *out += StrCat("<", value.TypeName(), ">");
  } else if (const Callable* callable = value.AsCallable()) {
    *out += StrCat("<", callable->kind == Callable::kMacro ? "Macro" : "function", " ",
                   callable->name, ">");
  } else {
    return false;
  }
  return true;
}

absl::Status AppendRepr(const Value& value, size_t limit, std::string* out) {
  if (out->size() > limit) return TooLong(limit);
  if (const Text* text = value.AsText()) {
    if (text->size() > limit) return TooLong(limit);
    AppendQuoted(text->bytes(), out);
  } else if (value.IsUndefined()) {
    *out += "Undefined";
  } else if (const List* list = value.AsList()) {
    *out += list->is_tuple ? "(" : "[";
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) *out += ", ";
      RETURN_IF_ERROR(AppendRepr(list->items[i], limit, out));
    }
    if (list->is_tuple && list->items.size() == 1) *out += ",";
    *out += list->is_tuple ? ")" : "]";
  } else if (const Dict* dict = value.AsDict()) {
    *out += "{";
    bool first = true;
    for (const Dict::Entry& entry : dict->entries) {
      if (!first) *out += ", ";
      first = false;
      RETURN_IF_ERROR(AppendRepr(entry.key, limit, out));
      *out += ": ";
      RETURN_IF_ERROR(AppendRepr(entry.value, limit, out));
    }
    *out += "}";
  } else {
    AppendScalar(value, out);
  }
  return out->size() > limit ? TooLong(limit) : absl::OkStatus();
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, size_t limit) : style_(style), limit_(limit) {}

  absl::Status Write(const Value& value, int level) {
    if (out_.size() > limit_) return TooLong(limit_);
    if (const Text* text = value.AsText()) {
      if (text->size() > limit_) return TooLong(limit_);
      Quote(text->bytes());
    } else if (value.IsNone()) {
      out_ += "null";
    } else if (const bool* b = value.Get<bool>()) {
      out_ += *b ? "true" : "false";
    } else if (const double* d = value.Get<double>()) {
      out_ += std::isnan(*d)   ? "NaN"
              : std::isinf(*d) ? (*d < 0 ? "-Infinity" : "Infinity")
                               : FormatFloat(*d);
    } else if (const int64_t* i = value.Get<int64_t>()) {
      out_ += StrCat(*i);
    } else if (const List* list = value.AsList(); list != nullptr && !list->is_generator) {
      return WriteList(*list, level);
    } else if (const Dict* dict = value.AsDict()) {
      return WriteDict(*dict, level);
    } else {
      return absl::InvalidArgumentError(StrCat("the chat template turns a value of type ",
                                               value.TypeName(), " into JSON, which has none"));
    }
    return absl::OkStatus();
  }
  std::string Take() { return std::move(out_); }

 private:
  void NewLine(int level) {
    if (style_.indent < 0) return;
    out_ += '\n';
    out_.append(static_cast<size_t>(style_.indent) * static_cast<size_t>(level), ' ');
  }

  absl::Status WriteList(const List& list, int level) {
    out_ += '[';
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      NewLine(level + 1);
      RETURN_IF_ERROR(Write(list.items[i], level + 1));
    }
    if (!list.items.empty()) NewLine(level);
    out_ += ']';
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict, int level) {
    std::vector<const Dict::Entry*> entries;
    for (const Dict::Entry& entry : dict.entries) entries.push_back(&entry);
    if (style_.sort_keys) {
      for (const Dict::Entry* entry : entries) {
        if (entry->key.AsText() == nullptr) {
          return absl::InvalidArgumentError("the chat template sorts keys that are not all texts");
        }
      }
      std::stable_sort(entries.begin(), entries.end(), [](const auto* a, const auto* b) {
        return a->key.AsText()->bytes() < b->key.AsText()->bytes();
      });
    }
    out_ += '{';
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      NewLine(level + 1);
      WriteKey(entries[i]->key);
      out_ += style_.key_separator;
      RETURN_IF_ERROR(Write(entries[i]->value, level + 1));
    }
    if (!entries.empty()) NewLine(level);
    out_ += '}';
    return absl::OkStatus();
  }

  void WriteKey(const Value& key) {
    std::string text;
    if (const Text* t = key.AsText()) {
      text = t->bytes();
    } else if (key.IsNone()) {
      text = "null";
    } else if (const bool* b = key.Get<bool>()) {
      text = *b ? "true" : "false";
    } else {
      AppendScalar(key, &text);
    }
    Quote(text);
  }

  void Quote(std::string_view text) {
    out_ += '"';
    size_t pos = 0;
    while (pos < text.size()) {
      const size_t start = pos;
      const char32_t c = DecodeUtf8(text, &pos);
      switch (c) {
        case '"': out_ += "\\\""; continue;
        case '\\': out_ += "\\\\"; continue;
        case '\n': out_ += "\\n"; continue;
        case '\r': out_ += "\\r"; continue;
        case '\t': out_ += "\\t"; continue;
        case '\b': out_ += "\\b"; continue;
        case '\f': out_ += "\\f"; continue;
        default: break;
      }
      if (c >= 0x20 && (c < 0x7F || !style_.ensure_ascii)) {
        out_.append(text, start, pos - start);
      } else if (c < 0x10000) {
        out_ += absl::StrFormat("\\u%04x", static_cast<uint32_t>(c));
      } else {
        const uint32_t v = static_cast<uint32_t>(c) - 0x10000;
        out_ += absl::StrFormat("\\u%04x\\u%04x", 0xD800 + (v >> 10), 0xDC00 + (v & 0x3FF));
      }
    }
    out_ += '"';
  }

  const JsonStyle& style_;
  size_t limit_;
  std::string out_;
};

size_t CountCharacters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

// One conversion of a % format.
struct Conversion {
  bool left = false, plus = false, blank = false, zero = false, alternate = false;
  int width = 0, precision = -1;
  char type = 0;
};

absl::Status BadFormat(std::string_view what) {
  return absl::InvalidArgumentError(StrCat("the chat template's % format ", what));
}

absl::StatusOr<Conversion> ReadConversion(std::string_view format, size_t* pos) {
  Conversion c;
  for (; *pos < format.size(); ++*pos) {
    const char flag = format[*pos];
    if (flag == '-') {
      c.left = true;
    } else if (flag == '+') {
      c.plus = true;
    } else if (flag == ' ') {
      c.blank = true;
    } else if (flag == '0') {
      c.zero = true;
    } else if (flag == '#') {
      c.alternate = true;
    } else {
      break;
    }
  }
  const auto number = [&](int* value) {
    *value = 0;
    while (*pos < format.size() && format[*pos] >= '0' && format[*pos] <= '9' && *value < 1000) {
      *value = *value * 10 + (format[(*pos)++] - '0');
    }
    return *value < 1000;
  };
  if (!number(&c.width)) return BadFormat("has a width of 1000 or more");
  if (*pos < format.size() && format[*pos] == '.') {
    ++*pos;
    if (!number(&c.precision)) return BadFormat("has a precision of 1000 or more");
  }
  if (*pos >= format.size()) return BadFormat("is not complete");
  c.type = format[(*pos)++];
  return c;
}

absl::StatusOr<Text> Convert(const Conversion& c, const Value& value, size_t limit) {
  if (c.type == 's' || c.type == 'r') {
    Text text;
    if (c.type == 's') {
      ASSIGN_OR_RETURN(text, ToText(value, limit));
    } else {
      ASSIGN_OR_RETURN(std::string repr, Repr(value, limit));
      text = Text(std::move(repr), value.HasInput() ? Origin::kInput : Origin::kTemplate);
    }
    if (c.precision < 0) return text;
    size_t end = 0;
    for (int n = 0; n < c.precision && end < text.size(); ++n) (void)DecodeUtf8(text.view(), &end);
    return text.Slice(0, end);
  }
  const std::optional<double> number = value.AsNumber();
  if (!number.has_value()) {
    return BadFormat(StrCat("needs a number for %", std::string(1, c.type), ", got ", value.TypeName()));
  }
  std::string digits;
  bool negative = *number < 0;
  if (std::string_view("fFeEgG").find(c.type) != std::string_view::npos) {
    const int precision = c.precision < 0 ? 6 : c.precision;
    const double magnitude = std::abs(*number);
    switch (c.type) {
      case 'f':
      case 'F': digits = absl::StrFormat("%.*f", precision, magnitude); break;
      case 'e': digits = absl::StrFormat("%.*e", precision, magnitude); break;
      case 'E': digits = absl::StrFormat("%.*E", precision, magnitude); break;
      case 'g': digits = absl::StrFormat("%.*g", precision, magnitude); break;
      default: digits = absl::StrFormat("%.*G", precision, magnitude); break;
    }
  } else {
    std::optional<int64_t> integer = value.AsInt();
    if (!integer.has_value() && (c.type == 'd' || c.type == 'i') && std::abs(*number) < 9e18) {
      integer = static_cast<int64_t>(*number);
    }
    if (!integer.has_value()) return BadFormat("needs an integer");
    negative = *integer < 0;
    const uint64_t magnitude = negative ? 0 - static_cast<uint64_t>(*integer) : static_cast<uint64_t>(*integer);
    if (c.type == 'c') {
      if (negative || magnitude > 0x10FFFF || (magnitude >= 0xD800 && magnitude < 0xE000)) {
        return BadFormat("needs a character's code for %c");
      }
      AppendUtf8(static_cast<char32_t>(magnitude), &digits);
    } else {
      digits = c.type == 'x'   ? absl::StrFormat("%x", magnitude)
               : c.type == 'X' ? absl::StrFormat("%X", magnitude)
               : c.type == 'o' ? absl::StrFormat("%o", magnitude)
                               : absl::StrFormat("%d", magnitude);
      if (c.precision > 0 && digits.size() < static_cast<size_t>(c.precision)) {
        digits.insert(0, static_cast<size_t>(c.precision) - digits.size(), '0');
      }
      if (c.alternate && c.type != 'd' && c.type != 'i') {
        digits.insert(0, c.type == 'o' ? "0o" : c.type == 'x' ? "0x" : "0X");
      }
    }
  }
  const std::string sign = negative ? "-" : c.plus ? "+" : c.blank ? " " : "";
  const size_t size = sign.size() + digits.size();
  if (c.zero && !c.left && size < static_cast<size_t>(c.width)) {
    digits.insert(0, static_cast<size_t>(c.width) - size, '0');
  }
  return Text(sign + digits, Origin::kTemplate);
}

}  // namespace

std::string FormatFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(end.ptr - buffer));
  const size_t e = text.find('e');
  int exponent = 0;
  const std::string_view digits_of_exponent = text.substr(text[e + 1] == '+' ? e + 2 : e + 1);
  std::from_chars(digits_of_exponent.data(), digits_of_exponent.data() + digits_of_exponent.size(), exponent);
  if (exponent < -4 || exponent >= 16) {
    return StrCat(text.substr(0, e), "e", exponent < 0 ? "-" : "+", std::abs(exponent) < 10 ? "0" : "",
                  std::abs(exponent));
  }
  const auto fixed = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed);
  std::string out(buffer, static_cast<size_t>(fixed.ptr - buffer));
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

absl::StatusOr<std::string> Repr(const Value& value, size_t limit) {
  std::string out;
  RETURN_IF_ERROR(AppendRepr(value, limit, &out));
  return out;
}

absl::StatusOr<Text> ToText(const Value& value, size_t limit) {
  if (const Text* text = value.AsText()) return *text;
  std::string out;
  if (AppendScalar(value, &out)) return Text(std::move(out), Origin::kTemplate);
  RETURN_IF_ERROR(AppendRepr(value, limit, &out));
  return Text(std::move(out), value.HasInput() ? Origin::kInput : Origin::kTemplate);
}

absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style, size_t limit) {
  JsonWriter writer(style, limit);
  RETURN_IF_ERROR(writer.Write(value, 0));
  std::string out = writer.Take();
  if (out.size() > limit) return TooLong(limit);
  return out;
}

absl::StatusOr<Text> PercentFormat(const Text& format, const Value& arguments, size_t limit) {
  const List* tuple = arguments.AsList();
  if (tuple != nullptr && !tuple->is_tuple) tuple = nullptr;
  const size_t count = tuple != nullptr ? tuple->items.size() : 1;
  size_t used = 0;
  Text out;
  size_t pos = 0;
  const std::string_view source = format.view();
  while (pos < source.size()) {
    const size_t percent = std::min(source.find('%', pos), source.size());
    out.AppendSlice(format, pos, percent);
    if (percent == source.size()) break;
    pos = percent + 1;
    Value named;
    if (pos < source.size() && source[pos] == '(') {
      const size_t close = source.find(')', pos);
      const Dict* dict = arguments.AsDict();
      if (close == std::string_view::npos || dict == nullptr) return BadFormat("needs a mapping");
      const Value* found = dict->Find(source.substr(pos + 1, close - pos - 1));
      if (found == nullptr) return BadFormat("names a key that the mapping lacks");
      named = *found;
      pos = close + 1;
      used = count;
    }
    ASSIGN_OR_RETURN(const Conversion c, ReadConversion(source, &pos));
    if (c.type == '%') {
      out.Append("%", Origin::kTemplate);
      continue;
    }
    if (std::string_view("disrfFeEgGxXoc").find(c.type) == std::string_view::npos) {
      return BadFormat(StrCat("has the conversion %", std::string(1, c.type), ", which is not supported"));
    }
    if (named.IsUndefined()) {
      if (used >= count) return BadFormat("has more conversions than arguments");
      named = tuple != nullptr ? tuple->items[used] : arguments;
      ++used;
    }
    ASSIGN_OR_RETURN(const Text text, Convert(c, named, limit));
    const size_t width = CountCharacters(text.view());
    const std::string pad(width < static_cast<size_t>(c.width) ? static_cast<size_t>(c.width) - width : 0, ' ');
    if (!c.left) out.Append(pad, Origin::kTemplate);
    out.Append(text);
    if (c.left) out.Append(pad, Origin::kTemplate);
    if (out.size() > limit) return TooLong(limit);
  }
  if (used < count && arguments.AsDict() == nullptr) return BadFormat("has fewer conversions than arguments");
  return out;
}

}  // namespace longstride::model::jinja

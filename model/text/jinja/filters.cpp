// Jinja's filters, those that chat templates use and their neighbours.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>

#include "config/base/status.h"
#include "model/text/jinja/evaluator.h"
#include "model/text/jinja/format.h"
#include "model/text/jinja/operators.h"
#include "model/text/jinja/strings.h"
#include "model/text/unicode.h"

namespace longstride::model::jinja {
namespace {

using Result = absl::StatusOr<Value>;
using Filter = Result (*)(Evaluator&, const Value&, const CallArguments&);

absl::Status Wrong(std::string_view filter, std::string_view expected) {
  return absl::InvalidArgumentError(
      StrCat("the chat template uses the filter ", filter, ": needs ", expected));
}

absl::StatusOr<int64_t> IntOr(const CallArguments& arguments, size_t index, std::string_view name,
                              int64_t absent) {
  const Value* value = arguments.Find(index, name);
  if (value == nullptr || value->IsNone()) return absent;
  const auto number = value->AsInt();
  if (!number.has_value()) return Wrong(name, "an integer");
  return *number;
}

bool BoolOr(const CallArguments& arguments, size_t index, std::string_view name, bool absent) {
  const Value* value = arguments.Find(index, name);
  return value == nullptr ? absent : value->Truthy();
}

// The parts of "a.b.0", by which values are looked up inside items.
absl::StatusOr<std::vector<Value>> AttributePath(const Value& attribute) {
  std::vector<Value> path;
  const Text* text = attribute.AsText();
  if (text == nullptr) {
    if (!attribute.AsInt().has_value()) return Wrong("attribute", "a name or a number");
    path.push_back(attribute);
    return path;
  }
  for (const Text& part : Split(*text, ".", -1, false)) {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(part.bytes().data(), part.bytes().data() + part.size(), number);
    const bool is_number = error == std::errc() && end == part.bytes().data() + part.size() && number >= 0;
    path.push_back(is_number ? Value(number) : Value(part));
  }
  return path;
}

Result FollowPath(Evaluator& e, Value value, const std::vector<Value>& path) {
  for (const Value& part : path) {
    ASSIGN_OR_RETURN(value, e.GetItem(value, part));
  }
  return value;
}

// The items of `input` with what they are ordered or grouped by.
struct Keyed {
  Value key, item;
};
absl::StatusOr<std::vector<Keyed>> KeyItems(Evaluator& e, const Value& input, const Value* attribute,
                                            bool case_sensitive) {
  ASSIGN_OR_RETURN(std::vector<Value> items, e.Iterate(input));
  std::vector<Value> path;
  if (attribute != nullptr && !attribute->IsNone()) {
    ASSIGN_OR_RETURN(path, AttributePath(*attribute));
  }
  std::vector<Keyed> keyed;
  for (Value& item : items) {
    ASSIGN_OR_RETURN(Value key, FollowPath(e, item, path));
    if (!case_sensitive && key.AsText() != nullptr) {
      RETURN_IF_ERROR(e.ChargeText(key.AsText()->size()));
      key = Value(ChangeCase(*key.AsText(), Case::kLower));
    }
    keyed.push_back({std::move(key), std::move(item)});
  }
  return keyed;
}

// Stable. The order of all pairs must exist.
absl::Status SortByKey(Evaluator& e, std::vector<Keyed>* keyed) {
  absl::Status status;
  int64_t work = 0;
  for (const Keyed& k : *keyed) work += k.key.weight();
  RETURN_IF_ERROR(e.Charge(work * 16));
  std::stable_sort(keyed->begin(), keyed->end(), [&status](const Keyed& a, const Keyed& b) {
    const auto less = Less(a.key, b.key);
    if (!less.ok()) status = less.status();
    return less.ok() && *less;
  });
  return status;
}

// --- texts
Result ChangeCaseFilter(Evaluator& e, const Value& input, Case c) {
  ASSIGN_OR_RETURN(const Text text, e.ToText(input));
  return Value(ChangeCase(text, c));
}
Result Upper(Evaluator& e, const Value& v, const CallArguments&) { return ChangeCaseFilter(e, v, Case::kUpper); }
Result Lower(Evaluator& e, const Value& v, const CallArguments&) { return ChangeCaseFilter(e, v, Case::kLower); }
Result Capitalize(Evaluator& e, const Value& v, const CallArguments&) {
  return ChangeCaseFilter(e, v, Case::kCapitalize);
}

// Jinja's own rule: words are what blanks, dashes and opening brackets separate.
Result Title(Evaluator& e, const Value& input, const CallArguments&) {
  ASSIGN_OR_RETURN(const Text text, e.ToText(input));
  Text out;
  size_t begin = 0;
  const auto flush = [&](size_t end) {
    if (begin < end) out.Append(ChangeCase(text.Slice(begin, end), Case::kCapitalize));
  };
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const char32_t c = DecodeUtf8(text.view(), &pos);
    if (!IsWhiteSpace(c) && c != '-' && c != '(' && c != '{' && c != '[' && c != '<') continue;
    flush(at);
    out.AppendSlice(text, at, pos);
    begin = pos;
  }
  flush(text.size());
  return Value(std::move(out));
}

Result Trim(Evaluator& e, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const Text text, e.ToText(input));
  const Value* characters = arguments.Find(0, "chars");
  if (characters == nullptr || characters->IsNone()) return Value(Strip(text, Side::kBoth, std::nullopt));
  if (characters->AsText() == nullptr || characters->AsText()->size() > 256) {
    return Wrong("trim", "at most 256 bytes of characters");
  }
  return Value(Strip(text, Side::kBoth, characters->AsText()->view()));
}

Result ReplaceFilter(Evaluator& e, const Value& input, const CallArguments& arguments) {
  const Value *from = arguments.Find(0, "old"), *to = arguments.Find(1, "new");
  if (from == nullptr || to == nullptr) return Wrong("replace", "two texts");
  ASSIGN_OR_RETURN(const Text text, e.ToText(input));
  ASSIGN_OR_RETURN(const Text old, e.ToText(*from));
  ASSIGN_OR_RETURN(const Text other, e.ToText(*to));
  ASSIGN_OR_RETURN(const int64_t count, IntOr(arguments, 2, "count", -1));
  RETURN_IF_ERROR(e.Charge(static_cast<int64_t>((text.size() / 64 + 1) * (old.size() / 64 + 1))));
  ASSIGN_OR_RETURN(Text out, Replace(text, old, other, count, e.text_limit()));
  RETURN_IF_ERROR(e.ChargeText(out.size()));
  return Value(std::move(out));
}

Result String(Evaluator& e, const Value& input, const CallArguments&) {
  ASSIGN_OR_RETURN(Text text, e.ToText(input));
  return Value(std::move(text));
}

Result Escape(Evaluator& e, const Value& input, const CallArguments&) {
  ASSIGN_OR_RETURN(const Text text, e.ToText(input));
  Text out;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text.view()[i];
    const std::string_view entity = c == '&'    ? "&amp;"
                                    : c == '<'  ? "&lt;"
                                    : c == '>'  ? "&gt;"
                                    : c == '"'  ? "&#34;"
                                    : c == '\'' ? "&#39;"
                                                : "";
    if (entity.empty()) {
      out.AppendSlice(text, i, i + 1);
    } else {
      out.Append(entity, text.MixedOrigin());
    }
  }
  return Value(std::move(out));
}

Result Indent(Evaluator& e, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(Text text, e.ToText(input));
  Text prefix(std::string(4, ' '), Origin::kTemplate);
  if (const Value* width = arguments.Find(0, "width")) {
    if (width->AsText() != nullptr) {
      prefix = *width->AsText();
    } else {
      ASSIGN_OR_RETURN(const int64_t blanks, IntOr(arguments, 0, "width", 4));
      if (blanks < 0 || blanks > 1000) return Wrong("indent", "a width of 0 to 1000");
      prefix = Text(std::string(static_cast<size_t>(blanks), ' '), Origin::kTemplate);
    }
  }
  const bool first = BoolOr(arguments, 1, "first", false), blank = BoolOr(arguments, 2, "blank", false);
  text.Append("\n", Origin::kTemplate);
  const std::vector<Text> lines = SplitLines(text, false);
  Text out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n", Origin::kTemplate);
    if (i == 0 ? first : blank || !lines[i].empty()) out.Append(prefix);
    out.Append(lines[i]);
    RETURN_IF_ERROR(e.ChargeText(prefix.size() + lines[i].size()));
    if (out.size() > e.text_limit()) return Wrong("indent", "a result within the size limit");
  }
  return Value(std::move(out));
}

Result Truncate(Evaluator& e, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const Text text, e.ToText(input));
  ASSIGN_OR_RETURN(const int64_t length, IntOr(arguments, 0, "length", 255));
  ASSIGN_OR_RETURN(const int64_t leeway, IntOr(arguments, 3, "leeway", 5));
  Text end("...", Origin::kTemplate);
  if (const Value* given = arguments.Find(2, "end")) {
    ASSIGN_OR_RETURN(end, e.ToText(*given));
  }
  const int64_t end_length = CountCharacters(end.view());
  if (length < end_length || leeway < 0) return Wrong("truncate", "a length beyond that of its end");
  if (CountCharacters(text.view()) <= length + leeway) return Value(text);
  Text out = text.Slice(0, CharacterOffset(text.view(), length - end_length));
  if (!BoolOr(arguments, 1, "killwords", false)) {
    const size_t blank = out.view().rfind(' ');
    if (blank != std::string_view::npos) out = out.Slice(0, blank);
  }
  out.Append(end);
  return Value(std::move(out));
}

Result Center(Evaluator& e, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const Text text, e.ToText(input));
  ASSIGN_OR_RETURN(const int64_t width, IntOr(arguments, 0, "width", 80));
  ASSIGN_OR_RETURN(Text out, Pad(text, width, Align::kCenter, ' ', e.text_limit()));
  return Value(std::move(out));
}

Result WordCount(Evaluator& e, const Value& input, const CallArguments&) {
  ASSIGN_OR_RETURN(const Text text, e.ToText(input));
  int64_t count = 0;
  bool inside = false;
  for (size_t pos = 0; pos < text.size();) {
    const bool word = IsWordCharacter(DecodeUtf8(text.view(), &pos));
    count += word && !inside;
    inside = word;
  }
  return Value(count);
}

Result FormatFilter(Evaluator& e, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const Text text, e.ToText(input));
  Value values;
  if (!arguments.named.empty()) {
    Dict dict;
    for (const auto& [name, value] : arguments.named) dict.Put(name, value);
    ASSIGN_OR_RETURN(values, Value::MakeDict(std::move(dict)));
  } else {
    ASSIGN_OR_RETURN(values, e.MakeList(arguments.positional, /*is_tuple=*/true));
  }
  ASSIGN_OR_RETURN(Text out, PercentFormat(text, values, e.text_limit()));
  RETURN_IF_ERROR(e.ChargeText(out.size()));
  return Value(std::move(out));
}

Result ToJsonFilter(Evaluator& e, const Value& input, const CallArguments& arguments) {
  JsonStyle style;
  style.ensure_ascii = BoolOr(arguments, 0, "ensure_ascii", false);
  const Value* indent = arguments.Find(1, "indent");
  if (indent != nullptr && !indent->IsNone()) {
    ASSIGN_OR_RETURN(const int64_t blanks, IntOr(arguments, 1, "indent", 0));
    if (blanks > 32) return Wrong("tojson", "an indent of at most 32");
    style.indent = static_cast<int>(std::max<int64_t>(blanks, 0));
    style.item_separator.assign(1, ',');
  }
  const Value* separators = arguments.Find(2, "separators");
  if (separators != nullptr && !separators->IsNone()) {
    const List* pair = separators->AsList();
    if (pair == nullptr || pair->items.size() != 2 || pair->items[0].AsText() == nullptr ||
        pair->items[1].AsText() == nullptr) {
      return Wrong("tojson", "two separators");
    }
    style.item_separator = pair->items[0].AsText()->bytes();
    style.key_separator = pair->items[1].AsText()->bytes();
  }
  style.sort_keys = BoolOr(arguments, 3, "sort_keys", false);
  RETURN_IF_ERROR(e.Charge(input.weight()));
  ASSIGN_OR_RETURN(std::string json, ToJson(input, style, e.text_limit()));
  RETURN_IF_ERROR(e.ChargeText(json.size()));
  return Value(Text(std::move(json), input.HasInput() ? Origin::kInput : Origin::kTemplate));
}

// --- numbers
Result Abs(Evaluator&, const Value& input, const CallArguments&) {
  if (const auto i = input.AsInt()) {
    if (*i == INT64_MIN) return Wrong("abs", "an integer within 64 bits");
    return Value(*i < 0 ? -*i : *i);
  }
  if (const double* d = input.Get<double>()) return Value(std::abs(*d));
  return Wrong("abs", "a number");
}

// Text to number as Python's float() reads it: blanks around, underscores between digits.
std::optional<double> ParseFloat(const Text& text) {
  const Text stripped = Strip(text, Side::kBoth, std::nullopt);
  std::string s = stripped.bytes();
  std::erase(s, '_');
  if (s.starts_with('+')) s.erase(0, 1);
  double value = 0;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
  if (error != std::errc() || end != s.data() + s.size() || s.empty()) return std::nullopt;
  return value;
}

Result Int(Evaluator& e, const Value& input, const CallArguments& arguments) {
  const Value* given = arguments.Find(0, "default");
  const Value absent = given != nullptr ? *given : Value(int64_t{0});
  ASSIGN_OR_RETURN(const int64_t base, IntOr(arguments, 1, "base", 10));
  std::optional<double> number = input.AsNumber();
  if (const auto i = input.AsInt()) return Value(*i);
  if (const Text* text = input.AsText()) {
    RETURN_IF_ERROR(e.ChargeText(text->size()));
    std::string s = Strip(*text, Side::kBoth, std::nullopt).bytes();
    std::erase(s, '_');
    if (s.starts_with('+')) s.erase(0, 1);
    if (base < 2 || base > 36) return Wrong("int", "a base of 2 to 36");
    if (base == 16 && (s.starts_with("0x") || s.starts_with("0X"))) s.erase(0, 2);
    if (base == 8 && (s.starts_with("0o") || s.starts_with("0O"))) s.erase(0, 2);
    if (base == 2 && (s.starts_with("0b") || s.starts_with("0B"))) s.erase(0, 2);
    int64_t value = 0;
    const auto [end, error] =
        std::from_chars(s.data(), s.data() + s.size(), value, static_cast<int>(base));
    if (error == std::errc() && end == s.data() + s.size() && !s.empty()) return Value(value);
    number = ParseFloat(*text);
  }
  if (!number.has_value() || !std::isfinite(*number) || std::abs(*number) >= 9.2e18) return absent;
  return Value(static_cast<int64_t>(*number));
}

Result Float(Evaluator& e, const Value& input, const CallArguments& arguments) {
  std::optional<double> number = input.AsNumber();
  if (const Text* text = input.AsText()) {
    RETURN_IF_ERROR(e.ChargeText(text->size()));
    number = ParseFloat(*text);
  }
  if (number.has_value()) return Value(*number);
  const Value* absent = arguments.Find(0, "default");
  return absent != nullptr ? *absent : Value(0.0);
}

Result Round(Evaluator&, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const int64_t precision, IntOr(arguments, 0, "precision", 0));
  const Value* method = arguments.Find(1, "method");
  const std::string_view how = method == nullptr || method->AsText() == nullptr
                                   ? std::string_view("common")
                                   : method->AsText()->view();
  const auto number = input.AsNumber();
  if (!number.has_value()) return Wrong("round", "a number");
  if (precision < -15 || precision > 15) return Wrong("round", "a precision of -15 to 15");
  if (how == "common") {
    if (input.AsInt().has_value() && precision >= 0) return Value(*input.AsInt());
    // Correctly rounded, halves to even, as printf does it.
    if (precision >= 0) {
      char buffer[512];
      const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, *number,
                                              std::chars_format::fixed, static_cast<int>(precision));
      double value = *number;
      if (error == std::errc()) std::from_chars(buffer, end, value);
      return Value(value);
    }
    const double scale = std::pow(10.0, static_cast<double>(-precision));
    const double rounded = std::nearbyint(*number / scale) * scale;
    if (input.AsInt().has_value()) return Value(static_cast<int64_t>(rounded));
    return Value(rounded);
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (how == "ceil") return Value(std::ceil(*number * scale) / scale);
  if (how == "floor") return Value(std::floor(*number * scale) / scale);
  return Wrong("round", "the method common, ceil or floor");
}

// --- sequences
Result Length(Evaluator& e, const Value& input, const CallArguments&) {
  if (input.IsUndefined()) return Value(int64_t{0});
  if (const Text* text = input.AsText()) {
    RETURN_IF_ERROR(e.ChargeText(text->size()));
    return Value(CountCharacters(text->view()));
  }
  if (const List* list = input.AsList(); list != nullptr && !list->is_generator) {
    return Value(static_cast<int64_t>(list->items.size()));
  }
  if (const Dict* dict = input.AsDict()) return Value(static_cast<int64_t>(dict->entries.size()));
  return Wrong("length", StrCat("something with a length, got ", input.TypeName()));
}

Result Default(Evaluator&, const Value& input, const CallArguments& arguments) {
  const bool replace = input.IsUndefined() || (BoolOr(arguments, 1, "boolean", false) && !input.Truthy());
  if (!replace) return input;
  const Value* value = arguments.Find(0, "default_value");
  return value != nullptr ? *value : Value(Text());
}

Result FirstOrLast(Evaluator& e, const Value& input, bool first) {
  if (!first && input.AsList() != nullptr && input.AsList()->is_generator) {
    return Wrong("last", "a list; put |list before it");
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, e.Iterate(input));
  if (items.empty()) return Value(Undefined{"an item of an empty list"});
  return first ? std::move(items.front()) : std::move(items.back());
}
Result First(Evaluator& e, const Value& v, const CallArguments&) { return FirstOrLast(e, v, true); }
Result Last(Evaluator& e, const Value& v, const CallArguments&) { return FirstOrLast(e, v, false); }

Result ListFilter(Evaluator& e, const Value& input, const CallArguments&) {
  ASSIGN_OR_RETURN(std::vector<Value> items, e.Iterate(input));
  return e.MakeList(std::move(items));
}

Result Reverse(Evaluator& e, const Value& input, const CallArguments&) {
  if (input.AsText() != nullptr) {
    RETURN_IF_ERROR(e.Charge(input.weight()));
    return SliceValue(input, {.start = {}, .stop = {}, .step = -1});
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, e.Iterate(input));
  std::reverse(items.begin(), items.end());
  return Value::MakeGenerator(std::move(items));
}

Result Join(Evaluator& e, const Value& input, const CallArguments& arguments) {
  Text separator;
  if (const Value* d = arguments.Find(0, "d")) {
    ASSIGN_OR_RETURN(separator, e.ToText(*d));
  }
  ASSIGN_OR_RETURN(const std::vector<Keyed> keyed,
                   KeyItems(e, input, arguments.Find(1, "attribute"), /*case_sensitive=*/true));
  Text out;
  for (size_t i = 0; i < keyed.size(); ++i) {
    ASSIGN_OR_RETURN(const Text text, e.ToText(keyed[i].key));
    if (i > 0) out.Append(separator);
    out.Append(text);
    RETURN_IF_ERROR(e.ChargeText(separator.size() + text.size()));
    if (out.size() > e.text_limit()) return Wrong("join", "a result within the size limit");
  }
  return Value(std::move(out));
}

Result Sum(Evaluator& e, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Keyed> keyed,
                   KeyItems(e, input, arguments.Find(0, "attribute"), /*case_sensitive=*/true));
  const Value* start = arguments.Find(1, "start");
  Value total = start != nullptr ? *start : Value(int64_t{0});
  for (const Keyed& k : keyed) {
    ASSIGN_OR_RETURN(total, ApplyBinary(BinaryOp::kAdd, total, k.key, e.text_limit()));
    RETURN_IF_ERROR(e.Charge(total.weight()));
  }
  return total;
}

Result MinOrMax(Evaluator& e, const Value& input, const CallArguments& arguments, bool min) {
  ASSIGN_OR_RETURN(std::vector<Keyed> keyed, KeyItems(e, input, arguments.Find(1, "attribute"),
                                                      BoolOr(arguments, 0, "case_sensitive", false)));
  if (keyed.empty()) return Value(Undefined{"an item of an empty list"});
  size_t best = 0;
  for (size_t i = 1; i < keyed.size(); ++i) {
    ASSIGN_OR_RETURN(const bool less, min ? Less(keyed[i].key, keyed[best].key)
                                          : Less(keyed[best].key, keyed[i].key));
    if (less) best = i;
  }
  return std::move(keyed[best].item);
}
Result Min(Evaluator& e, const Value& v, const CallArguments& a) { return MinOrMax(e, v, a, true); }
Result Max(Evaluator& e, const Value& v, const CallArguments& a) { return MinOrMax(e, v, a, false); }

Result Sort(Evaluator& e, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(std::vector<Keyed> keyed, KeyItems(e, input, arguments.Find(2, "attribute"),
                                                      BoolOr(arguments, 1, "case_sensitive", false)));
  const bool reverse = BoolOr(arguments, 0, "reverse", false);
  // Python keeps the order of equal items when it sorts in reverse.
  if (reverse) std::reverse(keyed.begin(), keyed.end());
  RETURN_IF_ERROR(SortByKey(e, &keyed));
  if (reverse) std::reverse(keyed.begin(), keyed.end());
  std::vector<Value> items;
  for (Keyed& k : keyed) items.push_back(std::move(k.item));
  return e.MakeList(std::move(items));
}

Result Unique(Evaluator& e, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(std::vector<Keyed> keyed, KeyItems(e, input, arguments.Find(1, "attribute"),
                                                      BoolOr(arguments, 0, "case_sensitive", false)));
  Dict seen;
  std::vector<Value> items;
  for (Keyed& k : keyed) {
    if (seen.Find(k.key) != nullptr) continue;
    if (!seen.Set(std::move(k.key), Value(true))) return Wrong("unique", "texts or numbers");
    items.push_back(std::move(k.item));
  }
  return Value::MakeGenerator(std::move(items));
}

Result GroupBy(Evaluator& e, const Value& input, const CallArguments& arguments) {
  const Value* attribute = arguments.Find(0, "attribute");
  if (attribute == nullptr) return Wrong("groupby", "an attribute");
  const bool case_sensitive = BoolOr(arguments, 2, "case_sensitive", false);
  ASSIGN_OR_RETURN(std::vector<Keyed> keyed, KeyItems(e, input, attribute, case_sensitive));
  if (const Value* absent = arguments.Find(1, "default")) {
    for (Keyed& k : keyed) {
      if (k.key.IsUndefined()) k.key = *absent;
    }
  }
  RETURN_IF_ERROR(SortByKey(e, &keyed));
  ASSIGN_OR_RETURN(const std::vector<Value> path, AttributePath(*attribute));
  std::vector<Value> groups;
  for (size_t i = 0; i < keyed.size();) {
    // The group is named as its first item spells it.
    ASSIGN_OR_RETURN(Value name, FollowPath(e, keyed[i].item, path));
    if (name.IsUndefined()) name = keyed[i].key;
    const Value key = keyed[i].key;
    std::vector<Value> members;
    for (; i < keyed.size() && Equal(keyed[i].key, key); ++i) members.push_back(std::move(keyed[i].item));
    ASSIGN_OR_RETURN(Value list, e.MakeList(std::move(members)));
    ASSIGN_OR_RETURN(Value group, e.MakeList({std::move(name), std::move(list)}, /*is_tuple=*/true));
    groups.push_back(std::move(group));
  }
  return e.MakeList(std::move(groups));
}

// [first, last) stretches of the items; short ones are filled up.
Result Batch(Evaluator& e, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const int64_t size, IntOr(arguments, 0, "linecount", 0));
  if (size < 1 || size > 100'000) return Wrong("batch", "a size of 1 to 100000");
  const Value* fill = arguments.Find(1, "fill_with");
  ASSIGN_OR_RETURN(const std::vector<Value> items, e.Iterate(input));
  std::vector<Value> rows;
  for (size_t i = 0; i < items.size(); i += static_cast<size_t>(size)) {
    const size_t end = std::min(items.size(), i + static_cast<size_t>(size));
    std::vector<Value> row(items.begin() + static_cast<std::ptrdiff_t>(i),
                           items.begin() + static_cast<std::ptrdiff_t>(end));
    while (fill != nullptr && !fill->IsNone() && row.size() < static_cast<size_t>(size)) row.push_back(*fill);
    ASSIGN_OR_RETURN(Value list, e.MakeList(std::move(row)));
    rows.push_back(std::move(list));
  }
  return Value::MakeGenerator(std::move(rows));
}

Result SliceFilter(Evaluator& e, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const int64_t slices, IntOr(arguments, 0, "slices", 0));
  if (slices < 1 || slices > 100'000) return Wrong("slice", "1 to 100000 slices");
  const Value* fill = arguments.Find(1, "fill_with");
  ASSIGN_OR_RETURN(const std::vector<Value> items, e.Iterate(input));
  const size_t count = static_cast<size_t>(slices), each = items.size() / count, more = items.size() % count;
  std::vector<Value> columns;
  size_t begin = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t end = begin + each + (i < more ? 1 : 0);
    std::vector<Value> column(items.begin() + static_cast<std::ptrdiff_t>(begin),
                              items.begin() + static_cast<std::ptrdiff_t>(end));
    if (fill != nullptr && !fill->IsNone() && i >= more) column.push_back(*fill);
    ASSIGN_OR_RETURN(Value list, e.MakeList(std::move(column)));
    columns.push_back(std::move(list));
    begin = end;
  }
  return Value::MakeGenerator(std::move(columns));
}

Result Items(Evaluator& e, const Value& input, const CallArguments&) {
  if (input.IsUndefined()) return Value::MakeGenerator({});
  if (input.AsDict() == nullptr) return Wrong("items", "a mapping");
  std::vector<Value> items;
  for (const Dict::Entry& entry : input.AsDict()->entries) {
    ASSIGN_OR_RETURN(Value pair, e.MakeList({entry.key, entry.value}, /*is_tuple=*/true));
    items.push_back(std::move(pair));
  }
  return Value::MakeGenerator(std::move(items));
}

Result DictSort(Evaluator& e, const Value& input, const CallArguments& arguments) {
  if (input.AsDict() == nullptr) return Wrong("dictsort", "a mapping");
  const Value* by = arguments.Find(1, "by");
  const std::string_view what =
      by == nullptr || by->AsText() == nullptr ? std::string_view("key") : by->AsText()->view();
  if (what != "key" && what != "value") return Wrong("dictsort", "by key or value");
  std::vector<Keyed> keyed;
  for (const Dict::Entry& entry : input.AsDict()->entries) {
    Value key = what == "key" ? entry.key : entry.value;
    if (!BoolOr(arguments, 0, "case_sensitive", false) && key.AsText() != nullptr) {
      RETURN_IF_ERROR(e.ChargeText(key.AsText()->size()));
      key = Value(ChangeCase(*key.AsText(), Case::kLower));
    }
    ASSIGN_OR_RETURN(Value pair, e.MakeList({entry.key, entry.value}, /*is_tuple=*/true));
    keyed.push_back({std::move(key), std::move(pair)});
  }
  const bool reverse = BoolOr(arguments, 2, "reverse", false);
  if (reverse) std::reverse(keyed.begin(), keyed.end());
  RETURN_IF_ERROR(SortByKey(e, &keyed));
  if (reverse) std::reverse(keyed.begin(), keyed.end());
  std::vector<Value> items;
  for (Keyed& k : keyed) items.push_back(std::move(k.item));
  return e.MakeList(std::move(items));
}

// --- filters over filters and tests
// Arguments from number `first` on, and the named ones but `without`.
CallArguments Rest(const CallArguments& arguments, size_t first) {
  CallArguments rest;
  for (size_t i = first; i < arguments.positional.size(); ++i) {
    rest.positional.push_back(arguments.positional[i]);
  }
  rest.named = arguments.named;
  return rest;
}

Result Map(Evaluator& e, const Value& input, const CallArguments& arguments) {
  if (!input.Truthy()) return Value::MakeGenerator({});  // whatever it is, as Jinja has it
  ASSIGN_OR_RETURN(const std::vector<Value> items, e.Iterate(input));
  const Value* attribute = arguments.Find(SIZE_MAX, "attribute");
  const Value* absent = arguments.Find(SIZE_MAX, "default");
  std::vector<Value> out;
  if (arguments.positional.empty()) {
    if (attribute == nullptr) return Wrong("map", "a filter or an attribute");
    ASSIGN_OR_RETURN(const std::vector<Value> path, AttributePath(*attribute));
    for (const Value& item : items) {
      ASSIGN_OR_RETURN(Value value, FollowPath(e, item, path));
      out.push_back(value.IsUndefined() && absent != nullptr ? *absent : std::move(value));
    }
    return Value::MakeGenerator(std::move(out));
  }
  const Text* filter = arguments.positional[0].AsText();
  if (filter == nullptr) return Wrong("map", "the name of a filter");
  const CallArguments rest = Rest(arguments, 1);
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value value, e.ApplyFilter(filter->view(), item, rest));
    out.push_back(std::move(value));
  }
  return Value::MakeGenerator(std::move(out));
}

Result Choose(Evaluator& e, const Value& input, const CallArguments& arguments, bool by_attribute, bool keep) {
  if (!input.Truthy()) return Value::MakeGenerator({});  // whatever it is, as Jinja has it
  ASSIGN_OR_RETURN(const std::vector<Value> items, e.Iterate(input));
  std::vector<Value> path;
  const size_t at = by_attribute ? 1 : 0;
  if (by_attribute) {
    if (arguments.positional.empty()) return Wrong("selectattr", "an attribute");
    ASSIGN_OR_RETURN(path, AttributePath(arguments.positional[0]));
  }
  const Value* test = at < arguments.positional.size() ? &arguments.positional[at] : nullptr;
  if (test != nullptr && test->AsText() == nullptr) return Wrong("select", "the name of a test");
  const CallArguments rest = Rest(arguments, at + 1);
  std::vector<Value> out;
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(const Value value, FollowPath(e, item, path));
    bool holds = value.Truthy();
    if (test != nullptr) {
      ASSIGN_OR_RETURN(holds, e.ApplyTest(test->AsText()->view(), value, rest));
    }
    if (holds == keep) out.push_back(item);
  }
  return Value::MakeGenerator(std::move(out));
}
Result Select(Evaluator& e, const Value& v, const CallArguments& a) { return Choose(e, v, a, false, true); }
Result Reject(Evaluator& e, const Value& v, const CallArguments& a) { return Choose(e, v, a, false, false); }
Result SelectAttr(Evaluator& e, const Value& v, const CallArguments& a) { return Choose(e, v, a, true, true); }
Result RejectAttr(Evaluator& e, const Value& v, const CallArguments& a) { return Choose(e, v, a, true, false); }

Result Attr(Evaluator& e, const Value& input, const CallArguments& arguments) {
  const Value* name = arguments.Find(0, "name");
  if (name == nullptr || name->AsText() == nullptr) return Wrong("attr", "a name");
  if (input.AsDict() != nullptr && !HasMethod(input, name->AsText()->view())) {
    return Value(Undefined{StrCat("the attribute ", name->AsText()->bytes())});
  }
  return e.GetAttribute(input, name->AsText()->view());
}

const std::map<std::string_view, Filter>& Filters() {
  static const std::map<std::string_view, Filter> filters = {
      {"abs", Abs}, {"attr", Attr}, {"batch", Batch}, {"capitalize", Capitalize}, {"center", Center},
      {"count", Length}, {"d", Default}, {"default", Default}, {"dictsort", DictSort}, {"e", Escape},
      {"escape", Escape}, {"first", First}, {"float", Float}, {"format", FormatFilter},
      {"groupby", GroupBy}, {"indent", Indent}, {"int", Int}, {"items", Items}, {"join", Join},
      {"last", Last}, {"length", Length}, {"list", ListFilter}, {"lower", Lower}, {"map", Map},
      {"max", Max}, {"min", Min}, {"reject", Reject}, {"rejectattr", RejectAttr},
      {"replace", ReplaceFilter}, {"reverse", Reverse}, {"round", Round}, {"safe", String},
      {"select", Select}, {"selectattr", SelectAttr}, {"slice", SliceFilter}, {"sort", Sort},
      {"string", String}, {"sum", Sum}, {"title", Title}, {"tojson", ToJsonFilter}, {"trim", Trim},
      {"truncate", Truncate}, {"unique", Unique}, {"upper", Upper}, {"wordcount", WordCount},
  };
  return filters;
}

}  // namespace

absl::StatusOr<Value> Evaluator::ApplyFilter(std::string_view name, const Value& input,
                                             const CallArguments& arguments) {
  RETURN_IF_ERROR(Charge(1));
  const auto it = Filters().find(name);
  if (it == Filters().end()) {
    return absl::UnimplementedError(
        StrCat("the chat template uses the filter ", name, ", which is not supported"));
  }
  if (depth_ >= kMaxEvaluationDepth) {
    return absl::InvalidArgumentError("the chat template recurses too deeply");
  }
  ++depth_;
  absl::StatusOr<Value> value = it->second(*this, input, arguments);
  --depth_;
  return value;
}

}  // namespace longstride::model::jinja

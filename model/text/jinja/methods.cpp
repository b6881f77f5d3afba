// Methods of texts, objects, lists and loops.
#include <unicode/uchar.h>

#include <algorithm>

#include "config/base/status.h"
#include "model/text/jinja/evaluator.h"
#include "model/text/jinja/operators.h"
#include "model/text/jinja/strings.h"
#include "model/text/unicode.h"

namespace longstride::model::jinja {
namespace {

constexpr std::string_view kTextMethods[] = {
    "capitalize", "center",    "count",        "endswith",     "find",      "format",    "index",
    "isalnum",    "isalpha",   "isdecimal",    "isdigit",      "islower",   "isnumeric", "isspace",
    "isupper",    "join",      "ljust",        "lower",        "lstrip",    "partition", "removeprefix",
    "removesuffix", "replace", "rfind",        "rindex",       "rjust",     "rpartition", "rsplit",
    "rstrip",     "split",     "splitlines",   "startswith",   "strip",     "swapcase",  "title",
    "upper",      "zfill"};
constexpr std::string_view kDictMethods[] = {"copy", "get", "items", "keys", "values"};
constexpr std::string_view kListMethods[] = {"copy", "count", "index"};
// Methods that would change a value, which chat templates may not.
constexpr std::string_view kChangingMethods[] = {"append", "clear",  "extend",     "insert", "pop",
                                                 "popitem", "remove", "reverse", "setdefault", "sort",
                                                 "update"};

template <typename Names>
bool OneOf(const Names& names, std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

absl::Status Wrong(std::string_view method, std::string_view expected) {
  return absl::InvalidArgumentError(StrCat("the chat template calls ", method, "(): needs ", expected));
}

// A call of a text's method, with checked access to its arguments.
class TextMethod {
 public:
  TextMethod(Evaluator& evaluator, const Text& self, std::string_view name, const CallArguments& arguments)
      : e_(evaluator), self_(self), name_(name), arguments_(arguments) {}

  absl::StatusOr<Value> Run() {
    RETURN_IF_ERROR(e_.ChargeText(self_.size()));
    if (name_ == "upper") return Value(ChangeCase(self_, Case::kUpper));
    if (name_ == "lower") return Value(ChangeCase(self_, Case::kLower));
    if (name_ == "title") return Value(ChangeCase(self_, Case::kTitle));
    if (name_ == "capitalize") return Value(ChangeCase(self_, Case::kCapitalize));
    if (name_ == "swapcase") return Value(ChangeCase(self_, Case::kSwap));
    if (name_ == "strip") return StripSide(Side::kBoth);
    if (name_ == "lstrip") return StripSide(Side::kLeft);
    if (name_ == "rstrip") return StripSide(Side::kRight);
    if (name_ == "split" || name_ == "rsplit") return SplitParts();
    if (name_ == "splitlines") {
      const Value* keep = arguments_.Find(0, "keepends");
      return Texts(SplitLines(self_, keep != nullptr && keep->Truthy()));
    }
    if (name_ == "partition" || name_ == "rpartition") return Partition();
    if (name_ == "startswith" || name_ == "endswith") return Affix();
    if (name_ == "removeprefix" || name_ == "removesuffix") return RemoveAffix();
    if (name_ == "replace") return ReplaceText();
    if (name_ == "join") return Join();
    if (name_ == "format") return Format();
    if (name_ == "zfill" || name_ == "ljust" || name_ == "rjust" || name_ == "center") return Padded();
    if (name_.starts_with("is")) return Predicate();
    return Search();
  }

 private:
  absl::StatusOr<const Text*> TextArgument(size_t index, std::string_view name) {
    const Value* value = arguments_.Find(index, name);
    if (value == nullptr || value->AsText() == nullptr) return Wrong(name_, "a text");
    // A search may have to compare the argument at every place.
    RETURN_IF_ERROR(e_.Charge(static_cast<int64_t>((self_.size() / 64 + 1) *
                                                   (value->AsText()->size() / 64 + 1))));
    return value->AsText();
  }
  absl::StatusOr<int64_t> IntArgument(size_t index, std::string_view name, std::optional<int64_t> absent) {
    const Value* value = arguments_.Find(index, name);
    if (value == nullptr && absent.has_value()) return *absent;
    const auto number = value == nullptr ? std::nullopt : value->AsInt();
    if (!number.has_value()) return Wrong(name_, "an integer");
    return *number;
  }
  absl::StatusOr<Value> Texts(std::vector<Text> texts) {
    std::vector<Value> items(std::make_move_iterator(texts.begin()), std::make_move_iterator(texts.end()));
    return e_.MakeList(std::move(items));
  }

  absl::StatusOr<Value> StripSide(Side side) {
    const Value* characters = arguments_.Find(0, "chars");
    if (characters == nullptr || characters->IsNone()) return Value(Strip(self_, side, std::nullopt));
    ASSIGN_OR_RETURN(const Text* set, TextArgument(0, "chars"));
    if (set->size() > 256) return Wrong(name_, "at most 256 bytes of characters");
    return Value(Strip(self_, side, set->view()));
  }

  absl::StatusOr<Value> SplitParts() {
    std::optional<std::string_view> separator;
    const Value* given = arguments_.Find(0, "sep");
    if (given != nullptr && !given->IsNone()) {
      ASSIGN_OR_RETURN(const Text* text, TextArgument(0, "sep"));
      if (text->empty()) return Wrong(name_, "a separator that is not empty");
      separator = text->view();
    }
    ASSIGN_OR_RETURN(const int64_t most, IntArgument(1, "maxsplit", -1));
    return Texts(Split(self_, separator, most, name_ == "rsplit"));
  }

  absl::StatusOr<Value> Partition() {
    ASSIGN_OR_RETURN(const Text* separator, TextArgument(0, "sep"));
    if (separator->empty()) return Wrong(name_, "a separator that is not empty");
    const bool right = name_ == "rpartition";
    const size_t hit =
        right ? self_.view().rfind(separator->view()) : self_.view().find(separator->view());
    std::vector<Value> parts;
    if (hit == std::string_view::npos) {
      parts = {Value(right ? Text() : self_), Value(Text()), Value(right ? self_ : Text())};
    } else {
      const size_t end = hit + separator->size();
      parts = {Value(self_.Slice(0, hit)), Value(self_.Slice(hit, end)),
               Value(self_.Slice(end, self_.size()))};
    }
    return e_.MakeList(std::move(parts), /*is_tuple=*/true);
  }

  absl::StatusOr<Value> Affix() {
    const auto has = [this](const Text& affix) {
      return name_ == "startswith" ? self_.view().starts_with(affix.view())
                                   : self_.view().ends_with(affix.view());
    };
    const Value* affix = arguments_.Find(0, name_ == "startswith" ? "prefix" : "suffix");
    if (affix != nullptr && affix->AsList() != nullptr) {
      for (const Value& one : affix->AsList()->items) {
        if (one.AsText() == nullptr) return Wrong(name_, "texts");
        if (has(*one.AsText())) return Value(true);
      }
      return Value(false);
    }
    ASSIGN_OR_RETURN(const Text* text, TextArgument(0, "prefix"));
    return Value(has(*text));
  }

  absl::StatusOr<Value> RemoveAffix() {
    ASSIGN_OR_RETURN(const Text* affix, TextArgument(0, "affix"));
    if (name_ == "removeprefix" && self_.view().starts_with(affix->view())) {
      return Value(self_.Slice(affix->size(), self_.size()));
    }
    if (name_ == "removesuffix" && self_.view().ends_with(affix->view())) {
      return Value(self_.Slice(0, self_.size() - affix->size()));
    }
    return Value(self_);
  }

  absl::StatusOr<Value> ReplaceText() {
    ASSIGN_OR_RETURN(const Text* from, TextArgument(0, "old"));
    ASSIGN_OR_RETURN(const Text* to, TextArgument(1, "new"));
    ASSIGN_OR_RETURN(const int64_t count, IntArgument(2, "count", -1));
    ASSIGN_OR_RETURN(Text out, Replace(self_, *from, *to, count, e_.text_limit()));
    RETURN_IF_ERROR(e_.ChargeText(out.size()));
    return Value(std::move(out));
  }

  absl::StatusOr<Value> Join() {
    const Value* given = arguments_.Find(0, "iterable");
    if (given == nullptr) return Wrong(name_, "something to join");
    ASSIGN_OR_RETURN(const std::vector<Value> items, e_.Iterate(*given));
    Text out;
    for (size_t i = 0; i < items.size(); ++i) {
      const Text* text = items[i].AsText();
      if (text == nullptr) return Wrong(name_, "texts");
      if (i > 0) out.Append(self_);
      out.Append(*text);
      RETURN_IF_ERROR(e_.ChargeText(self_.size() + text->size()));
      if (out.size() > e_.text_limit()) return Wrong(name_, "a result within the size limit");
    }
    return Value(std::move(out));
  }

  // {} {0} {name} without conversions or format specifications
  absl::StatusOr<Value> Format() {
    Text out;
    const std::string_view s = self_.view();
    size_t next = 0;
    for (size_t pos = 0; pos < s.size();) {
      const size_t brace = std::min(s.find_first_of("{}", pos), s.size());
      out.AppendSlice(self_, pos, brace);
      if (brace == s.size()) break;
      if (s.substr(brace, 2) == "{{" || s.substr(brace, 2) == "}}") {
        out.AppendSlice(self_, brace, brace + 1);
        pos = brace + 2;
        continue;
      }
      const size_t close = s[brace] == '{' ? s.find('}', brace) : std::string_view::npos;
      if (close == std::string_view::npos) return Wrong(name_, "braces that match");
      const std::string_view field = s.substr(brace + 1, close - brace - 1);
      const Value* value = nullptr;
      if (field.empty()) {
        value = arguments_.Find(next++, "");
      } else if (std::all_of(field.begin(), field.end(), [](char c) { return c >= '0' && c <= '9'; }) &&
                 field.size() < 4) {
        value = arguments_.Find(static_cast<size_t>(std::stoi(std::string(field))), "");
      } else {
        value = arguments_.Find(SIZE_MAX, field);
      }
      if (value == nullptr) return Wrong(name_, "an argument for every field, and no format specification");
      ASSIGN_OR_RETURN(const Text text, e_.ToText(*value));
      out.Append(text);
      if (out.size() > e_.text_limit()) return Wrong(name_, "a result within the size limit");
      pos = close + 1;
    }
    return Value(std::move(out));
  }

  absl::StatusOr<Value> Padded() {
    ASSIGN_OR_RETURN(const int64_t width, IntArgument(0, "width", std::nullopt));
    char fill = ' ';
    if (name_ == "zfill") {
      const bool sign = self_.view().starts_with('-') || self_.view().starts_with('+');
      ASSIGN_OR_RETURN(Text digits, Pad(self_.Slice(sign ? 1 : 0, self_.size()), width - (sign ? 1 : 0),
                                        Align::kRight, '0', e_.text_limit()));
      Text out = self_.Slice(0, sign ? 1 : 0);
      out.Append(digits);
      return Value(std::move(out));
    }
    if (arguments_.Find(1, "fillchar") != nullptr) {
      ASSIGN_OR_RETURN(const Text* text, TextArgument(1, "fillchar"));
      if (text->size() != 1) return Wrong(name_, "one ASCII character to fill with");
      fill = text->view()[0];
    }
    const Align align = name_ == "ljust"   ? Align::kLeft
                        : name_ == "rjust" ? Align::kRight
                                           : Align::kCenter;
    ASSIGN_OR_RETURN(Text out, Pad(self_, width, align, fill, e_.text_limit()));
    return Value(std::move(out));
  }

  absl::StatusOr<Value> Predicate() {
    const std::string_view s = self_.view();
    if (name_ == "islower" || name_ == "isupper") return Value(IsCased(s, name_ == "islower"));
    const auto all = [s](auto is) { return Value(AllCharacters(s, is)); };
    if (name_ == "isspace") {
      return all([](char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); });
    }
    const auto alpha = [](char32_t c) {
      return (U_MASK(u_charType(static_cast<UChar32>(c))) & U_GC_L_MASK) != 0;
    };
    if (name_ == "isalpha") return all(alpha);
    const auto decimal = [](char32_t c) { return u_charType(static_cast<UChar32>(c)) == U_DECIMAL_DIGIT_NUMBER; };
    if (name_ == "isdecimal") return all(decimal);
    const auto numeric = [](char32_t c) {
      return u_getIntPropertyValue(static_cast<UChar32>(c), UCHAR_NUMERIC_TYPE) != U_NT_NONE;
    };
    if (name_ == "isnumeric") return all(numeric);
    if (name_ == "isdigit") {
      return all([](char32_t c) {
        const int type = u_getIntPropertyValue(static_cast<UChar32>(c), UCHAR_NUMERIC_TYPE);
        return type == U_NT_DECIMAL || type == U_NT_DIGIT;
      });
    }
    return all([&](char32_t c) { return alpha(c) || numeric(c); });
  }

  // find, rfind, index, rindex, count
  absl::StatusOr<Value> Search() {
    ASSIGN_OR_RETURN(const Text* needle, TextArgument(0, "sub"));
    const std::string_view s = self_.view();
    if (name_ == "count") {
      if (needle->empty()) return Value(CountCharacters(s) + 1);
      int64_t count = 0;
      for (size_t pos = s.find(needle->view()); pos != std::string_view::npos;
           pos = s.find(needle->view(), pos + needle->size())) {
        ++count;
      }
      return Value(count);
    }
    ASSIGN_OR_RETURN(const int64_t start, IntArgument(1, "start", 0));
    const int64_t length = CountCharacters(s);
    const size_t from = CharacterOffset(s, start < 0 ? std::max<int64_t>(start + length, 0) : start);
    size_t hit = name_.starts_with('r') ? s.rfind(needle->view()) : s.find(needle->view(), from);
    if (hit != std::string_view::npos && hit < from) hit = std::string_view::npos;
    if (hit != std::string_view::npos) return Value(CountCharacters(s.substr(0, hit)));
    if (name_.ends_with("find")) return Value(int64_t{-1});
    return Wrong(name_, "a text that is there");
  }

  Evaluator& e_;
  const Text& self_;
  std::string_view name_;
  const CallArguments& arguments_;
};

absl::StatusOr<Value> CallDictMethod(Evaluator& e, const Dict& self, std::string_view name,
                                     const CallArguments& arguments) {
  if (name == "get") {
    const Value* key = arguments.Find(0, "key");
    if (key == nullptr) return Wrong(name, "a key");
    if (const Value* value = self.Find(*key)) return *value;
    const Value* absent = arguments.Find(1, "default");
    return absent != nullptr ? *absent : Value(None{});
  }
  if (name == "copy") return Value::MakeDict(self);
  std::vector<Value> items;
  for (const Dict::Entry& entry : self.entries) {
    if (name == "keys") {
      items.push_back(entry.key);
    } else if (name == "values") {
      items.push_back(entry.value);
    } else {
      ASSIGN_OR_RETURN(Value pair, e.MakeList({entry.key, entry.value}, /*is_tuple=*/true));
      items.push_back(std::move(pair));
    }
  }
  return e.MakeList(std::move(items));
}

absl::StatusOr<Value> CallListMethod(Evaluator& e, const Value& self, std::string_view name,
                                     const CallArguments& arguments) {
  const List& list = *self.AsList();
  if (name == "copy") return self;
  const Value* wanted = arguments.Find(0, "value");
  if (wanted == nullptr) return Wrong(name, "a value");
  RETURN_IF_ERROR(e.Charge(self.weight()));
  int64_t count = 0;
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (!Equal(list.items[i], *wanted)) continue;
    if (name == "index") return Value(static_cast<int64_t>(i));
    ++count;
  }
  if (name == "index") return Wrong(name, "a value that is in the list");
  return Value(count);
}

absl::StatusOr<Value> CallLoopMethod(LoopState& loop, std::string_view name,
                                     const CallArguments& arguments) {
  if (name == "cycle") {
    const auto& values = arguments.positional;
    if (values.empty()) return Wrong("loop.cycle", "values");
    return values[loop.index0 % values.size()];
  }
  if (arguments.positional.empty()) return Wrong("loop.changed", "a value");
  const Value& now = arguments.positional[0];
  const bool changed = !loop.has_changed || !Equal(now, loop.last_changed);
  loop.has_changed = true;
  loop.last_changed = now;
  return Value(changed);
}

}  // namespace

bool HasMethod(const Value& self, std::string_view name) {
  if (self.AsText() != nullptr) return OneOf(kTextMethods, name);
  if (self.AsDict() != nullptr) {
    return OneOf(kDictMethods, name) || name == "clear" || name == "pop" || name == "popitem" ||
           name == "setdefault" || name == "update";
  }
  if (const List* list = self.AsList(); list != nullptr && !list->is_generator) {
    if (OneOf(kListMethods, name)) return name != "copy" || !list->is_tuple;
    return !list->is_tuple && OneOf(kChangingMethods, name) && name != "popitem" &&
           name != "setdefault" && name != "update";
  }
  return false;
}

absl::StatusOr<Value> CallMethod(Evaluator& evaluator, const Value& self, std::string_view name,
                                 const CallArguments& arguments) {
  if (const Text* text = self.AsText()) return TextMethod(evaluator, *text, name, arguments).Run();
  if (LoopState* loop = self.AsLoop()) return CallLoopMethod(*loop, name, arguments);
  if (OneOf(kChangingMethods, name)) {
    return absl::InvalidArgumentError(
        StrCat("the chat template calls ", name, "(), but lists and objects cannot be changed"));
  }
  if (const Dict* dict = self.AsDict()) return CallDictMethod(evaluator, *dict, name, arguments);
  return CallListMethod(evaluator, self, name, arguments);
}

}  // namespace longstride::model::jinja

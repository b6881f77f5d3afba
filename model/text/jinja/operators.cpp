#include "model/text/jinja/operators.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "config/base/status.h"
#include "model/text/jinja/format.h"
#include "model/text/unicode.h"

namespace longstride::model::jinja {
namespace {

std::string_view Sign(BinaryOp op) {
  switch (op) {
    case BinaryOp::kAdd: return "+";
    case BinaryOp::kSubtract: return "-";
    case BinaryOp::kMultiply: return "*";
    case BinaryOp::kDivide: return "/";
    case BinaryOp::kFloorDivide: return "//";
    case BinaryOp::kModulo: return "%";
    case BinaryOp::kPower: return "**";
  }
  return "?";
}

absl::Status Overflow() {
  return absl::InvalidArgumentError("the chat template makes an integer of more than 64 bits");
}

absl::Status ZeroDivision() {
  return absl::InvalidArgumentError("the chat template divides by zero");
}

absl::StatusOr<Value> PowerInt(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return ZeroDivision();
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return Overflow();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return Overflow();
  }
  return Value(result);
}

absl::StatusOr<Value> IntegerOp(BinaryOp op, int64_t a, int64_t b) {
  int64_t result = 0;
  const bool lowest = a == std::numeric_limits<int64_t>::min() && b == -1;
  switch (op) {
    case BinaryOp::kAdd:
      if (__builtin_add_overflow(a, b, &result)) return Overflow();
      return Value(result);
    case BinaryOp::kSubtract:
      if (__builtin_sub_overflow(a, b, &result)) return Overflow();
      return Value(result);
    case BinaryOp::kMultiply:
      if (__builtin_mul_overflow(a, b, &result)) return Overflow();
      return Value(result);
    case BinaryOp::kDivide:
      if (b == 0) return ZeroDivision();
      return Value(static_cast<double>(a) / static_cast<double>(b));
    case BinaryOp::kFloorDivide:
      if (b == 0) return ZeroDivision();
      if (lowest) return Overflow();
      return Value(a / b - static_cast<int64_t>(a % b != 0 && (a < 0) != (b < 0)));
    case BinaryOp::kModulo:
      if (b == 0) return ZeroDivision();
      if (lowest) return Value(int64_t{0});
      result = a % b;
      return Value(result != 0 && (result < 0) != (b < 0) ? result + b : result);
    case BinaryOp::kPower: return PowerInt(a, b);
  }
  return Overflow();
}

absl::StatusOr<Value> FloatOp(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd: return Value(a + b);
    case BinaryOp::kSubtract: return Value(a - b);
    case BinaryOp::kMultiply: return Value(a * b);
    case BinaryOp::kPower: return Value(std::pow(a, b));
    default: break;
  }
  if (b == 0) return ZeroDivision();
  if (op == BinaryOp::kDivide) return Value(a / b);
  if (op == BinaryOp::kFloorDivide) return Value(std::floor(a / b));
  const double rest = std::fmod(a, b);
  return Value(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
}

absl::Status TooLong(size_t limit) {
  return absl::InvalidArgumentError(
      StrCat("the chat template makes a text or list longer than the limit of ", limit));
}

// text * n and list * n
absl::StatusOr<Value> Repeat(const Value& value, int64_t times, size_t limit) {
  times = std::max<int64_t>(times, 0);
  const Text* text = value.AsText();
  const size_t size = text != nullptr ? text->size() : value.AsList()->items.size();
  if (size != 0 && static_cast<uint64_t>(times) > limit / size) return TooLong(limit);
  if (text != nullptr) {
    Text out;
    for (int64_t i = 0; i < times && size > 0; ++i) out.Append(*text);
    return Value(std::move(out));
  }
  const List& list = *value.AsList();
  std::vector<Value> items;
  for (int64_t i = 0; i < times && size > 0; ++i) {
    items.insert(items.end(), list.items.begin(), list.items.end());
  }
  return Value::MakeList(std::move(items), list.is_tuple);
}

// Python's rules for a slice over `length` elements: the indices visited are start, start + step, ...
struct Resolved {
  int64_t start, stop, step;
};
absl::StatusOr<Resolved> ResolveSlice(const SliceBounds& bounds, int64_t length) {
  const int64_t step = bounds.step.value_or(1);
  if (step == 0) return absl::InvalidArgumentError("the chat template slices with a step of zero");
  const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? length : length - 1;
  const auto resolve = [&](std::optional<int64_t> bound, int64_t absent) {
    if (!bound.has_value()) return absent;
    const int64_t index = *bound < 0 ? std::max(*bound, -length - 1) + length : *bound;
    return std::clamp(index, low, high);
  };
  return Resolved{resolve(bounds.start, step > 0 ? low : high), resolve(bounds.stop, step > 0 ? high : low),
                  std::clamp<int64_t>(step, -length - 1, length + 1)};
}

}  // namespace

absl::Status UndefinedError(const Value& value) {
  const auto* undefined = value.Get<Undefined>();
  return absl::InvalidArgumentError(StrCat(
      "the chat template uses ",
      undefined == nullptr || undefined->what.empty() ? "a value" : undefined->what, ", which is undefined"));
}

int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

size_t CharacterOffset(std::string_view text, int64_t index) {
  size_t pos = 0;
  for (int64_t i = 0; i < index && pos < text.size(); ++i) {
    ++pos;
    while (pos < text.size() && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) ++pos;
  }
  return pos;
}

absl::StatusOr<Value> ApplyBinary(BinaryOp op, const Value& left, const Value& right, size_t limit) {
  if (left.IsUndefined()) return UndefinedError(left);
  const Text* text = left.AsText();
  if (op == BinaryOp::kModulo && text != nullptr) {
    ASSIGN_OR_RETURN(Text out, PercentFormat(*text, right, limit));
    return Value(std::move(out));
  }
  if (right.IsUndefined()) return UndefinedError(right);
  const auto a = left.AsInt(), b = right.AsInt();
  if (a.has_value() && b.has_value()) return IntegerOp(op, *a, *b);
  if (left.AsNumber().has_value() && right.AsNumber().has_value()) {
    return FloatOp(op, *left.AsNumber(), *right.AsNumber());
  }
  if (op == BinaryOp::kAdd && text != nullptr && right.AsText() != nullptr) {
    if (text->size() + right.AsText()->size() > limit) return TooLong(limit);
    Text out = *text;
    out.Append(*right.AsText());
    return Value(std::move(out));
  }
  const List *p = left.AsList(), *q = right.AsList();
  if (op == BinaryOp::kAdd && p != nullptr && q != nullptr && p->is_tuple == q->is_tuple &&
      !p->is_generator && !q->is_generator) {
    std::vector<Value> items = p->items;
    items.insert(items.end(), q->items.begin(), q->items.end());
    return Value::MakeList(std::move(items), p->is_tuple);
  }
  if (op == BinaryOp::kMultiply && (text != nullptr || p != nullptr) && b.has_value()) {
    return Repeat(left, *b, limit);
  }
  if (op == BinaryOp::kMultiply && a.has_value() && (right.AsText() != nullptr || q != nullptr)) {
    return Repeat(right, *a, limit);
  }
  return absl::InvalidArgumentError(StrCat("the chat template uses ", Sign(op), " on values of types ",
                                           left.TypeName(), " and ", right.TypeName()));
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item) {
  if (const Text* text = container.AsText()) {
    if (item.AsText() == nullptr) {
      return absl::InvalidArgumentError(
          StrCat("the chat template looks for a value of type ", item.TypeName(), " in a text"));
    }
    return text->view().find(item.AsText()->view()) != std::string_view::npos;
  }
  if (const List* list = container.AsList()) {
    return std::any_of(list->items.begin(), list->items.end(),
                       [&item](const Value& v) { return Equal(v, item); });
  }
  if (const Dict* dict = container.AsDict()) return dict->Find(item) != nullptr;
  if (container.IsUndefined()) return false;
  return absl::InvalidArgumentError(
      StrCat("the chat template uses in on a value of type ", container.TypeName()));
}

absl::StatusOr<bool> ApplyCompare(CompareOp op, const Value& left, const Value& right) {
  switch (op) {
    case CompareOp::kEqual: return Equal(left, right);
    case CompareOp::kNotEqual: return !Equal(left, right);
    case CompareOp::kIn: return Contains(right, left);
    case CompareOp::kNotIn: {
      ASSIGN_OR_RETURN(const bool in, Contains(right, left));
      return !in;
    }
    default: break;
  }
  if (left.IsUndefined()) return UndefinedError(left);
  if (right.IsUndefined()) return UndefinedError(right);
  if (op == CompareOp::kLess) return Less(left, right);
  if (op == CompareOp::kGreater) return Less(right, left);
  // NaN compares false either way, so "not greater" will not do.
  ASSIGN_OR_RETURN(const bool less, op == CompareOp::kLessEqual ? Less(left, right) : Less(right, left));
  return less || Equal(left, right);
}

absl::StatusOr<Value> SliceValue(const Value& value, const SliceBounds& bounds) {
  if (const List* list = value.AsList(); list != nullptr && !list->is_generator) {
    ASSIGN_OR_RETURN(const Resolved s, ResolveSlice(bounds, static_cast<int64_t>(list->items.size())));
    std::vector<Value> items;
    for (int64_t i = s.start; s.step > 0 ? i < s.stop : i > s.stop; i += s.step) {
      items.push_back(list->items[static_cast<size_t>(i)]);
    }
    return Value::MakeList(std::move(items), list->is_tuple);
  }
  if (const Text* text = value.AsText()) {
    const int64_t length = CountCharacters(text->view());
    ASSIGN_OR_RETURN(const Resolved s, ResolveSlice(bounds, length));
    if (s.step == 1) {
      const size_t begin = CharacterOffset(text->view(), s.start);
      const size_t end = begin + CharacterOffset(text->view().substr(begin), s.stop - s.start);
      return Value(text->Slice(begin, end));
    }
    std::vector<size_t> offsets;  // of all characters
    for (size_t pos = 0; pos < text->size(); (void)DecodeUtf8(text->view(), &pos)) offsets.push_back(pos);
    offsets.push_back(text->size());
    Text out;
    for (int64_t i = s.start; s.step > 0 ? i < s.stop : i > s.stop; i += s.step) {
      const auto at = static_cast<size_t>(i);
      out.AppendSlice(*text, offsets[at], offsets[at + 1]);
    }
    return Value(std::move(out));
  }
  if (value.IsUndefined()) return UndefinedError(value);
  return absl::InvalidArgumentError(
      StrCat("the chat template slices a value of type ", value.TypeName()));
}

}  // namespace longstride::model::jinja

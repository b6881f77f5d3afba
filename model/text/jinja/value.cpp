#include "model/text/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "config/base/status.h"
#include "model/text/jinja/format.h"

namespace longstride::model::jinja {
namespace {

// A text that is the same for keys that Python holds equal; empty for what cannot be a key.
std::string KeyOf(const Value& key) {
  if (const Text* text = key.AsText()) return StrCat("s", text->bytes());
  if (const auto i = key.AsInt()) return StrCat("n", *i);
  if (const double* d = key.Get<double>()) {
    const bool whole = std::abs(*d) < 9e15 && *d == std::floor(*d);
    return whole ? StrCat("n", static_cast<int64_t>(*d)) : StrCat("f", FormatFloat(*d));
  }
  return key.IsNone() ? "z" : "";
}

absl::Status TooLarge(std::string_view what, int64_t most) {
  return absl::InvalidArgumentError(StrCat("the chat template makes a list or object ", what,
                                           " than the limit of ", most));
}

// What a container has to know of its parts.
struct Measure {
  int depth = 1;
  int64_t weight = 1;
  bool has_input = false;
  void Add(const Value& value) {
    depth = std::max(depth, value.depth() + 1);
    weight = std::min(weight + value.weight(), kMaxValueWeight + 1);
    has_input = has_input || value.HasInput();
  }
  absl::Status Check() const {
    if (depth > kMaxValueDepth) return TooLarge("nested deeper", kMaxValueDepth);
    if (weight > kMaxValueWeight) return TooLarge("of more values", kMaxValueWeight);
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<Value> Value::MakeSequence(List list) {
  Measure measure;
  for (const Value& item : list.items) measure.Add(item);
  RETURN_IF_ERROR(measure.Check());
  list.depth = measure.depth;
  list.weight = measure.weight;
  list.has_input = measure.has_input;
  Value value;
  value.storage_ = std::make_shared<const List>(std::move(list));
  return value;
}

absl::StatusOr<Value> Value::MakeList(std::vector<Value> items, bool is_tuple) {
  List list;
  list.items = std::move(items);
  list.is_tuple = is_tuple;
  return MakeSequence(std::move(list));
}

absl::StatusOr<Value> Value::MakeGenerator(std::vector<Value> items) {
  List list;
  list.items = std::move(items);
  list.is_generator = true;
  return MakeSequence(std::move(list));
}

absl::StatusOr<Value> Value::MakeDict(Dict dict) {
  Measure measure;
  for (const Dict::Entry& entry : dict.entries) {
    measure.Add(entry.key);
    measure.Add(entry.value);
  }
  RETURN_IF_ERROR(measure.Check());
  dict.depth = measure.depth;
  dict.weight = measure.weight;
  dict.has_input = measure.has_input;
  Value value;
  value.storage_ = std::make_shared<const Dict>(std::move(dict));
  return value;
}

std::optional<int64_t> Value::AsInt() const {
  if (const int64_t* i = Get<int64_t>()) return *i;
  if (const bool* b = Get<bool>()) return *b ? 1 : 0;
  return std::nullopt;
}

std::optional<double> Value::AsNumber() const {
  if (const double* d = Get<double>()) return *d;
  if (const auto i = AsInt()) return static_cast<double>(*i);
  return std::nullopt;
}

bool Value::Truthy() const {
  if (IsUndefined() || IsNone()) return false;
  if (const auto number = AsNumber()) return *number != 0;
  if (const Text* text = AsText()) return !text->empty();
  if (const List* list = AsList()) return list->is_generator || !list->items.empty();
  if (const Dict* dict = AsDict()) return !dict->entries.empty();
  return true;
}

std::string_view Value::TypeName() const {
  if (IsUndefined()) return "Undefined";
  if (IsNone()) return "NoneType";
  if (Get<bool>() != nullptr) return "bool";
  if (Get<int64_t>() != nullptr) return "int";
  if (Get<double>() != nullptr) return "float";
  if (AsText() != nullptr) return "str";
  if (const List* list = AsList()) {
    return list->is_generator ? "generator" : list->is_tuple ? "tuple" : "list";
  }
  if (AsDict() != nullptr) return "dict";
  if (AsNamespace() != nullptr) return "Namespace";
  if (AsLoop() != nullptr) return "LoopContext";
  return "function";
}

int Value::depth() const {
  if (const List* list = AsList()) return list->depth;
  if (const Dict* dict = AsDict()) return dict->depth;
  if (const Callable* callable = AsCallable()) return callable->self.depth();
  return 0;
}

int64_t Value::weight() const {
  if (const Text* text = AsText()) return 1 + static_cast<int64_t>(text->size() / 64);
  if (const List* list = AsList()) return list->weight;
  if (const Dict* dict = AsDict()) return dict->weight;
  return 1;
}

bool Value::HasInput() const {
  if (const Text* text = AsText()) return text->HasInput();
  if (const List* list = AsList()) return list->has_input;
  if (const Dict* dict = AsDict()) return dict->has_input;
  return false;
}

const Value* Dict::Find(const Value& key) const {
  const auto it = index_.find(KeyOf(key));
  return it == index_.end() ? nullptr : &entries[it->second].value;
}

const Value* Dict::Find(std::string_view key) const {
  const auto it = index_.find(StrCat("s", key));
  return it == index_.end() ? nullptr : &entries[it->second].value;
}

bool Dict::Set(Value key, Value value) {
  std::string name = KeyOf(key);
  if (name.empty()) return false;
  const auto [it, added] = index_.try_emplace(std::move(name), entries.size());
  if (added) {
    entries.push_back({std::move(key), std::move(value)});
  } else {
    entries[it->second].value = std::move(value);
  }
  return true;
}

bool Equal(const Value& a, const Value& b) {
  if (a.Get<int64_t>() != nullptr && b.Get<int64_t>() != nullptr) {
    return *a.Get<int64_t>() == *b.Get<int64_t>();
  }
  if (const auto x = a.AsNumber()) {
    const auto y = b.AsNumber();
    return y.has_value() && *x == *y;
  }
  if (a.IsUndefined() || a.IsNone()) {
    return a.IsUndefined() == b.IsUndefined() && a.IsNone() == b.IsNone();
  }
  if (const Text* x = a.AsText()) {
    const Text* y = b.AsText();
    return y != nullptr && x->bytes() == y->bytes();
  }
  if (const List* x = a.AsList()) {
    const List* y = b.AsList();
    return y != nullptr && x->is_tuple == y->is_tuple &&
           std::equal(x->items.begin(), x->items.end(), y->items.begin(), y->items.end(), Equal);
  }
  if (const Dict* x = a.AsDict()) {
    const Dict* y = b.AsDict();
    if (y == nullptr || x->entries.size() != y->entries.size()) return false;
    return std::all_of(x->entries.begin(), x->entries.end(), [y](const Dict::Entry& e) {
      const Value* other = y->Find(e.key);
      return other != nullptr && Equal(e.value, *other);
    });
  }
  if (a.AsNamespace() != nullptr) return a.AsNamespace() == b.AsNamespace();
  if (a.AsLoop() != nullptr) return a.AsLoop() == b.AsLoop();
  return a.AsCallable() != nullptr && a.AsCallable() == b.AsCallable();
}

absl::StatusOr<bool> Less(const Value& a, const Value& b) {
  if (a.Get<int64_t>() != nullptr && b.Get<int64_t>() != nullptr) {
    return *a.Get<int64_t>() < *b.Get<int64_t>();
  }
  if (a.AsNumber().has_value() && b.AsNumber().has_value()) return *a.AsNumber() < *b.AsNumber();
  const Text* x = a.AsText();
  const Text* y = b.AsText();
  if (x != nullptr && y != nullptr) return x->bytes() < y->bytes();
  const List* p = a.AsList();
  const List* q = b.AsList();
  if (p != nullptr && q != nullptr && p->is_tuple == q->is_tuple) {
    for (size_t i = 0; i < p->items.size() && i < q->items.size(); ++i) {
      if (!Equal(p->items[i], q->items[i])) return Less(p->items[i], q->items[i]);
    }
    return p->items.size() < q->items.size();
  }
  return absl::InvalidArgumentError(StrCat("the chat template compares values of types ",
                                           a.TypeName(), " and ", b.TypeName(),
                                           ", which have no order"));
}

}  // namespace longstride::model::jinja

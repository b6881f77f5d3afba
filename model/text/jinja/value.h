// The values of a chat template: Python's, as far as Jinja templates use them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "model/text/jinja/text.h"

namespace longstride::model::jinja {

class Value;
struct List;
struct Dict;
struct Namespace;
struct Callable;
struct LoopState;

struct None {};
struct Undefined {
  std::string what;  // what was looked up, for messages
};

// Containers never nest deeper, so that copying, printing and destruction may recurse.
inline constexpr int kMaxValueDepth = 100;
// Nor do they weigh more: walking a value is bounded although parts of it may be shared.
inline constexpr int64_t kMaxValueWeight = 16'000'000;

// Immutable but for namespaces; copies share. Default: undefined.
class Value {
 public:
  using Storage =
      std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
                   std::shared_ptr<const List>, std::shared_ptr<const Dict>,
                   std::shared_ptr<Namespace>, std::shared_ptr<const Callable>,
                   std::shared_ptr<LoopState>>;

  Value() : storage_(Undefined{}) {}
  Value(Undefined u) : storage_(std::move(u)) {}  // NOLINT: implicit, as the following
  Value(None n) : storage_(n) {}
  Value(bool b) : storage_(b) {}
  Value(int64_t i) : storage_(i) {}
  Value(double d) : storage_(d) {}
  Value(Text text) : storage_(std::make_shared<const Text>(std::move(text))) {}
  Value(std::shared_ptr<Namespace> ns) : storage_(std::move(ns)) {}
  Value(std::shared_ptr<const Callable> callable) : storage_(std::move(callable)) {}
  Value(std::shared_ptr<LoopState> loop) : storage_(std::move(loop)) {}
  Value(const char*) = delete;

  static Value FromTemplate(std::string bytes) { return Text(std::move(bytes), Origin::kTemplate); }
  static Value FromInput(std::string bytes) { return Text(std::move(bytes), Origin::kInput); }
  // InvalidArgument if the nesting or the weight exceeds the limits above.
  static absl::StatusOr<Value> MakeList(std::vector<Value> items, bool is_tuple = false);
  // What filters such as map return: to be looped over, true even if empty, and without length.
  static absl::StatusOr<Value> MakeGenerator(std::vector<Value> items);
  static absl::StatusOr<Value> MakeDict(Dict dict);

  template <typename T>
  const T* Get() const {
    return std::get_if<T>(&storage_);
  }
  bool IsUndefined() const { return Get<Undefined>() != nullptr; }
  bool IsNone() const { return Get<None>() != nullptr; }
  const Text* AsText() const { return Raw<std::shared_ptr<const Text>>(); }
  const List* AsList() const { return Raw<std::shared_ptr<const List>>(); }
  const Dict* AsDict() const { return Raw<std::shared_ptr<const Dict>>(); }
  Namespace* AsNamespace() const {
    const auto* p = Get<std::shared_ptr<Namespace>>();
    return p == nullptr ? nullptr : p->get();
  }
  const Callable* AsCallable() const { return Raw<std::shared_ptr<const Callable>>(); }
  LoopState* AsLoop() const {
    const auto* p = Get<std::shared_ptr<LoopState>>();
    return p == nullptr ? nullptr : p->get();
  }
  // Of int and bool, as Python has it.
  std::optional<int64_t> AsInt() const;
  // Of float, int and bool.
  std::optional<double> AsNumber() const;

  bool Truthy() const;
  // Python's type name: "str", "dict", ... for messages.
  std::string_view TypeName() const;
  int depth() const;
  // Number of values inside, shared ones counted as often as they occur, long texts more than once.
  int64_t weight() const;
  // Whether any text inside came from the input.
  bool HasInput() const;

 private:
  static absl::StatusOr<Value> MakeSequence(List list);
  template <typename P>
  auto Raw() const -> decltype(std::declval<P>().get()) {
    const auto* p = Get<P>();
    return p == nullptr ? nullptr : p->get();
  }
  Storage storage_;
};

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  bool is_generator = false;
  // Set by Value::MakeList.
  int depth = 1;
  int64_t weight = 1;
  bool has_input = false;
};

// Keeps the order of insertion. Keys are texts, numbers, booleans or none.
struct Dict {
  struct Entry {
    Value key, value;
  };
  std::vector<Entry> entries;
  // Set by Value::MakeDict.
  int depth = 1;
  int64_t weight = 1;
  bool has_input = false;

  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const;
  // False if the key's type cannot be a key.
  bool Set(Value key, Value value);
  void Put(std::string_view key, Value value) {
    Set(Value::FromTemplate(std::string(key)), std::move(value));
  }

 private:
  absl::flat_hash_map<std::string, size_t> index_;
};

struct Namespace {
  Dict vars;
};

// Something with a name that can be called: a macro, a global function, or a method with its object.
struct MacroNode;
class Scope;
struct Callable {
  enum Kind { kMacro, kGlobal, kMethod, kCaller } kind;
  std::string name;
  Value self;                        // of a method
  const MacroNode* macro = nullptr;  // of a macro or caller; lives in the template
  std::shared_ptr<Scope> scope;      // where it was defined
};

// The "loop" of a for statement.
struct LoopState {
  const std::vector<Value>* items = nullptr;  // valid while the loop runs
  size_t index0 = 0;
  size_t length = 0;
  int depth0 = 0;
  Value last_changed;
  bool has_changed = false;
  const void* for_node = nullptr;  // of a recursive loop
  std::shared_ptr<Scope> scope;
};

// Python's == : numbers by value, containers by content, different types unequal.
bool Equal(const Value& a, const Value& b);
// Python's < ; InvalidArgument for types that have no order.
absl::StatusOr<bool> Less(const Value& a, const Value& b);

}  // namespace longstride::model::jinja

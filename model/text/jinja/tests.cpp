// Jinja's tests: what stands behind "is".
#include <cmath>
#include <map>

#include "config/base/status.h"
#include "model/text/jinja/evaluator.h"
#include "model/text/jinja/operators.h"
#include "model/text/jinja/strings.h"

namespace longstride::model::jinja {
namespace {

using Predicate = bool (*)(const Value&);

bool IsMapping(const Value& v) { return v.AsDict() != nullptr; }
bool IsSequence(const Value& v) {
  const List* list = v.AsList();
  return v.AsText() != nullptr || IsMapping(v) || v.IsUndefined() || (list != nullptr && !list->is_generator);
}
bool IsInteger(const Value& v) { return v.Get<int64_t>() != nullptr; }
bool IsFloat(const Value& v) { return v.Get<double>() != nullptr; }

// Tests of the value alone.
const std::map<std::string_view, Predicate>& Predicates() {
  static const std::map<std::string_view, Predicate> predicates = {
      {"defined", [](const Value& v) { return !v.IsUndefined(); }},
      {"undefined", [](const Value& v) { return v.IsUndefined(); }},
      {"none", [](const Value& v) { return v.IsNone(); }},
      {"boolean", [](const Value& v) { return v.Get<bool>() != nullptr; }},
      {"true", [](const Value& v) { return v.Get<bool>() != nullptr && *v.Get<bool>(); }},
      {"false", [](const Value& v) { return v.Get<bool>() != nullptr && !*v.Get<bool>(); }},
      {"integer", IsInteger},
      {"float", IsFloat},
      {"number", [](const Value& v) { return v.AsNumber().has_value(); }},
      {"string", [](const Value& v) { return v.AsText() != nullptr; }},
      {"mapping", IsMapping},
      {"sequence", IsSequence},
      {"iterable", [](const Value& v) { return IsSequence(v) || v.AsList() != nullptr; }},
      {"callable", [](const Value& v) { return v.AsCallable() != nullptr || v.AsLoop() != nullptr || v.IsUndefined(); }},
      {"escaped", [](const Value&) { return false; }},
  };
  return predicates;
}

std::optional<CompareOp> Comparison(std::string_view name) {
  if (name == "eq" || name == "equalto" || name == "==") return CompareOp::kEqual;
  if (name == "ne" || name == "!=") return CompareOp::kNotEqual;
  if (name == "lt" || name == "lessthan" || name == "<") return CompareOp::kLess;
  if (name == "le" || name == "<=") return CompareOp::kLessEqual;
  if (name == "gt" || name == "greaterthan" || name == ">") return CompareOp::kGreater;
  if (name == "ge" || name == ">=") return CompareOp::kGreaterEqual;
  if (name == "in") return CompareOp::kIn;
  return std::nullopt;
}

// Python's "is": the same object for containers, the same value for small scalars.
bool Same(const Value& a, const Value& b) {
  if (a.AsList() != nullptr || a.AsDict() != nullptr) return a.AsList() == b.AsList() && a.AsDict() == b.AsDict();
  return a.TypeName() == b.TypeName() && Equal(a, b);
}

}  // namespace

absl::StatusOr<bool> Evaluator::ApplyTest(std::string_view name, const Value& input,
                                          const CallArguments& arguments) {
  RETURN_IF_ERROR(Charge(1));
  if (const auto it = Predicates().find(name); it != Predicates().end()) return it->second(input);
  const Value* other = arguments.positional.empty() ? nullptr : &arguments.positional[0];
  const auto needs = [&](std::string_view what) {
    return absl::InvalidArgumentError(StrCat("the chat template uses the test ", name, ": needs ", what));
  };
  if (const auto op = Comparison(name)) {
    if (other == nullptr) return needs("something to compare with");
    RETURN_IF_ERROR(Charge(input.weight() + other->weight()));
    return ApplyCompare(*op, input, *other);
  }
  if (name == "sameas") {
    if (other == nullptr) return needs("something to compare with");
    RETURN_IF_ERROR(Charge(input.weight()));
    return Same(input, *other);
  }
  if (name == "odd" || name == "even" || name == "divisibleby") {
    const auto number = input.AsInt();
    const auto divisor = name != "divisibleby" ? std::optional<int64_t>(2)
                         : other != nullptr    ? other->AsInt()
                                               : std::nullopt;
    if (!number.has_value() || !divisor.has_value() || *divisor == 0) return needs("integers");
    const bool divides = *divisor == -1 || *number % *divisor == 0;
    return name == "odd" ? !divides : divides;
  }
  if (name == "lower" || name == "upper") {
    ASSIGN_OR_RETURN(const Text text, ToText(input));
    return IsCased(text.view(), name == "lower");
  }
  return absl::UnimplementedError(
      StrCat("the chat template uses the test ", name, ", which is not supported"));
}

}  // namespace longstride::model::jinja

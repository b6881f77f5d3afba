// Evaluator: expressions and attribute access.
#include <algorithm>

#include "config/base/status.h"
#include "model/text/jinja/evaluator.h"
#include "model/text/jinja/format.h"
#include "model/text/jinja/operators.h"
#include "model/text/unicode.h"

namespace longstride::model::jinja {
namespace {

Value MakeCallable(Callable::Kind kind, std::string_view name, Value self) {
  auto callable = std::make_shared<Callable>();
  callable->kind = kind;
  callable->name = std::string(name);
  callable->self = std::move(self);
  return Value(std::shared_ptr<const Callable>(std::move(callable)));
}

bool IsGlobal(std::string_view name) {
  return name == "raise_exception" || name == "strftime_now" || name == "namespace" ||
         name == "dict" || name == "range";
}

}  // namespace

struct Evaluator::ExprVisitor {
  Evaluator& e;
  const ScopePtr& scope;

  absl::StatusOr<Value> operator()(const Literal& x) { return x.value; }
  absl::StatusOr<Value> operator()(const NameRef& x) {
    if (const Value* value = scope->Find(x.name)) return *value;
    if (IsGlobal(x.name)) return MakeCallable(Callable::kGlobal, x.name, Value());
    return Value(Undefined{x.name});
  }
  absl::StatusOr<Value> operator()(const ListExpr& x) {
    std::vector<Value> items;
    for (const ExprPtr& item : x.items) {
      ASSIGN_OR_RETURN(Value value, e.Eval(*item, scope));
      items.push_back(std::move(value));
    }
    return e.MakeList(std::move(items), x.is_tuple);
  }
  absl::StatusOr<Value> operator()(const DictExpr& x) {
    Dict dict;
    for (const auto& [key_expr, value_expr] : x.entries) {
      ASSIGN_OR_RETURN(Value key, e.Eval(*key_expr, scope));
      ASSIGN_OR_RETURN(Value value, e.Eval(*value_expr, scope));
      const std::string_view type = key.TypeName();
      if (!dict.Set(std::move(key), std::move(value))) {
        return absl::InvalidArgumentError(
            StrCat("the chat template uses a value of type ", type, " as a key"));
      }
    }
    return Value::MakeDict(std::move(dict));
  }
  absl::StatusOr<Value> operator()(const Attribute& x) {
    ASSIGN_OR_RETURN(const Value object, e.Eval(*x.object, scope));
    return e.GetAttribute(object, x.name);
  }
  absl::StatusOr<Value> operator()(const Subscript& x) {
    ASSIGN_OR_RETURN(const Value object, e.Eval(*x.object, scope));
    ASSIGN_OR_RETURN(const Value index, e.Eval(*x.index, scope));
    return e.GetItem(object, index);
  }
  absl::StatusOr<Value> operator()(const Slice& x) {
    ASSIGN_OR_RETURN(const Value object, e.Eval(*x.object, scope));
    SliceBounds bounds;
    const std::pair<const ExprPtr*, std::optional<int64_t>*> parts[] = {
        {&x.start, &bounds.start}, {&x.stop, &bounds.stop}, {&x.step, &bounds.step}};
    for (const auto& [expr, bound] : parts) {
      if (*expr == nullptr) continue;
      ASSIGN_OR_RETURN(const Value value, e.Eval(**expr, scope));
      if (value.IsNone()) continue;
      *bound = value.AsInt();
      if (!bound->has_value()) {
        return absl::InvalidArgumentError(
            StrCat("the chat template slices by a value of type ", value.TypeName()));
      }
    }
    RETURN_IF_ERROR(e.Charge(object.AsList() != nullptr
                                 ? static_cast<int64_t>(object.AsList()->items.size())
                                 : object.weight()));
    return SliceValue(object, bounds);
  }
  absl::StatusOr<Value> operator()(const jinja::Call& x) {
    ASSIGN_OR_RETURN(const Value callee, e.Eval(*x.callee, scope));
    ASSIGN_OR_RETURN(CallArguments arguments, e.EvalArguments(x.arguments, scope));
    return e.Call(callee, std::move(arguments));
  }
  absl::StatusOr<Value> operator()(const FilterCall& x) {
    ASSIGN_OR_RETURN(const Value input, e.Eval(*x.input, scope));
    ASSIGN_OR_RETURN(const CallArguments arguments, e.EvalArguments(x.arguments, scope));
    return e.ApplyFilter(x.name, input, arguments);
  }
  absl::StatusOr<Value> operator()(const TestCall& x) {
    ASSIGN_OR_RETURN(const Value input, e.Eval(*x.input, scope));
    ASSIGN_OR_RETURN(const CallArguments arguments, e.EvalArguments(x.arguments, scope));
    ASSIGN_OR_RETURN(const bool result, e.ApplyTest(x.name, input, arguments));
    return Value(result != x.negated);
  }
  absl::StatusOr<Value> operator()(const Unary& x) {
    ASSIGN_OR_RETURN(const Value value, e.Eval(*x.operand, scope));
    if (x.op == Unary::kNot) return Value(!value.Truthy());
    if (value.IsUndefined()) return UndefinedError(value);
    const int64_t sign = x.op == Unary::kMinus ? -1 : 1;
    return ApplyBinary(BinaryOp::kMultiply, Value(sign),
                       value.AsNumber().has_value() ? value : Value(None{}), e.text_limit());
  }
  absl::StatusOr<Value> operator()(const Binary& x) {
    ASSIGN_OR_RETURN(const Value left, e.Eval(*x.left, scope));
    ASSIGN_OR_RETURN(const Value right, e.Eval(*x.right, scope));
    ASSIGN_OR_RETURN(Value result, ApplyBinary(x.op, left, right, e.text_limit()));
    RETURN_IF_ERROR(e.Charge(result.weight()));
    return result;
  }
  absl::StatusOr<Value> operator()(const Logical& x) {
    Value value;
    for (const ExprPtr& operand : x.operands) {
      ASSIGN_OR_RETURN(value, e.Eval(*operand, scope));
      if (value.Truthy() != x.is_and) break;
    }
    return value;
  }
  absl::StatusOr<Value> operator()(const Concat& x) {
    Text out;
    for (const ExprPtr& operand : x.operands) {
      ASSIGN_OR_RETURN(const Value value, e.Eval(*operand, scope));
      ASSIGN_OR_RETURN(const Text text, e.ToText(value));
      if (out.size() + text.size() > e.text_limit()) {
        return absl::InvalidArgumentError(
            StrCat("the chat template makes a text of more than ", e.text_limit(), " bytes"));
      }
      out.Append(text);
    }
    return Value(std::move(out));
  }
  absl::StatusOr<Value> operator()(const Compare& x) { return e.EvalCompare(x, scope); }
  absl::StatusOr<Value> operator()(const Conditional& x) {
    ASSIGN_OR_RETURN(const Value condition, e.Eval(*x.condition, scope));
    if (condition.Truthy()) return e.Eval(*x.then, scope);
    if (x.otherwise == nullptr) return Value(Undefined{"the value of an if without else"});
    return e.Eval(*x.otherwise, scope);
  }
};

absl::StatusOr<Value> Evaluator::Eval(const Expr& expr, const ScopePtr& scope) {
  if (depth_ >= kMaxEvaluationDepth) {
    return absl::InvalidArgumentError("the chat template recurses too deeply");
  }
  RETURN_IF_ERROR(Charge(1));
  ++depth_;
  absl::StatusOr<Value> value = std::visit(ExprVisitor{*this, scope}, expr.node);
  --depth_;
  return value;
}

absl::StatusOr<CallArguments> Evaluator::EvalArguments(const Arguments& arguments,
                                                       const ScopePtr& scope) {
  CallArguments out;
  for (const ExprPtr& expr : arguments.positional) {
    ASSIGN_OR_RETURN(Value value, Eval(*expr, scope));
    out.positional.push_back(std::move(value));
  }
  for (const auto& [name, expr] : arguments.named) {
    ASSIGN_OR_RETURN(Value value, Eval(*expr, scope));
    out.named.emplace_back(name, std::move(value));
  }
  return out;
}

absl::StatusOr<Value> Evaluator::EvalCompare(const Compare& compare, const ScopePtr& scope) {
  ASSIGN_OR_RETURN(Value left, Eval(*compare.first, scope));
  for (const auto& [op, expr] : compare.rest) {
    ASSIGN_OR_RETURN(Value right, Eval(*expr, scope));
    const bool search = op == CompareOp::kIn || op == CompareOp::kNotIn;
    const bool in_text = search && left.AsText() != nullptr && right.AsText() != nullptr;
    RETURN_IF_ERROR(Charge(in_text  ? left.weight() * right.weight()
                           : search ? right.weight()
                                    : std::min(left.weight(), right.weight())));
    ASSIGN_OR_RETURN(const bool holds, ApplyCompare(op, left, right));
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

absl::StatusOr<Value> Evaluator::ApplyFilters(const std::vector<FilterCall>& filters, Value value,
                                              const ScopePtr& scope) {
  for (const FilterCall& filter : filters) {
    ASSIGN_OR_RETURN(const CallArguments arguments, EvalArguments(filter.arguments, scope));
    ASSIGN_OR_RETURN(value, ApplyFilter(filter.name, value, arguments));
  }
  return value;
}

absl::StatusOr<std::vector<Value>> Evaluator::Iterate(const Value& value) {
  if (value.IsUndefined()) return std::vector<Value>();
  if (const List* list = value.AsList()) {
    RETURN_IF_ERROR(Charge(static_cast<int64_t>(list->items.size())));
    return list->items;
  }
  std::vector<Value> items;
  if (const Dict* dict = value.AsDict()) {
    RETURN_IF_ERROR(Charge(static_cast<int64_t>(dict->entries.size())));
    for (const Dict::Entry& entry : dict->entries) items.push_back(entry.key);
    return items;
  }
  if (const Text* text = value.AsText()) {
    RETURN_IF_ERROR(Charge(static_cast<int64_t>(text->size())));
    for (size_t pos = 0; pos < text->size();) {
      const size_t start = pos;
      (void)DecodeUtf8(text->view(), &pos);
      items.push_back(Value(text->Slice(start, pos)));
    }
    return items;
  }
  return absl::InvalidArgumentError(
      StrCat("the chat template loops over a value of type ", value.TypeName()));
}

absl::StatusOr<Value> Evaluator::LoopAttribute(const Value& self, std::string_view name) {
  const LoopState& loop = *self.AsLoop();
  const auto number = [](size_t n) { return Value(static_cast<int64_t>(n)); };
  if (name == "index") return number(loop.index0 + 1);
  if (name == "index0") return number(loop.index0);
  if (name == "revindex") return number(loop.length - loop.index0);
  if (name == "revindex0") return number(loop.length - loop.index0 - 1);
  if (name == "first") return Value(loop.index0 == 0);
  if (name == "last") return Value(loop.index0 + 1 == loop.length);
  if (name == "length") return number(loop.length);
  if (name == "depth") return Value(int64_t{loop.depth0} + 1);
  if (name == "depth0") return Value(int64_t{loop.depth0});
  if (name == "previtem" || name == "nextitem") {
    const size_t at = name == "nextitem" ? loop.index0 + 1 : loop.index0 - 1;  // wraps before the first
    if (loop.items != nullptr && at < loop.items->size()) return (*loop.items)[at];
    return Value(Undefined{StrCat("loop.", name)});
  }
  if (name == "cycle" || name == "changed") return MakeCallable(Callable::kMethod, name, self);
  return Value(Undefined{StrCat("loop.", name)});
}

absl::StatusOr<Value> Evaluator::GetAttribute(const Value& object, std::string_view name) {
  if (object.IsUndefined()) return UndefinedError(object);
  if (object.AsLoop() != nullptr) return LoopAttribute(object, name);
  if (const Namespace* ns = object.AsNamespace()) {
    const Value* value = ns->vars.Find(name);
    return value != nullptr ? *value : Value(Undefined{std::string(name)});
  }
  if (HasMethod(object, name)) return MakeCallable(Callable::kMethod, name, object);
  if (const Dict* dict = object.AsDict()) {
    if (const Value* value = dict->Find(name)) return *value;
  }
  return Value(Undefined{StrCat("the attribute ", name)});
}

absl::StatusOr<Value> Evaluator::GetItem(const Value& object, const Value& index) {
  if (object.IsUndefined()) return UndefinedError(object);
  const Text* name = index.AsText();
  if (const Dict* dict = object.AsDict()) {
    if (const Value* value = dict->Find(index)) return *value;
  } else if (const auto at = index.AsInt()) {
    if (const List* list = object.AsList(); list != nullptr && !list->is_generator) {
      const auto size = static_cast<int64_t>(list->items.size());
      const int64_t i = *at < 0 ? *at + size : *at;
      if (i >= 0 && i < size) return list->items[static_cast<size_t>(i)];
      return Value(Undefined{"an item beyond the end of a list"});
    }
    if (const Text* text = object.AsText()) {
      RETURN_IF_ERROR(ChargeText(text->size()));
      const int64_t size = CountCharacters(text->view());
      const int64_t i = *at < 0 ? *at + size : *at;
      if (i < 0 || i >= size) return Value(Undefined{"a character beyond the end of a text"});
      const size_t begin = CharacterOffset(text->view(), i);
      size_t end = begin;
      (void)DecodeUtf8(text->view(), &end);
      return Value(text->Slice(begin, end));
    }
  }
  if (name != nullptr) return GetAttribute(object, name->view());
  return Value(Undefined{"an item"});
}

}  // namespace longstride::model::jinja

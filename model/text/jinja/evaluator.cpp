#include "model/text/jinja/evaluator.h"

#include <algorithm>

#include "config/base/status.h"
#include "model/text/jinja/format.h"
#include "model/text/jinja/operators.h"
#include "model/text/unicode.h"

namespace longstride::model::jinja {
namespace {

class DepthGuard {
 public:
  explicit DepthGuard(int* depth) : depth_(depth) { ++*depth_; }
  ~DepthGuard() { --*depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;
  absl::Status Check() const {
    if (*depth_ <= kMaxEvaluationDepth) return absl::OkStatus();
    return absl::InvalidArgumentError("the chat template recurses too deeply");
  }

 private:
  int* depth_;
};

}  // namespace

const Value* CallArguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

const Value* Scope::Find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent_.get()) {
    for (const auto& [key, value] : scope->variables_) {
      if (key == name) return &value;
    }
  }
  return nullptr;
}

void Scope::Set(std::string_view name, Value value) {
  for (auto& [key, old] : variables_) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  variables_.emplace_back(std::string(name), std::move(value));
}

Evaluator::~Evaluator() {
  for (const auto& ns : namespaces_) ns->vars = Dict();
  for (const ScopePtr& scope : captured_) scope->Clear();
}

absl::Status Evaluator::Charge(int64_t steps) {
  steps_ += steps;
  if (steps_ <= limits_.max_steps) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("the chat template takes more than the limit of ", limits_.max_steps,
             " steps for this request; shorten it or simplify the template"));
}

absl::Status Evaluator::ChargeText(size_t bytes) {
  return Charge(1 + static_cast<int64_t>(bytes / 64));
}

absl::StatusOr<Text> Evaluator::ToText(const Value& value) {
  RETURN_IF_ERROR(Charge(value.weight()));
  return jinja::ToText(value, text_limit());
}

absl::StatusOr<Value> Evaluator::MakeList(std::vector<Value> items, bool is_tuple) {
  RETURN_IF_ERROR(Charge(static_cast<int64_t>(items.size())));
  return Value::MakeList(std::move(items), is_tuple);
}

absl::StatusOr<Text> Evaluator::Render(const Body& body,
                                       std::vector<std::pair<std::string, Value>> variables) {
  auto scope = std::make_shared<Scope>(nullptr);
  for (auto& [name, value] : variables) scope->Set(name, std::move(value));
  captured_.push_back(scope);
  Flow flow = Flow::kNext;
  return Capture(body, scope, &flow);
}

absl::StatusOr<Text> Evaluator::Capture(const Body& body, const ScopePtr& scope, Flow* flow) {
  Text text;
  Text* outer = std::exchange(output_, &text);
  absl::StatusOr<Flow> end = Run(body, scope);
  output_ = outer;
  ASSIGN_OR_RETURN(*flow, std::move(end));
  return text;
}

absl::Status Evaluator::Output(const Text& text) {
  RETURN_IF_ERROR(ChargeText(text.size()));
  if (text.size() > text_limit() - std::min(output_->size(), text_limit())) {
    return absl::InvalidArgumentError(StrCat("the chat template writes more than the limit of ",
                                             text_limit(), " bytes for this request"));
  }
  output_->Append(text);
  return absl::OkStatus();
}

absl::StatusOr<Evaluator::Flow> Evaluator::Run(const Body& body, const ScopePtr& scope) {
  for (const auto& stmt : body) {
    absl::StatusOr<Flow> flow = RunStatement(*stmt, scope);
    if (!flow.ok()) {
      if (located_) return flow;
      located_ = true;
      return Annotate(flow.status(), StrCat("chat template, line ", stmt->line));
    }
    if (*flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

struct Evaluator::StmtVisitor {
  Evaluator& e;
  const ScopePtr& scope;

  absl::StatusOr<Flow> operator()(const DataStmt& stmt) {
    RETURN_IF_ERROR(e.Output(Text(stmt.text, Origin::kTemplate)));
    return Flow::kNext;
  }
  absl::StatusOr<Flow> operator()(const OutputStmt& stmt) {
    ASSIGN_OR_RETURN(const Value value, e.Eval(*stmt.value, scope));
    if (const Text* text = value.AsText()) {
      RETURN_IF_ERROR(e.Output(*text));
      return Flow::kNext;
    }
    ASSIGN_OR_RETURN(const Text text, e.ToText(value));
    RETURN_IF_ERROR(e.Output(text));
    return Flow::kNext;
  }
  absl::StatusOr<Flow> operator()(const IfStmt& stmt) {
    for (const auto& [condition, body] : stmt.branches) {
      ASSIGN_OR_RETURN(const Value value, e.Eval(*condition, scope));
      if (value.Truthy()) return e.Run(body, scope);
    }
    return e.Run(stmt.otherwise, scope);
  }
  absl::StatusOr<Flow> operator()(const ForStmt& stmt) {
    ASSIGN_OR_RETURN(const Value iterable, e.Eval(*stmt.iterable, scope));
    return e.RunFor(stmt, scope, iterable, 0);
  }
  absl::StatusOr<Flow> operator()(const SetStmt& stmt) {
    ASSIGN_OR_RETURN(Value value, e.Eval(*stmt.value, scope));
    RETURN_IF_ERROR(e.Assign(stmt.target, std::move(value), scope));
    return Flow::kNext;
  }
  absl::StatusOr<Flow> operator()(const SetBlockStmt& stmt) {
    Flow flow = Flow::kNext;
    ASSIGN_OR_RETURN(Text text, e.Capture(stmt.body, std::make_shared<Scope>(scope), &flow));
    ASSIGN_OR_RETURN(Value value, e.ApplyFilters(stmt.filters, Value(std::move(text)), scope));
    RETURN_IF_ERROR(e.Assign(stmt.target, std::move(value), scope));
    return flow;
  }
  absl::StatusOr<Flow> operator()(const MacroStmt& stmt) {
    ASSIGN_OR_RETURN(Value macro, e.MakeMacro(stmt.macro.get(), scope, Callable::kMacro));
    scope->Set(stmt.macro->name, std::move(macro));
    return Flow::kNext;
  }
  absl::StatusOr<Flow> operator()(const CallStmt& stmt) {
    const auto& call = std::get<jinja::Call>(stmt.call->node);
    ASSIGN_OR_RETURN(const Value callee, e.Eval(*call.callee, scope));
    ASSIGN_OR_RETURN(CallArguments arguments, e.EvalArguments(call.arguments, scope));
    ASSIGN_OR_RETURN(const Value caller, e.MakeMacro(stmt.caller.get(), scope, Callable::kCaller));
    const Callable* macro = callee.AsCallable();
    if (macro == nullptr || macro->macro == nullptr) {
      return absl::InvalidArgumentError("{% call %} calls something that is no macro");
    }
    ASSIGN_OR_RETURN(const Value text, e.CallMacro(*macro, std::move(arguments), &caller));
    RETURN_IF_ERROR(e.Output(*text.AsText()));
    return Flow::kNext;
  }
  absl::StatusOr<Flow> operator()(const FilterStmt& stmt) {
    Flow flow = Flow::kNext;
    ASSIGN_OR_RETURN(Text text, e.Capture(stmt.body, std::make_shared<Scope>(scope), &flow));
    ASSIGN_OR_RETURN(const Value value, e.ApplyFilters(stmt.filters, Value(std::move(text)), scope));
    ASSIGN_OR_RETURN(const Text out, e.ToText(value));
    RETURN_IF_ERROR(e.Output(out));
    return flow;
  }
  absl::StatusOr<Flow> operator()(const WithStmt& stmt) {
    auto inner = std::make_shared<Scope>(scope);
    for (const auto& [target, expr] : stmt.bindings) {
      ASSIGN_OR_RETURN(Value value, e.Eval(*expr, scope));
      RETURN_IF_ERROR(e.Assign(target, std::move(value), inner));
    }
    return e.Run(stmt.body, inner);
  }
  absl::StatusOr<Flow> operator()(const BlockStmt& stmt) {
    return e.Run(stmt.body, std::make_shared<Scope>(scope));
  }
  absl::StatusOr<Flow> operator()(const BreakStmt&) { return Flow::kBreak; }
  absl::StatusOr<Flow> operator()(const ContinueStmt&) { return Flow::kContinue; }
};

absl::StatusOr<Evaluator::Flow> Evaluator::RunStatement(const Stmt& stmt, const ScopePtr& scope) {
  const DepthGuard guard(&depth_);
  RETURN_IF_ERROR(guard.Check());
  RETURN_IF_ERROR(Charge(1));
  return std::visit(StmtVisitor{*this, scope}, stmt.node);
}

absl::Status Evaluator::Assign(const Target& target, Value value, const ScopePtr& scope) {
  if (!target.elements.empty()) {
    ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value));
    if (items.size() != target.elements.size()) {
      return absl::InvalidArgumentError(StrCat("the chat template unpacks ", items.size(),
                                               " values into ", target.elements.size(), " names"));
    }
    for (size_t i = 0; i < items.size(); ++i) {
      RETURN_IF_ERROR(Assign(target.elements[i], std::move(items[i]), scope));
    }
    return absl::OkStatus();
  }
  if (target.attribute.empty()) {
    scope->Set(target.name, std::move(value));
    return absl::OkStatus();
  }
  const Value* owner = scope->Find(target.name);
  Namespace* ns = owner == nullptr ? nullptr : owner->AsNamespace();
  if (ns == nullptr) {
    return absl::InvalidArgumentError(StrCat("the chat template sets ", target.name, ".",
                                             target.attribute, ", but only namespaces can be changed"));
  }
  ns->vars.Put(target.attribute, std::move(value));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Value>> Evaluator::FilterItems(const ForStmt& stmt, const ScopePtr& scope,
                                                          std::vector<Value> items) {
  std::vector<Value> kept;
  for (Value& item : items) {
    auto inner = std::make_shared<Scope>(scope);
    RETURN_IF_ERROR(Assign(stmt.target, item, inner));
    ASSIGN_OR_RETURN(const Value keep, Eval(*stmt.filter, inner));
    if (keep.Truthy()) kept.push_back(std::move(item));
  }
  return kept;
}

absl::StatusOr<Evaluator::Flow> Evaluator::RunFor(const ForStmt& stmt, const ScopePtr& scope,
                                                  const Value& iterable, int depth0) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(iterable));
  if (stmt.filter != nullptr) {
    ASSIGN_OR_RETURN(items, FilterItems(stmt, scope, std::move(items)));
  }
  if (items.empty()) return Run(stmt.otherwise, std::make_shared<Scope>(scope));
  auto loop = std::make_shared<LoopState>();
  loop->items = &items;
  loop->length = items.size();
  loop->depth0 = depth0;
  loop->for_node = stmt.recursive ? &stmt : nullptr;
  if (stmt.recursive) loop->scope = scope;
  absl::StatusOr<Flow> result = Flow::kNext;
  for (size_t i = 0; i < items.size(); ++i) {
    loop->index0 = i;
    auto inner = std::make_shared<Scope>(scope);
    absl::Status status = Charge(1);
    if (status.ok()) status = Assign(stmt.target, items[i], inner);
    if (!status.ok()) {
      result = status;
      break;
    }
    inner->Set("loop", Value(loop));
    absl::StatusOr<Flow> flow = Run(stmt.body, inner);
    if (!flow.ok()) {
      result = std::move(flow);
      break;
    }
    if (*flow == Flow::kBreak) break;
  }
  loop->items = nullptr;  // a namespace may have kept the loop
  loop->scope = nullptr;
  loop->last_changed = Value();
  return result;
}

absl::StatusOr<Value> Evaluator::MakeMacro(const MacroNode* node, const ScopePtr& scope,
                                           Callable::Kind kind) {
  RETURN_IF_ERROR(Charge(1));
  captured_.push_back(scope);
  auto callable = std::make_shared<Callable>();
  callable->kind = kind;
  callable->name = node->name;
  callable->macro = node;
  callable->scope = scope;
  return Value(std::shared_ptr<const Callable>(std::move(callable)));
}

absl::StatusOr<Value> Evaluator::CallMacro(const Callable& callable, CallArguments arguments,
                                           const Value* caller) {
  const MacroNode& macro = *callable.macro;
  auto scope = std::make_shared<Scope>(callable.scope);
  const size_t count = macro.parameters.size();
  if (arguments.positional.size() > count && !macro.takes_varargs) {
    return absl::InvalidArgumentError(StrCat("the macro ", macro.name, " takes at most ", count,
                                             " arguments, got ", arguments.positional.size()));
  }
  std::vector<Value> rest;
  for (size_t i = count; i < arguments.positional.size(); ++i) rest.push_back(arguments.positional[i]);
  if (macro.takes_varargs) {
    ASSIGN_OR_RETURN(Value list, MakeList(std::move(rest), /*is_tuple=*/true));
    scope->Set("varargs", std::move(list));
  }
  Dict extra;
  for (auto& [name, value] : arguments.named) {
    const auto parameter = std::find_if(macro.parameters.begin(), macro.parameters.end(),
                                        [&name = name](const auto& p) { return p.first == name; });
    if (parameter == macro.parameters.end()) {
      if (!macro.takes_kwargs) {
        return absl::InvalidArgumentError(StrCat("the macro ", macro.name, " has no argument ", name));
      }
      extra.Put(name, value);
    } else if (static_cast<size_t>(parameter - macro.parameters.begin()) < arguments.positional.size()) {
      return absl::InvalidArgumentError(StrCat("the macro ", macro.name, " gets ", name, " twice"));
    }
  }
  if (macro.takes_kwargs) {
    ASSIGN_OR_RETURN(Value dict, Value::MakeDict(std::move(extra)));
    scope->Set("kwargs", std::move(dict));
  }
  for (size_t i = 0; i < count; ++i) {
    const auto& [name, absent] = macro.parameters[i];
    if (const Value* given = arguments.Find(i, name)) {
      scope->Set(name, *given);
    } else if (absent != nullptr) {
      ASSIGN_OR_RETURN(Value value, Eval(*absent, scope));
      scope->Set(name, std::move(value));
    } else {
      scope->Set(name, Undefined{StrCat("the macro argument ", name)});
    }
  }
  scope->Set("caller", caller != nullptr ? *caller : Value(Undefined{"caller"}));
  Flow flow = Flow::kNext;
  ASSIGN_OR_RETURN(Text text, Capture(macro.body, scope, &flow));
  return Value(std::move(text));
}

absl::StatusOr<Value> Evaluator::Call(const Value& callee, CallArguments arguments) {
  const DepthGuard guard(&depth_);
  RETURN_IF_ERROR(guard.Check());
  if (LoopState* loop = callee.AsLoop()) return CallLoop(loop, arguments);
  const Callable* callable = callee.AsCallable();
  if (callable == nullptr) {
    if (callee.IsUndefined()) return UndefinedError(callee);
    return absl::InvalidArgumentError(
        StrCat("the chat template calls a value of type ", callee.TypeName()));
  }
  switch (callable->kind) {
    case Callable::kMacro:
    case Callable::kCaller: return CallMacro(*callable, std::move(arguments), nullptr);
    case Callable::kMethod: return CallMethod(*this, callable->self, callable->name, arguments);
    case Callable::kGlobal: return CallGlobal(callable->name, arguments);
  }
  return Value();
}

absl::StatusOr<Value> Evaluator::CallLoop(LoopState* loop, const CallArguments& arguments) {
  const Value* items = arguments.Find(0, "iterable");
  if (loop->for_node == nullptr || loop->items == nullptr || items == nullptr) {
    return absl::InvalidArgumentError("loop() needs a loop marked recursive and something to loop over");
  }
  Text text;
  Text* outer = std::exchange(output_, &text);
  const ScopePtr scope = loop->scope;
  const absl::StatusOr<Flow> flow =
      RunFor(*static_cast<const ForStmt*>(loop->for_node), scope, *items, loop->depth0 + 1);
  output_ = outer;
  RETURN_IF_ERROR(flow.status());
  return Value(std::move(text));
}

absl::StatusOr<Value> Evaluator::CallGlobal(std::string_view name, const CallArguments& arguments) {
  if (name == "raise_exception") {
    const Value* message = arguments.Find(0, "message");
    ASSIGN_OR_RETURN(const Text text, ToText(message != nullptr ? *message : Value()));
    located_ = true;  // the template's own words; its line is of no use to the caller
    return absl::InvalidArgumentError(
        StrCat("the chat template refuses the conversation: ", text.bytes()));
  }
  if (name == "strftime_now") {
    const Value* format = arguments.Find(0, "format");
    if (format == nullptr || format->AsText() == nullptr) {
      return absl::InvalidArgumentError("strftime_now needs a format");
    }
    const std::string& pattern = format->AsText()->bytes();
    if (pattern.size() > 256) return absl::InvalidArgumentError("strftime_now: the format is too long");
    const tm time = absl::ToTM(now_, absl::UTCTimeZone());
    char buffer[2048];
    const size_t size = strftime(buffer, sizeof buffer, pattern.c_str(), &time);
    return Value(Text(std::string(buffer, size), format->AsText()->MixedOrigin()));
  }
  if (name == "namespace" || name == "dict") {
    Dict vars;
    if (!arguments.positional.empty()) {
      const Dict* from = arguments.positional[0].AsDict();
      if (from == nullptr) return absl::InvalidArgumentError(StrCat(name, "() takes a mapping"));
      vars = *from;
    }
    for (const auto& [key, value] : arguments.named) vars.Put(key, value);
    if (name == "dict") return Value::MakeDict(std::move(vars));
    auto ns = std::make_shared<Namespace>(Namespace{std::move(vars)});
    namespaces_.push_back(ns);
    return Value(std::move(ns));
  }
  if (name == "range") {
    int64_t bounds[3] = {0, 0, 1};
    const size_t count = arguments.positional.size();
    if (count < 1 || count > 3 || !arguments.named.empty()) {
      return absl::InvalidArgumentError("range takes one to three integers");
    }
    for (size_t i = 0; i < count; ++i) {
      const auto number = arguments.positional[i].AsInt();
      if (!number.has_value()) return absl::InvalidArgumentError("range takes integers");
      bounds[count == 1 ? 1 : i] = *number;
    }
    const auto [start, stop, step] = bounds;
    if (step == 0) return absl::InvalidArgumentError("range: the step is zero");
    const __int128 span = static_cast<__int128>(stop) - start;
    const __int128 steps = step > 0 ? (span + step - 1) / step : (span + step + 1) / step;
    if (steps > limits_.max_range) {
      return absl::InvalidArgumentError(
          StrCat("range: more than the limit of ", limits_.max_range, " numbers"));
    }
    std::vector<Value> items;
    for (int64_t i = 0; i < static_cast<int64_t>(steps); ++i) items.push_back(Value(start + i * step));
    return MakeList(std::move(items));
  }
  return absl::UnimplementedError(StrCat("the chat template calls ", name, ", which is not supported"));
}

}  // namespace longstride::model::jinja

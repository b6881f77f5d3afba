// Runs a parsed chat template with Jinja's rules, within budgets.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/text/jinja/ast.h"
#include "model/text/jinja/value.h"

namespace longstride::model::jinja {

// Evaluations on the C++ stack. The parser bounds one tree; macros multiply it.
inline constexpr int kMaxEvaluationDepth = 600;

struct RenderLimits {
  int64_t max_steps = 2'000'000;  // statements, expressions, list items, 64 bytes of text each
  size_t max_text_bytes = 16 << 20;  // of the output and of any single text
  int64_t max_range = 100'000;
};

struct CallArguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument number `index`, or the one named `name`; nullptr if neither is given.
  const Value* Find(size_t index, std::string_view name) const;
};

// Variables of one block; looks further out through its parent.
class Scope {
 public:
  explicit Scope(std::shared_ptr<Scope> parent) : parent_(std::move(parent)) {}
  const Value* Find(std::string_view name) const;
  void Set(std::string_view name, Value value);
  void Clear() { variables_.clear(); }

 private:
  std::shared_ptr<Scope> parent_;
  std::vector<std::pair<std::string, Value>> variables_;
};

// One rendering. Not thread-safe; templates and values may be shared.
//
// Errors: InvalidArgument for what Jinja raises an exception for and for budgets that are used up;
// Unimplemented for filters, tests and functions that are not known.
class Evaluator {
 public:
  Evaluator(RenderLimits limits, absl::Time now) : limits_(limits), now_(now) {}
  ~Evaluator();
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  absl::StatusOr<Text> Render(const Body& body,
                              std::vector<std::pair<std::string, Value>> variables);

  // What filters, tests and methods need.
  const RenderLimits& limits() const { return limits_; }
  size_t text_limit() const { return limits_.max_text_bytes; }
  absl::Status Charge(int64_t steps);
  absl::Status ChargeText(size_t bytes);
  absl::StatusOr<Text> ToText(const Value& value);
  // What a for statement visits: items, keys or characters.
  absl::StatusOr<std::vector<Value>> Iterate(const Value& value);
  absl::StatusOr<Value> MakeList(std::vector<Value> items, bool is_tuple = false);
  // object.name and object[index]
  absl::StatusOr<Value> GetAttribute(const Value& object, std::string_view name);
  absl::StatusOr<Value> GetItem(const Value& object, const Value& index);
  absl::StatusOr<Value> Call(const Value& callee, CallArguments arguments);
  absl::StatusOr<Value> ApplyFilter(std::string_view name, const Value& input,
                                    const CallArguments& arguments);
  absl::StatusOr<bool> ApplyTest(std::string_view name, const Value& input,
                                 const CallArguments& arguments);

 private:
  enum class Flow { kNext, kBreak, kContinue };
  using ScopePtr = std::shared_ptr<Scope>;
  struct ExprVisitor;
  struct StmtVisitor;

  absl::StatusOr<Flow> Run(const Body& body, const ScopePtr& scope);
  absl::StatusOr<Flow> RunStatement(const Stmt& stmt, const ScopePtr& scope);
  absl::StatusOr<Text> Capture(const Body& body, const ScopePtr& scope, Flow* flow);
  absl::StatusOr<Flow> RunFor(const ForStmt& stmt, const ScopePtr& scope, const Value& iterable,
                              int depth0);
  absl::StatusOr<std::vector<Value>> FilterItems(const ForStmt& stmt, const ScopePtr& scope,
                                                 std::vector<Value> items);
  absl::Status Assign(const Target& target, Value value, const ScopePtr& scope);
  absl::Status Output(const Text& text);

  absl::StatusOr<Value> Eval(const Expr& expr, const ScopePtr& scope);
  absl::StatusOr<CallArguments> EvalArguments(const Arguments& arguments, const ScopePtr& scope);
  absl::StatusOr<Value> EvalCompare(const Compare& compare, const ScopePtr& scope);
  absl::StatusOr<Value> ApplyFilters(const std::vector<FilterCall>& filters, Value value,
                                     const ScopePtr& scope);
  absl::StatusOr<Value> CallMacro(const Callable& macro, CallArguments arguments,
                                  const Value* caller);
  absl::StatusOr<Value> CallGlobal(std::string_view name, const CallArguments& arguments);
  absl::StatusOr<Value> CallLoop(LoopState* loop, const CallArguments& arguments);
  absl::StatusOr<Value> LoopAttribute(const Value& self, std::string_view name);
  absl::StatusOr<Value> MakeMacro(const MacroNode* node, const ScopePtr& scope,
                                  Callable::Kind kind);

  RenderLimits limits_;
  absl::Time now_;
  int64_t steps_ = 0;
  int depth_ = 0;  // of the C++ stack, in evaluations
  Text* output_ = nullptr;
  bool located_ = false;  // the error that unwinds names its line
  // Values and scopes that may hold each other in a circle; emptied at the end.
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  std::vector<ScopePtr> captured_;
};

// Methods of texts, objects, lists and loops; see methods.cpp. `known` tells whether the type has a
// method of that name.
bool HasMethod(const Value& self, std::string_view name);
absl::StatusOr<Value> CallMethod(Evaluator& evaluator, const Value& self, std::string_view name,
                                 const CallArguments& arguments);

}  // namespace longstride::model::jinja

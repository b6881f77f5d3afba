// The tree of a parsed chat template. Immutable once parsed.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "model/text/jinja/value.h"

namespace longstride::model::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Arguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
};

struct Literal {
  Value value;
};
struct NameRef {
  std::string name;
};
struct ListExpr {
  std::vector<ExprPtr> items;
  bool is_tuple;
};
struct DictExpr {
  std::vector<std::pair<ExprPtr, ExprPtr>> entries;
};
struct Attribute {  // object.name
  ExprPtr object;
  std::string name;
};
struct Subscript {  // object[index]
  ExprPtr object, index;
};
struct Slice {  // object[start:stop:step], each may be null
  ExprPtr object, start, stop, step;
};
struct Call {
  ExprPtr callee;
  Arguments arguments;
};
struct FilterCall {  // input is null in {% filter %}
  ExprPtr input;
  std::string name;
  Arguments arguments;
};
struct TestCall {
  ExprPtr input;
  std::string name;
  Arguments arguments;
  bool negated;
};
struct Unary {
  enum Op { kNot, kMinus, kPlus } op;
  ExprPtr operand;
};
enum class BinaryOp { kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo, kPower };
struct Binary {
  BinaryOp op;
  ExprPtr left, right;
};
struct Logical {  // operands from left to right, until the result is known
  bool is_and;
  std::vector<ExprPtr> operands;
};
struct Concat {  // ~
  std::vector<ExprPtr> operands;
};
enum class CompareOp { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };
struct Compare {  // a < b < c
  ExprPtr first;
  std::vector<std::pair<CompareOp, ExprPtr>> rest;
};
struct Conditional {  // then if condition else otherwise, which may be null
  ExprPtr condition, then, otherwise;
};

struct Expr {
  std::variant<Literal, NameRef, ListExpr, DictExpr, Attribute, Subscript, Slice, Call, FilterCall,
               TestCall, Unary, Binary, Logical, Concat, Compare, Conditional>
      node;
  int line = 0;
  int depth = 1;  // of the tree below
};

// What an assignment or a loop binds: a name, an attribute of a namespace, or a tuple of targets.
struct Target {
  std::string name;
  std::string attribute;         // of the namespace `name`; empty: the name itself
  std::vector<Target> elements;  // not empty: a tuple
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

struct DataStmt {
  std::string text;
};
struct OutputStmt {
  ExprPtr value;
};
struct IfStmt {
  std::vector<std::pair<ExprPtr, Body>> branches;
  Body otherwise;
};
struct ForStmt {
  Target target;
  ExprPtr iterable, filter;  // filter may be null
  bool recursive = false;
  Body body, otherwise;
};
struct SetStmt {
  Target target;
  ExprPtr value;
};
struct SetBlockStmt {
  Target target;
  std::vector<FilterCall> filters;
  Body body;
};
struct MacroNode {
  std::string name;
  std::vector<std::pair<std::string, ExprPtr>> parameters;  // default value, or null
  Body body;
  bool takes_varargs = false, takes_kwargs = false;
};
struct MacroStmt {
  std::unique_ptr<MacroNode> macro;
};
struct CallStmt {  // {% call(params) macro(args) %}: the body is the macro "caller"
  ExprPtr call;
  std::unique_ptr<MacroNode> caller;
};
struct FilterStmt {
  std::vector<FilterCall> filters;
  Body body;
};
struct WithStmt {
  std::vector<std::pair<Target, ExprPtr>> bindings;
  Body body;
};
struct BlockStmt {  // {% generation %}: its body, as it is
  Body body;
};
struct BreakStmt {};
struct ContinueStmt {};

struct Stmt {
  std::variant<DataStmt, OutputStmt, IfStmt, ForStmt, SetStmt, SetBlockStmt, MacroStmt, CallStmt,
               FilterStmt, WithStmt, BlockStmt, BreakStmt, ContinueStmt>
      node;
  int line = 0;
};

}  // namespace longstride::model::jinja

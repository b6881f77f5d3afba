#include "model/text/jinja/parser.h"

#include <algorithm>

#include "config/base/status.h"
#include "model/text/jinja/lexer.h"

namespace longstride::model::jinja {
namespace {

// Binding strength of binary operators, as Jinja's grammar nests them.
enum Precedence { kLowest, kOr, kAnd, kNot, kCompare, kAdditive, kConcat, kMultiplicative, kPower };

struct Operator {
  Precedence precedence;
  BinaryOp op;
};

int DepthOf(const ExprPtr& e) { return e == nullptr ? 0 : e->depth; }
int DepthOf(const Arguments& arguments) {
  int depth = 0;
  for (const ExprPtr& e : arguments.positional) depth = std::max(depth, e->depth);
  for (const auto& [name, e] : arguments.named) depth = std::max(depth, e->depth);
  return depth;
}
int DepthOf(const std::vector<ExprPtr>& list) {
  int depth = 0;
  for (const ExprPtr& e : list) depth = std::max(depth, e->depth);
  return depth;
}

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<Body> Run() {
    Body body;
    ASSIGN_OR_RETURN(body, ParseBody({}));
    return body;
  }

 private:
  // --- tokens
  const Token& Peek() const { return tokens_[pos_]; }
  const Token& PeekNext() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  Token Take() { return tokens_[pos_ + 1 < tokens_.size() ? pos_++ : pos_]; }
  bool IsOp(std::string_view op) const {
    return Peek().kind == TokenKind::kOperator && Peek().text == op;
  }
  bool IsName(std::string_view name) const {
    return Peek().kind == TokenKind::kName && Peek().text == name;
  }
  bool TakeOp(std::string_view op) {
    if (!IsOp(op)) return false;
    Take();
    return true;
  }
  bool TakeName(std::string_view name) {
    if (!IsName(name)) return false;
    Take();
    return true;
  }
  absl::Status Error(std::string_view message) const {
    return absl::InvalidArgumentError(StrCat("chat template, line ", Peek().line, ": ", message));
  }
  std::string Describe() const {
    switch (Peek().kind) {
      case TokenKind::kEnd: return "the end of the template";
      case TokenKind::kBlockEnd: return "'%}'";
      case TokenKind::kVariableEnd: return "'}}'";
      case TokenKind::kString: return "a string";
      case TokenKind::kInteger:
      case TokenKind::kFloat: return "a number";
      default: return StrCat("'", Peek().text, "'");
    }
  }
  absl::Status Expect(std::string_view op) {
    if (TakeOp(op)) return absl::OkStatus();
    return Error(StrCat("expected '", op, "', got ", Describe()));
  }
  absl::Status ExpectBlockEnd() {
    if (Peek().kind != TokenKind::kBlockEnd) return Error(StrCat("expected '%}', got ", Describe()));
    Take();
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> ExpectName() {
    if (Peek().kind != TokenKind::kName) return Error(StrCat("expected a name, got ", Describe()));
    return Take().text;
  }

  // Bounds recursion.
  class Nested {
   public:
    explicit Nested(Parser* parser) : parser_(parser) { ++parser_->depth_; }
    ~Nested() { --parser_->depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;
    bool TooDeep() const { return parser_->depth_ > kMaxParseDepth; }

   private:
    Parser* parser_;
  };
  absl::Status TooDeep() const {
    return Error(StrCat("nested deeper than ", kMaxParseDepth, " levels"));
  }

  template <typename Node>
  absl::StatusOr<ExprPtr> Make(Node node, int line, int depth_below) {
    if (depth_below >= kMaxParseDepth) return TooDeep();
    auto expr = std::make_unique<Expr>();
    expr->node = std::move(node);
    expr->line = line;
    expr->depth = depth_below + 1;
    return expr;
  }

  // --- expressions
  absl::StatusOr<ExprPtr> ParseExpression(bool with_condition = true) {
    ASSIGN_OR_RETURN(ExprPtr expr, ParseBinary(kOr));
    while (with_condition && IsName("if")) {
      const int line = Take().line;
      ASSIGN_OR_RETURN(ExprPtr condition, ParseBinary(kOr));
      ExprPtr otherwise;
      if (TakeName("else")) {
        const Nested nested(this);
        if (nested.TooDeep()) return TooDeep();
        ASSIGN_OR_RETURN(otherwise, ParseExpression());
      }
      const int depth = std::max({DepthOf(expr), DepthOf(condition), DepthOf(otherwise)});
      ASSIGN_OR_RETURN(expr, Make(Conditional{std::move(condition), std::move(expr),
                                              std::move(otherwise)},
                                  line, depth));
    }
    return expr;
  }

  // a, b, c without parentheses. `stop`: a name that ends it.
  absl::StatusOr<ExprPtr> ParseTuple(bool with_condition, std::string_view stop = "") {
    std::vector<ExprPtr> items;
    bool tuple = false;
    const int line = Peek().line;
    while (true) {
      ASSIGN_OR_RETURN(ExprPtr item, ParseExpression(with_condition));
      items.push_back(std::move(item));
      if (!IsOp(",")) break;
      Take();
      tuple = true;
      const TokenKind kind = Peek().kind;
      if (kind == TokenKind::kBlockEnd || kind == TokenKind::kVariableEnd || IsOp(")") ||
          (!stop.empty() && IsName(stop))) {
        break;
      }
    }
    if (!tuple) return std::move(items[0]);
    const int depth = DepthOf(items);
    return Make(ListExpr{std::move(items), true}, line, depth);
  }

  absl::StatusOr<ExprPtr> ParseBinary(Precedence min) {
    const Nested nested(this);
    if (nested.TooDeep()) return TooDeep();
    ExprPtr left;
    const int line = Peek().line;
    if (min <= kNot && IsName("not") ) {
      Take();
      ASSIGN_OR_RETURN(ExprPtr operand, ParseBinary(kNot));
      const int depth = DepthOf(operand);
      ASSIGN_OR_RETURN(left, Make(Unary{Unary::kNot, std::move(operand)}, line, depth));
    } else {
      ASSIGN_OR_RETURN(left, ParseUnary(/*with_filters=*/true));
    }
    while (true) {
      if (min <= kOr && IsName("or")) {
        ASSIGN_OR_RETURN(left, ParseLogical(std::move(left), "or", kAnd));
      } else if (min <= kAnd && IsName("and")) {
        ASSIGN_OR_RETURN(left, ParseLogical(std::move(left), "and", kNot));
      } else if (min <= kCompare && AtComparison()) {
        ASSIGN_OR_RETURN(left, ParseComparison(std::move(left)));
      } else if (min <= kConcat && IsOp("~")) {
        ASSIGN_OR_RETURN(left, ParseConcat(std::move(left)));
      } else if (const Operator* op = BinaryAt(); op != nullptr && min <= op->precedence) {
        Take();
        ASSIGN_OR_RETURN(ExprPtr right, ParseBinary(static_cast<Precedence>(op->precedence + 1)));
        const int depth = std::max(DepthOf(left), DepthOf(right));
        ASSIGN_OR_RETURN(left, Make(Binary{op->op, std::move(left), std::move(right)}, line, depth));
      } else {
        return left;
      }
    }
  }

  const Operator* BinaryAt() const {
    static constexpr std::pair<std::string_view, Operator> kOperators[] = {
        {"+", {kAdditive, BinaryOp::kAdd}},
        {"-", {kAdditive, BinaryOp::kSubtract}},
        {"*", {kMultiplicative, BinaryOp::kMultiply}},
        {"/", {kMultiplicative, BinaryOp::kDivide}},
        {"//", {kMultiplicative, BinaryOp::kFloorDivide}},
        {"%", {kMultiplicative, BinaryOp::kModulo}},
        {"**", {kPower, BinaryOp::kPower}},
    };
    if (Peek().kind != TokenKind::kOperator) return nullptr;
    for (const auto& [text, op] : kOperators) {
      if (Peek().text == text) return &op;
    }
    return nullptr;
  }

  absl::StatusOr<ExprPtr> ParseLogical(ExprPtr first, std::string_view word, Precedence next) {
    const int line = Peek().line;
    std::vector<ExprPtr> operands;
    operands.push_back(std::move(first));
    while (TakeName(word)) {
      ASSIGN_OR_RETURN(ExprPtr operand, ParseBinary(next));
      operands.push_back(std::move(operand));
    }
    const int depth = DepthOf(operands);
    return Make(Logical{word == "and", std::move(operands)}, line, depth);
  }

  absl::StatusOr<ExprPtr> ParseConcat(ExprPtr first) {
    const int line = Peek().line;
    std::vector<ExprPtr> operands;
    operands.push_back(std::move(first));
    while (TakeOp("~")) {
      ASSIGN_OR_RETURN(ExprPtr operand, ParseBinary(kMultiplicative));
      operands.push_back(std::move(operand));
    }
    const int depth = DepthOf(operands);
    return Make(Concat{std::move(operands)}, line, depth);
  }

  bool AtComparison() const {
    if (IsName("in")) return true;
    if (IsName("not")) return PeekNext().kind == TokenKind::kName && PeekNext().text == "in";
    return Peek().kind == TokenKind::kOperator &&
           (Peek().text == "==" || Peek().text == "!=" || Peek().text == "<" || Peek().text == "<=" ||
            Peek().text == ">" || Peek().text == ">=");
  }

  absl::StatusOr<ExprPtr> ParseComparison(ExprPtr first) {
    const int line = Peek().line;
    Compare compare;
    int depth = DepthOf(first);
    compare.first = std::move(first);
    while (AtComparison()) {
      const std::string op = Take().text;
      CompareOp kind = CompareOp::kIn;
      if (op == "not") {
        Take();
        kind = CompareOp::kNotIn;
      } else if (op != "in") {
        kind = op == "==" ? CompareOp::kEqual : op == "!=" ? CompareOp::kNotEqual
             : op == "<"  ? CompareOp::kLess  : op == "<=" ? CompareOp::kLessEqual
             : op == ">"  ? CompareOp::kGreater : CompareOp::kGreaterEqual;
      }
      ASSIGN_OR_RETURN(ExprPtr operand, ParseBinary(kAdditive));
      depth = std::max(depth, DepthOf(operand));
      compare.rest.emplace_back(kind, std::move(operand));
    }
    return Make(std::move(compare), line, depth);
  }

  absl::StatusOr<ExprPtr> ParseUnary(bool with_filters) {
    const Nested nested(this);
    if (nested.TooDeep()) return TooDeep();
    const int line = Peek().line;
    ExprPtr expr;
    if (IsOp("-") || IsOp("+")) {
      const Unary::Op op = Take().text == "-" ? Unary::kMinus : Unary::kPlus;
      ASSIGN_OR_RETURN(ExprPtr operand, ParseUnary(/*with_filters=*/false));
      const int depth = DepthOf(operand);
      ASSIGN_OR_RETURN(expr, Make(Unary{op, std::move(operand)}, line, depth));
    } else {
      ASSIGN_OR_RETURN(expr, ParsePrimary());
    }
    ASSIGN_OR_RETURN(expr, ParsePostfix(std::move(expr)));
    return with_filters ? ParseFilters(std::move(expr)) : std::move(expr);
  }

  absl::StatusOr<ExprPtr> ParsePrimary() {
    const int line = Peek().line;
    switch (Peek().kind) {
      case TokenKind::kName: {
        const std::string name = Take().text;
        if (name == "true" || name == "True") return Make(Literal{Value(true)}, line, 0);
        if (name == "false" || name == "False") return Make(Literal{Value(false)}, line, 0);
        if (name == "none" || name == "None") return Make(Literal{Value(None{})}, line, 0);
        if (name == "varargs") uses_varargs_ = true;
        if (name == "kwargs") uses_kwargs_ = true;
        return Make(NameRef{name}, line, 0);
      }
      case TokenKind::kString: {
        std::string text = Take().text;
        while (Peek().kind == TokenKind::kString) text += Take().text;
        return Make(Literal{Value::FromTemplate(std::move(text))}, line, 0);
      }
      case TokenKind::kInteger: return Make(Literal{Value(Take().integer)}, line, 0);
      case TokenKind::kFloat: return Make(Literal{Value(Take().number)}, line, 0);
      default: break;
    }
    if (TakeOp("(")) return ParseParenthesis(line);
    if (TakeOp("[")) return ParseList(line);
    if (TakeOp("{")) return ParseDict(line);
    return Error(StrCat("expected an expression, got ", Describe()));
  }

  absl::StatusOr<ExprPtr> ParseParenthesis(int line) {
    if (TakeOp(")")) return Make(ListExpr{{}, true}, line, 0);
    ASSIGN_OR_RETURN(ExprPtr inner, ParseTuple(/*with_condition=*/true));
    RETURN_IF_ERROR(Expect(")"));
    return inner;
  }

  absl::StatusOr<ExprPtr> ParseList(int line) {
    std::vector<ExprPtr> items;
    while (!TakeOp("]")) {
      if (!items.empty()) {
        RETURN_IF_ERROR(Expect(","));
        if (TakeOp("]")) break;
      }
      ASSIGN_OR_RETURN(ExprPtr item, ParseExpression());
      items.push_back(std::move(item));
    }
    const int depth = DepthOf(items);
    return Make(ListExpr{std::move(items), false}, line, depth);
  }

  absl::StatusOr<ExprPtr> ParseDict(int line) {
    DictExpr dict;
    int depth = 0;
    while (!TakeOp("}")) {
      if (!dict.entries.empty()) {
        RETURN_IF_ERROR(Expect(","));
        if (TakeOp("}")) break;
      }
      ASSIGN_OR_RETURN(ExprPtr key, ParseExpression());
      RETURN_IF_ERROR(Expect(":"));
      ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      depth = std::max({depth, DepthOf(key), DepthOf(value)});
      dict.entries.emplace_back(std::move(key), std::move(value));
    }
    return Make(std::move(dict), line, depth);
  }

  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr expr) {
    while (true) {
      const int line = Peek().line;
      if (TakeOp(".")) {
        const int depth = DepthOf(expr);
        if (Peek().kind == TokenKind::kInteger) {
          ASSIGN_OR_RETURN(ExprPtr index, Make(Literal{Value(Take().integer)}, line, 0));
          ASSIGN_OR_RETURN(expr, Make(Subscript{std::move(expr), std::move(index)}, line, depth));
        } else {
          ASSIGN_OR_RETURN(std::string name, ExpectName());
          ASSIGN_OR_RETURN(expr, Make(Attribute{std::move(expr), std::move(name)}, line, depth));
        }
      } else if (TakeOp("[")) {
        ASSIGN_OR_RETURN(expr, ParseSubscript(std::move(expr), line));
      } else if (IsOp("(")) {
        ASSIGN_OR_RETURN(expr, ParseCall(std::move(expr)));
      } else {
        return expr;
      }
    }
  }

  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr object, int line) {
    ExprPtr parts[3];
    int colons = 0;
    while (!IsOp("]")) {
      if (IsOp(":") && colons < 2) {
        Take();
        ++colons;
        continue;
      }
      if (parts[colons] != nullptr) return Error(StrCat("expected ']', got ", Describe()));
      ASSIGN_OR_RETURN(parts[colons], ParseExpression());
    }
    RETURN_IF_ERROR(Expect("]"));
    const int depth = std::max({DepthOf(object), DepthOf(parts[0]), DepthOf(parts[1]), DepthOf(parts[2])});
    if (colons == 0) {
      if (parts[0] == nullptr) return Error("expected an index, got ']'");
      return Make(Subscript{std::move(object), std::move(parts[0])}, line, depth);
    }
    return Make(Slice{std::move(object), std::move(parts[0]), std::move(parts[1]), std::move(parts[2])},
                line, depth);
  }

  absl::StatusOr<Arguments> ParseArguments() {
    Arguments arguments;
    RETURN_IF_ERROR(Expect("("));
    bool first = true;
    while (!TakeOp(")")) {
      if (!first) {
        RETURN_IF_ERROR(Expect(","));
        if (TakeOp(")")) break;
      }
      first = false;
      if (IsOp("*") || IsOp("**")) return Error("arguments with * or ** are not supported");
      if (Peek().kind == TokenKind::kName && PeekNext().kind == TokenKind::kOperator &&
          PeekNext().text == "=") {
        std::string name = Take().text;
        Take();
        ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
        arguments.named.emplace_back(std::move(name), std::move(value));
        continue;
      }
      if (!arguments.named.empty()) return Error("a positional argument follows a named one");
      ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      arguments.positional.push_back(std::move(value));
    }
    return arguments;
  }

  absl::StatusOr<ExprPtr> ParseCall(ExprPtr callee) {
    const int line = Peek().line;
    ASSIGN_OR_RETURN(Arguments arguments, ParseArguments());
    const int depth = std::max(DepthOf(callee), DepthOf(arguments));
    return Make(Call{std::move(callee), std::move(arguments)}, line, depth);
  }

  // name(args), a dotted name being one name
  absl::StatusOr<FilterCall> ParseFilterName() {
    FilterCall filter;
    ASSIGN_OR_RETURN(filter.name, ExpectName());
    while (TakeOp(".")) {
      ASSIGN_OR_RETURN(const std::string part, ExpectName());
      filter.name += "." + part;
    }
    if (IsOp("(")) {
      ASSIGN_OR_RETURN(filter.arguments, ParseArguments());
    }
    return filter;
  }

  absl::StatusOr<ExprPtr> ParseFilters(ExprPtr expr) {
    while (true) {
      const int line = Peek().line;
      if (TakeOp("|")) {
        ASSIGN_OR_RETURN(FilterCall filter, ParseFilterName());
        const int depth = std::max(DepthOf(expr), DepthOf(filter.arguments));
        filter.input = std::move(expr);
        ASSIGN_OR_RETURN(expr, Make(std::move(filter), line, depth));
      } else if (TakeName("is")) {
        ASSIGN_OR_RETURN(expr, ParseTest(std::move(expr), line));
      } else if (IsOp("(")) {
        ASSIGN_OR_RETURN(expr, ParseCall(std::move(expr)));
      } else {
        return expr;
      }
    }
  }

  absl::StatusOr<ExprPtr> ParseTest(ExprPtr input, int line) {
    TestCall test;
    test.negated = TakeName("not");
    ASSIGN_OR_RETURN(test.name, ExpectName());
    const Token& next = Peek();
    const bool operand =
        next.kind == TokenKind::kString || next.kind == TokenKind::kInteger ||
        next.kind == TokenKind::kFloat || IsOp("[") || IsOp("{") ||
        (next.kind == TokenKind::kName && !IsName("else") && !IsName("or") && !IsName("and") &&
         !IsName("if") && !IsName("in") && !IsName("not") && !IsName("recursive"));
    if (IsOp("(")) {
      ASSIGN_OR_RETURN(test.arguments, ParseArguments());
    } else if (operand) {
      if (IsName("is")) return Error("tests cannot be chained with is");
      ASSIGN_OR_RETURN(ExprPtr argument, ParsePrimary());
      ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
      test.arguments.positional.push_back(std::move(argument));
    }
    const int depth = std::max(DepthOf(input), DepthOf(test.arguments));
    test.input = std::move(input);
    return Make(std::move(test), line, depth);
  }

  // --- statements
  // Statements up to a tag named in `ends`, whose name is left to be read; or up to the end.
  absl::StatusOr<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    const Nested nested(this);
    if (nested.TooDeep()) return TooDeep();
    Body body;
    while (true) {
      const int line = Peek().line;
      switch (Peek().kind) {
        case TokenKind::kEnd: {
          if (ends.size() == 0) return body;
          return Error(StrCat("the template ends where {% ", *(ends.end() - 1), " %} is missing"));
        }
        case TokenKind::kData: Add(&body, DataStmt{Take().text}, line); break;
        case TokenKind::kVariableBegin: {
          Take();
          ASSIGN_OR_RETURN(ExprPtr value, ParseTuple(/*with_condition=*/true));
          if (Peek().kind != TokenKind::kVariableEnd) {
            return Error(StrCat("expected '}}', got ", Describe()));
          }
          Take();
          Add(&body, OutputStmt{std::move(value)}, line);
          break;
        }
        case TokenKind::kBlockBegin: {
          Take();
          if (Peek().kind != TokenKind::kName) return Error(StrCat("expected a tag, got ", Describe()));
          if (std::find(ends.begin(), ends.end(), Peek().text) != ends.end()) return body;
          RETURN_IF_ERROR(ParseTag(&body));
          break;
        }
        default: return Error(StrCat("unexpected ", Describe()));
      }
    }
  }

  template <typename Node>
  void Add(Body* body, Node node, int line) {
    auto stmt = std::make_unique<Stmt>();
    stmt->node = std::move(node);
    stmt->line = line;
    body->push_back(std::move(stmt));
  }

  // The end tag of a body: its name, then %}.
  absl::Status CloseBody() {
    Take();
    return ExpectBlockEnd();
  }

  absl::Status ParseTag(Body* body) {
    const int line = Peek().line;
    const std::string tag = Take().text;
    if (tag == "if") return ParseIf(body, line);
    if (tag == "for") return ParseFor(body, line);
    if (tag == "set") return ParseSet(body, line);
    if (tag == "macro") return ParseMacro(body, line);
    if (tag == "call") return ParseCallBlock(body, line);
    if (tag == "filter") return ParseFilterBlock(body, line);
    if (tag == "with") return ParseWith(body, line);
    if (tag == "generation") {
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(Body inner, ParseBody({"endgeneration"}));
      Add(body, BlockStmt{std::move(inner)}, line);
      return CloseBody();
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) return Error(StrCat("{% ", tag, " %} is not inside a loop"));
      if (tag == "break") {
        Add(body, BreakStmt{}, line);
      } else {
        Add(body, ContinueStmt{}, line);
      }
      return ExpectBlockEnd();
    }
    for (const std::string_view known : {"include", "import", "from", "extends", "block", "do",
                                         "trans", "autoescape", "debug"}) {
      if (tag == known) {
        return absl::UnimplementedError(
            StrCat("chat template, line ", line, ": the tag {% ", tag, " %} is not supported"));
      }
    }
    return Error(StrCat("unknown tag '", tag, "'"));
  }

  absl::Status ParseIf(Body* body, int line) {
    IfStmt stmt;
    while (true) {
      ASSIGN_OR_RETURN(ExprPtr condition, ParseTuple(/*with_condition=*/false));
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(Body branch, ParseBody({"elif", "else", "endif"}));
      stmt.branches.emplace_back(std::move(condition), std::move(branch));
      if (TakeName("elif")) continue;
      if (TakeName("else")) {
        RETURN_IF_ERROR(ExpectBlockEnd());
        ASSIGN_OR_RETURN(stmt.otherwise, ParseBody({"endif"}));
      }
      Add(body, std::move(stmt), line);
      return CloseBody();
    }
  }

  absl::StatusOr<Target> ParseTarget(bool allow_attribute) {
    const Nested nested(this);
    if (nested.TooDeep()) return TooDeep();
    Target tuple;
    bool is_tuple = false;
    while (true) {
      Target one;
      if (TakeOp("(")) {
        ASSIGN_OR_RETURN(one, ParseTarget(false));
        RETURN_IF_ERROR(Expect(")"));
      } else {
        ASSIGN_OR_RETURN(one.name, ExpectName());
        if (allow_attribute && TakeOp(".")) {
          ASSIGN_OR_RETURN(one.attribute, ExpectName());
        }
      }
      tuple.elements.push_back(std::move(one));
      if (!TakeOp(",")) break;
      is_tuple = true;
      if (IsName("in") || IsOp("=") || IsOp(")")) break;
    }
    if (is_tuple) return tuple;
    Target single = std::move(tuple.elements[0]);
    return single;
  }

  absl::Status ParseFor(Body* body, int line) {
    ForStmt stmt;
    ASSIGN_OR_RETURN(stmt.target, ParseTarget(false));
    if (!TakeName("in")) return Error(StrCat("expected 'in', got ", Describe()));
    ASSIGN_OR_RETURN(stmt.iterable, ParseTuple(/*with_condition=*/false, "recursive"));
    if (TakeName("if")) {
      ASSIGN_OR_RETURN(stmt.filter, ParseExpression());
    }
    stmt.recursive = TakeName("recursive");
    RETURN_IF_ERROR(ExpectBlockEnd());
    ++loops_;
    absl::StatusOr<Body> inner = ParseBody({"else", "endfor"});
    --loops_;
    ASSIGN_OR_RETURN(stmt.body, std::move(inner));
    if (TakeName("else")) {
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(stmt.otherwise, ParseBody({"endfor"}));
    }
    Add(body, std::move(stmt), line);
    return CloseBody();
  }

  absl::Status ParseSet(Body* body, int line) {
    ASSIGN_OR_RETURN(Target target, ParseTarget(true));
    if (TakeOp("=")) {
      ASSIGN_OR_RETURN(ExprPtr value, ParseTuple(/*with_condition=*/true));
      Add(body, SetStmt{std::move(target), std::move(value)}, line);
      return ExpectBlockEnd();
    }
    SetBlockStmt stmt;
    stmt.target = std::move(target);
    while (TakeOp("|")) {
      ASSIGN_OR_RETURN(FilterCall filter, ParseFilterName());
      stmt.filters.push_back(std::move(filter));
    }
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(stmt.body, ParseBody({"endset"}));
    Add(body, std::move(stmt), line);
    return CloseBody();
  }

  absl::Status ParseParameters(MacroNode* macro) {
    RETURN_IF_ERROR(Expect("("));
    bool first = true;
    while (!TakeOp(")")) {
      if (!first) {
        RETURN_IF_ERROR(Expect(","));
        if (TakeOp(")")) break;
      }
      first = false;
      ASSIGN_OR_RETURN(std::string name, ExpectName());
      ExprPtr value;
      if (TakeOp("=")) {
        ASSIGN_OR_RETURN(value, ParseExpression());
      } else if (!macro->parameters.empty() && macro->parameters.back().second != nullptr) {
        return Error("a parameter without default follows one with default");
      }
      macro->parameters.emplace_back(std::move(name), std::move(value));
    }
    return absl::OkStatus();
  }

  // The body of a macro up to `end`, noting whether it uses varargs and kwargs.
  absl::Status ParseMacroBody(MacroNode* macro, std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    const bool varargs = std::exchange(uses_varargs_, false);
    const bool kwargs = std::exchange(uses_kwargs_, false);
    absl::StatusOr<Body> inner = ParseBody({end});
    macro->takes_varargs = uses_varargs_;
    macro->takes_kwargs = uses_kwargs_;
    loops_ = loops;
    uses_varargs_ = varargs;
    uses_kwargs_ = kwargs;
    ASSIGN_OR_RETURN(macro->body, std::move(inner));
    return CloseBody();
  }

  absl::Status ParseMacro(Body* body, int line) {
    auto macro = std::make_unique<MacroNode>();
    ASSIGN_OR_RETURN(macro->name, ExpectName());
    RETURN_IF_ERROR(ParseParameters(macro.get()));
    RETURN_IF_ERROR(ExpectBlockEnd());
    RETURN_IF_ERROR(ParseMacroBody(macro.get(), "endmacro"));
    Add(body, MacroStmt{std::move(macro)}, line);
    return absl::OkStatus();
  }

  absl::Status ParseCallBlock(Body* body, int line) {
    CallStmt stmt;
    stmt.caller = std::make_unique<MacroNode>();
    stmt.caller->name = "caller";
    if (IsOp("(")) RETURN_IF_ERROR(ParseParameters(stmt.caller.get()));
    ASSIGN_OR_RETURN(stmt.call, ParseExpression());
    if (!std::holds_alternative<Call>(stmt.call->node)) return Error("{% call %} needs a call");
    RETURN_IF_ERROR(ExpectBlockEnd());
    RETURN_IF_ERROR(ParseMacroBody(stmt.caller.get(), "endcall"));
    Add(body, std::move(stmt), line);
    return absl::OkStatus();
  }

  absl::Status ParseFilterBlock(Body* body, int line) {
    FilterStmt stmt;
    do {
      ASSIGN_OR_RETURN(FilterCall filter, ParseFilterName());
      stmt.filters.push_back(std::move(filter));
    } while (TakeOp("|"));
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(stmt.body, ParseBody({"endfilter"}));
    Add(body, std::move(stmt), line);
    return CloseBody();
  }

  absl::Status ParseWith(Body* body, int line) {
    WithStmt stmt;
    while (Peek().kind != TokenKind::kBlockEnd) {
      if (!stmt.bindings.empty()) RETURN_IF_ERROR(Expect(","));
      Target target;
      ASSIGN_OR_RETURN(target.name, ExpectName());
      RETURN_IF_ERROR(Expect("="));
      ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      stmt.bindings.emplace_back(std::move(target), std::move(value));
    }
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(stmt.body, ParseBody({"endwith"}));
    Add(body, std::move(stmt), line);
    return CloseBody();
  }

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int depth_ = 0;
  int loops_ = 0;
  bool uses_varargs_ = false, uses_kwargs_ = false;
};

}  // namespace

absl::StatusOr<Body> Parse(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace longstride::model::jinja

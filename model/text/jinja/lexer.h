// Chat template source to tokens: Jinja's lexer with trim_blocks and lstrip_blocks on, as chat
// templates are rendered.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace longstride::model::jinja {

enum class TokenKind {
  kData,           // text outside of tags
  kBlockBegin,     // {%
  kBlockEnd,       // %}
  kVariableBegin,  // {{
  kVariableEnd,    // }}
  kName,
  kString,         // decoded
  kInteger,
  kFloat,
  kOperator,       // text is the operator
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
  double number = 0;     // kFloat
  int64_t integer = 0;   // kInteger
};

inline constexpr size_t kMaxTemplateBytes = 256 * 1024;

// InvalidArgument, with the line, for a template that is too large, not UTF-8, or malformed.
absl::StatusOr<std::vector<Token>> Lex(std::string_view source);

}  // namespace longstride::model::jinja

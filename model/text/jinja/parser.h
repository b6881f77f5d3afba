// Chat template source to a tree. Recursion and tree depth are bounded.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "model/text/jinja/ast.h"

namespace longstride::model::jinja {

// Nesting of expressions and statements that the parser follows; trees are never deeper.
inline constexpr int kMaxParseDepth = 200;

// InvalidArgument with the line for what is no template; Unimplemented for Jinja tags that chat
// templates may not use (include, import, extends, block, do, trans).
absl::StatusOr<Body> Parse(std::string_view source);

}  // namespace longstride::model::jinja

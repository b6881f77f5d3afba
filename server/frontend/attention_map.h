#pragma once

#include <string>
#include <string_view>

#include "config/base/status.h"
#include "server/frontend/served_model.h"

namespace longstride::frontend {

// What each layer attends to at a context of `length` tokens, drawn from the patterns' definition:
// {"length":N,"cells":C,"patterns":[{"pattern","layers","visible_keys","density","query_dependent",
// "rows":["0f3…",…]}]}. visible_keys and density are a generated token's at the end.
// A row is a query block, a hex digit the share (0 to f) of a key block that it sees, sampled.
// `query`: "length=N", at most the model's context; absent: 4096 or the context.
absl::StatusOr<std::string> AttentionMapJson(const ServedModel& model, std::string_view query);

}  // namespace longstride::frontend

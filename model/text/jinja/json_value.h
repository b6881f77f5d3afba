// JSON text to values.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "model/text/jinja/value.h"

namespace longstride::model::jinja {

// Keeps the order of keys; a repeated key keeps its place and takes the last value, as Python does.
// All texts count as `origin`. InvalidArgument, with the byte, for what is no JSON or is nested
// deeper than 64 levels; `what` names the document in the message.
absl::StatusOr<Value> ParseJson(std::string_view json, Origin origin, std::string_view what);

}  // namespace longstride::model::jinja

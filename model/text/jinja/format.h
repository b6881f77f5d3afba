// Values as text: Python's str, repr and % formatting, and json.dumps.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "model/text/jinja/value.h"

namespace longstride::model::jinja {

// Shortest text that reads back as the same number, as Python's repr writes it.
std::string FormatFloat(double value);

// Python's str(); `limit` bytes at most, else InvalidArgument. A text keeps its origins; what is made
// of a container that has input counts as input.
absl::StatusOr<Text> ToText(const Value& value, size_t limit);
// Python's repr().
absl::StatusOr<std::string> Repr(const Value& value, size_t limit);

struct JsonStyle {
  int indent = -1;  // spaces a level; < 0: one line
  std::string item_separator = ", ", key_separator = ": ";
  bool ensure_ascii = false, sort_keys = false;
};
// InvalidArgument for values that JSON cannot hold, such as undefined.
absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style, size_t limit);

// format % arguments, a tuple or one value; conversions d i s r f e g x X o c %.
absl::StatusOr<Text> PercentFormat(const Text& format, const Value& arguments, size_t limit);

}  // namespace longstride::model::jinja

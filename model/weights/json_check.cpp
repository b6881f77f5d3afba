#include "model/weights/json_check.h"

namespace longstride::model {

absl::Status CheckJsonLimits(std::string_view text, std::string_view what, size_t max_bytes,
                             int max_depth) {
  if (text.size() > max_bytes) {
    return absl::InvalidArgumentError(
        StrCat(what, " has ", text.size(), " bytes; at most ", max_bytes, " are allowed"));
  }
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > max_depth) {
        return absl::InvalidArgumentError(
            StrCat(what, " nests deeper than the ", max_depth, " levels that are allowed"));
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::model

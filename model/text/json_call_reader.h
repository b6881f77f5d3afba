// Reads one tool call written as a JSON object, as it comes. Internal to model/text.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "model/text/json_scanner.h"

namespace longstride::model {

// {"name": "f", "arguments": {...}}, the keys in any order and further ones allowed. The families
// also call them tool_name and parameters; "id" and "tool_call_id" name the call. Arguments may be an
// object, the text of an object, or null (none).
class JsonCallReader {
 public:
  enum class State { kMore, kDone, kBad };
  // Takes one byte. After kDone or kBad the reader is at its end; kBad: `c` was not taken.
  State Feed(char c);

  const std::optional<std::string>& name() const { return name_; }
  const std::string& id() const { return id_; }
  // Whether the arguments have begun, so that the call can be announced once its name is known.
  bool has_arguments() const { return has_arguments_; }
  // The text of the arguments since the last call of this.
  std::string TakeArguments();

 private:
  enum class At { kStart, kKeyOrEnd, kKey, kInKey, kColon, kValue, kInValue, kCommaOrEnd };
  State EndOfValue();
  State EndOfObject();

  At at_ = At::kStart;
  JsonScanner scanner_;
  std::string key_, value_;  // as written
  std::optional<std::string> name_;
  std::string id_;
  std::string arguments_;
  bool has_arguments_ = false;
  bool streaming_ = false;  // the value being read is an object of arguments
};

}  // namespace longstride::model

// The one declaration of each option, from which everything about options is derived.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "config/server_config.h"

namespace longstride {

// Where an option lives in a ServerConfig; the alternative is the option's storage type.
using OptionField = std::variant<std::string*, int64_t*, double*, bool*, absl::Duration*>;

enum class OptionKind { kText, kPath, kChoice, kCount, kBytes, kNumber, kSwitch, kDuration };

struct Option {
  std::string_view name;  // "kv.dtype": key of the file, dots nest
  OptionKind kind = OptionKind::kText;
  OptionField (*field)(ServerConfig& config) = nullptr;
  std::string_view help;  // one or more sentences
  // Inclusive range of kCount, kBytes, kNumber and kDuration (seconds).
  double min = 0;
  double max = 0;
  std::vector<std::string> choices = {};  // kChoice
  std::string_view zero_means = {};       // what 0 or "" stands for, where it is special

  std::string Flag() const;         // "--kv-dtype"
  std::string Environment() const;  // "LONGSTRIDE_KV_DTYPE"
};

struct OptionSection {
  std::string_view title;
  std::vector<Option> options;
};

// In the order in which help and documentation show them. Immutable.
const std::vector<OptionSection>& OptionSections();

// nullptr where there is no such option. `name` as in the file, or a flag with or without "--".
const Option* FindOption(std::string_view name);

// All options' names ("kv.dtype") or flags ("--kv-dtype"), for suggestions.
std::vector<std::string> OptionNames();
std::vector<std::string> OptionFlags();

// "512MiB", "400ms", "true": as the option's value would be written by a person.
std::string FormatOption(const Option& option, const ServerConfig& config);
// The value a fresh ServerConfig has.
std::string FormatDefault(const Option& option);
// "integer, 1 to 65535"; "size, 16MiB to 64TiB, 0: …".
std::string DescribeType(const Option& option);

// Reads `text` into the option's field. INVALID_ARGUMENT says what is allowed; the message starts
// with what was got and does not name the option or where the text came from.
absl::Status SetOption(const Option& option, std::string_view text, ServerConfig* config);

}  // namespace longstride

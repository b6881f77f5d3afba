// Puts a configuration together: defaults, then the file, then the environment, then flags.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/base/status.h"
#include "config/option_table.h"
#include "config/server_config.h"

namespace longstride {

// Where a value came from: "default", "file", "environment LONGSTRIDE_…", "flag --…".
using OptionSources = std::map<std::string_view, std::string>;  // by option name

struct LoadedConfig {
  ServerConfig config;
  OptionSources sources;  // every option
};

struct FlagValue {
  std::string flag;   // "--kv-dtype"
  std::string value;  // "true" for a switch without a value
};

struct ConfigInputs {
  std::string file_text;  // contents of the configuration file, "" for none
  std::vector<std::pair<std::string, std::string>> environment;  // all variables of the process
  std::vector<FlagValue> flags;
};

// Reads and validates. INVALID_ARGUMENT names the option, where its value came from, what was got
// and what is allowed; unknown names suggest the nearest one; the same flag or key twice is an
// error.
absl::StatusOr<LoadedConfig> LoadConfig(const ConfigInputs& inputs);

// Splits a command line into options' flags, the flags of the command itself (`own_flags`, each
// taking a value unless it is in `own_switches`) and plain arguments. Accepts --name value,
// --name=value, --switch and --no-switch; "--" ends the flags.
struct ParsedArgs {
  std::vector<FlagValue> options;
  std::map<std::string, std::string> own;  // "--json" -> "true"
  std::vector<std::string> plain;
};
struct CommandFlags {
  std::vector<std::string> valued;    // "--prompt"
  std::vector<std::string> switches;  // "--json"
  bool accepts_options = true;        // the server's options too
};
absl::StatusOr<ParsedArgs> ParseArgs(const std::vector<std::string>& args,
                                     const CommandFlags& command);

}  // namespace longstride

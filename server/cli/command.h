// The commands of `longstride` and what they have in common.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "config/config_loader.h"

namespace longstride::cli {

// Exit statuses; docs/operations.md lists them.
enum ExitStatus {
  kExitOk = 0,
  kExitFailed = 1,   // failed while running
  kExitUsage = 2,    // wrong command line, configuration or plan
  kExitModel = 3,    // the model is missing, broken or of an unknown kind
  kExitAddress = 4,  // an address cannot be listened on, or a server not be reached
  kExitMemory = 5,   // not enough memory
};

// What a command gets to work with.
struct Invocation {
  std::vector<std::string> plain;          // arguments that are no flags
  std::map<std::string, std::string> own;  // the command's own flags
  LoadedConfig loaded;                     // where the command takes the server's options

  const ServerConfig& config() const { return loaded.config; }
  bool Has(const std::string& flag) const { return own.count(flag) != 0; }
  // The flag's value, or `fallback`.
  std::string Text(const std::string& flag, const std::string& fallback) const;
  // INVALID_ARGUMENT names the flag, what was got and the range.
  absl::StatusOr<int64_t> Int(const std::string& flag, int64_t fallback, int64_t min,
                              int64_t max) const;
  absl::StatusOr<double> Number(const std::string& flag, double fallback, double min,
                                double max) const;
};

struct OwnFlag {
  std::string name;   // "--prompt"
  std::string value;  // "TEXT"; "" for a switch
  std::string help;
};

struct Command {
  std::string_view name;
  std::string_view arguments;  // "MODEL [PROMPT]"
  std::string_view summary;
  std::vector<OwnFlag> flags;
  bool takes_options = true;    // the server's options
  bool first_is_model = false;  // the first plain argument sets `model`
  int max_plain = 0;            // plain arguments after the model
  absl::StatusOr<int> (*run)(const Invocation& invocation);
};

// All commands but `serve`, in the order of the help.
std::vector<Command> Commands();

// Parses `args` (without the program's name), runs the command and returns the exit status; errors
// go to stderr as one line. `environment`: all variables.
int Run(const std::vector<Command>& commands, const std::vector<std::string>& args,
        const std::vector<std::pair<std::string, std::string>>& environment);

// Exit status and line on stderr for a failure.
int ReportFailure(const absl::Status& status);

// Tags a status with the exit status that it should end in, keeping its code and message.
absl::Status WithExit(absl::Status status, ExitStatus exit);

// Contents of a file that the operator named; `what` names it in messages ("The plan file").
absl::StatusOr<std::string> ReadTextFile(const std::string& path, std::string_view what,
                                         int64_t max_bytes);

}  // namespace longstride::cli

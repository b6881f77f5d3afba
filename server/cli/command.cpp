#include "server/cli/command.h"

#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "config/base/version.h"
#include "config/config_docs.h"
#include "config/nearest_name.h"

namespace longstride::cli {
namespace {

constexpr char kExitPayload[] = "longstride.dev/exit";
constexpr int64_t kMaxConfigBytes = int64_t{1} << 20;

int ExitOf(const absl::Status& status) {
  if (const auto payload = status.GetPayload(kExitPayload); payload.has_value()) {
    int exit = kExitFailed;
    if (absl::SimpleAtoi(std::string(*payload), &exit)) return exit;
  }
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return kExitUsage;
    case absl::StatusCode::kResourceExhausted:
      return kExitMemory;
    default:
      return kExitFailed;
  }
}

std::string GeneralHelp(const std::vector<Command>& commands) {
  std::string out = StrCat("longstride ", Version(),
                           ": serves long-context, sparse-attention models\n\nusage: longstride "
                           "COMMAND [ARGUMENTS] [FLAGS]\n\n");
  for (const Command& command : commands) {
    std::string name(command.name);
    name.resize(17, ' ');
    StrAppend(&out, "  ", name, command.summary, "\n");
  }
  return out +
         "\n`longstride COMMAND --help` says more; `longstride --version` prints the version.\n";
}

std::string CommandHelp(const Command& command) {
  std::string out =
      StrCat("usage: longstride ", command.name, " ", command.arguments,
             command.arguments.empty() ? "" : " ", "[FLAGS]\n\n", command.summary, "\n\n");
  for (const OwnFlag& flag : command.flags) {
    StrAppend(&out, "  ", flag.name, flag.value.empty() ? "" : " ", flag.value, "\n      ",
              flag.help, "\n");
  }
  if (!command.takes_options) return out;
  StrAppend(&out, command.flags.empty() ? "" : "\n",
            "  --config FILE\n      Configuration file; all options below may stand in it "
            "(docs/configuration.md).\n\n",
            OptionsHelp());
  return out;
}

CommandFlags FlagsOf(const Command& command) {
  CommandFlags flags;
  for (const OwnFlag& flag : command.flags) {
    (flag.value.empty() ? flags.switches : flags.valued).push_back(flag.name);
  }
  flags.switches.emplace_back("--help");
  flags.accepts_options = command.takes_options;
  return flags;
}

std::string FindVariable(const std::vector<std::pair<std::string, std::string>>& environment,
                         std::string_view name) {
  for (const auto& [key, value] : environment) {
    if (key == name) return value;
  }
  return "";
}

// Moves the model argument to the option it stands for.
absl::Status TakeModel(const Command& command, ParsedArgs* parsed) {
  if (command.first_is_model && !parsed->plain.empty()) {
    for (const FlagValue& flag : parsed->options) {
      if (flag.flag == "--model") {
        return absl::InvalidArgumentError(
            "The model is given twice, as an argument and by --model; keep one.");
      }
    }
    parsed->options.push_back({"--model", parsed->plain.front()});
    parsed->plain.erase(parsed->plain.begin());
  }
  if (static_cast<int>(parsed->plain.size()) > command.max_plain) {
    return absl::InvalidArgumentError(
        StrCat("Unexpected argument ", Quoted(parsed->plain[command.max_plain]),
               "; usage: longstride ", command.name, " ", command.arguments));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> RunCommand(
    const Command& command, const std::vector<std::string>& args,
    const std::vector<std::pair<std::string, std::string>>& environment) {
  ASSIGN_OR_RETURN(ParsedArgs parsed, ParseArgs(args, FlagsOf(command)));
  if (parsed.own.count("--help") != 0) {
    std::cout << CommandHelp(command);
    return kExitOk;
  }
  RETURN_IF_ERROR(TakeModel(command, &parsed));
  Invocation invocation;
  invocation.plain = parsed.plain;
  if (command.takes_options) {
    ConfigInputs inputs{.file_text = "", .environment = environment, .flags = parsed.options};
    std::string file = FindVariable(environment, "LONGSTRIDE_CONFIG");
    if (const auto given = parsed.own.find("--config"); given != parsed.own.end()) {
      file = given->second;
    }
    if (!file.empty()) {
      ASSIGN_OR_RETURN(inputs.file_text,
                       ReadTextFile(file, "The configuration file", kMaxConfigBytes));
      if (inputs.file_text.empty()) {
        return absl::InvalidArgumentError("The configuration file is empty; {} is the least.");
      }
    }
    ASSIGN_OR_RETURN(invocation.loaded, LoadConfig(inputs));
  }
  parsed.own.erase("--config");
  invocation.own = std::move(parsed.own);
  return command.run(invocation);
}

}  // namespace

std::string Invocation::Text(const std::string& flag, const std::string& fallback) const {
  const auto found = own.find(flag);
  return found == own.end() ? fallback : found->second;
}

absl::StatusOr<int64_t> Invocation::Int(const std::string& flag, int64_t fallback, int64_t min,
                                        int64_t max) const {
  const auto found = own.find(flag);
  if (found == own.end()) return fallback;
  int64_t value = 0;
  if (!absl::SimpleAtoi(found->second, &value) || value < min || value > max) {
    return absl::InvalidArgumentError(StrCat(flag, ": got ", Quoted(found->second),
                                             "; allowed is a whole number, ", min, " to ", max,
                                             "."));
  }
  return value;
}

absl::StatusOr<double> Invocation::Number(const std::string& flag, double fallback, double min,
                                          double max) const {
  const auto found = own.find(flag);
  if (found == own.end()) return fallback;
  double value = 0;
  if (!absl::SimpleAtod(found->second, &value) || !(value >= min && value <= max)) {
    return absl::InvalidArgumentError(StrCat(flag, ": got ", Quoted(found->second),
                                             "; allowed is a number, ", min, " to ", max, "."));
  }
  return value;
}

int ReportFailure(const absl::Status& status) {
  std::cerr << "longstride: " << ToStd(status.message()) << std::endl;
  return ExitOf(status);
}

absl::Status WithExit(absl::Status status, ExitStatus exit) {
  if (!status.ok()) status.SetPayload(kExitPayload, absl::Cord(std::to_string(exit)));
  return status;
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, std::string_view what,
                                         int64_t max_bytes) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    return absl::InvalidArgumentError(
        StrCat(what, " ", Quoted(path), " cannot be read; check that it exists and is readable."));
  }
  std::string text(static_cast<size_t>(max_bytes) + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (in.bad() || (in.fail() && !in.eof())) {
    return absl::InvalidArgumentError(StrCat(what, " ", Quoted(path), " is not a readable file."));
  }
  if (static_cast<int64_t>(text.size()) > max_bytes) {
    return absl::InvalidArgumentError(
        StrCat(what, " ", Quoted(path), " is larger than ", max_bytes, " bytes."));
  }
  return text;
}

int Run(const std::vector<Command>& commands, const std::vector<std::string>& args,
        const std::vector<std::pair<std::string, std::string>>& environment) {
  if (args.empty()) {
    std::cerr << GeneralHelp(commands);
    return kExitUsage;
  }
  if (args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    std::cout << GeneralHelp(commands);
    return kExitOk;
  }
  if (args[0] == "--version" || args[0] == "version") {
    std::cout << "longstride " << Version() << " (" << BuildCommit() << ", " << BuildCompiler()
              << ")\n";
    return kExitOk;
  }
  std::vector<std::string> names;
  for (const Command& command : commands) {
    names.emplace_back(command.name);
    if (command.name != args[0]) continue;
    const absl::StatusOr<int> exit =
        RunCommand(command, {args.begin() + 1, args.end()}, environment);
    return exit.ok() ? *exit : ReportFailure(exit.status());
  }
  return ReportFailure(absl::InvalidArgumentError(StrCat("Unknown command ", Quoted(args[0]), ".",
                                                         DidYouMean(args[0], names),
                                                         " `longstride --help` lists all.")));
}

}  // namespace longstride::cli

#include "config/config_loader.h"

#include <algorithm>
#include <set>

#include "config/nearest_name.h"
#include "config/strict_json.h"

namespace longstride {
namespace {

using nlohmann::json;

constexpr std::string_view kPrefix = "LONGSTRIDE_";

absl::Status Set(const Option& option, std::string_view text, const std::string& source,
                 LoadedConfig* loaded) {
  const absl::Status status = SetOption(option, text, &loaded->config);
  if (!status.ok()) {
    const std::string message(status.message());
    const char* stop = !message.empty() && message.back() == '?' ? "" : ".";
    return absl::InvalidArgumentError(
        StrCat(option.name, " (from the ", source, "): ", message, stop));
  }
  loaded->sources[option.name] = source;
  return absl::OkStatus();
}

// A file's value as the text that a flag would have.
absl::StatusOr<std::string> ValueText(const Option& option, const json& value) {
  const bool is_number = option.kind == OptionKind::kCount || option.kind == OptionKind::kBytes ||
                         option.kind == OptionKind::kNumber;
  if (value.is_string() && option.kind != OptionKind::kSwitch &&
      option.kind != OptionKind::kCount && option.kind != OptionKind::kNumber) {
    return value.get<std::string>();
  }
  if (value.is_boolean() && option.kind == OptionKind::kSwitch) {
    return std::string(value.get<bool>() ? "true" : "false");
  }
  if (value.is_number() && is_number) return value.dump();
  return absl::InvalidArgumentError(StrCat(option.name, " (from the file): got ",
                                           Quoted(value.dump(-1, ' ', true)), "; allowed is ",
                                           DescribeType(option), "."));
}

absl::Status UnknownKey(const std::string& name) {
  const std::vector<std::string> known = OptionNames();
  return absl::InvalidArgumentError(StrCat("The configuration file has an unknown key ",
                                           Quoted(name), ".", DidYouMean(name, known),
                                           " `longstride config` lists all keys."));
}

bool IsSectionName(const std::string& name) {
  const std::vector<std::string> known = OptionNames();
  return std::any_of(known.begin(), known.end(),
                     [&](const std::string& k) { return k.rfind(name + ".", 0) == 0; });
}

const Option* FindByKey(const std::string& name) {
  const Option* option = FindOption(name);
  return option != nullptr && option->name == name ? option : nullptr;
}

// Keys nest one level, as options' names do.
absl::Status ApplyObject(const json& object, const std::string& prefix, LoadedConfig* loaded) {
  for (const auto& [key, value] : object.items()) {
    const std::string name = prefix + key;
    if (prefix.empty() && key == "$schema" && value.is_string()) continue;  // for editors
    const bool dotted = key.find('.') != std::string::npos;
    if (prefix.empty() && !dotted && value.is_object() && IsSectionName(name)) {
      RETURN_IF_ERROR(ApplyObject(value, name + ".", loaded));
      continue;
    }
    const Option* option = dotted ? nullptr : FindByKey(name);
    if (option == nullptr) return UnknownKey(name);
    ASSIGN_OR_RETURN(const std::string text, ValueText(*option, value));
    RETURN_IF_ERROR(Set(*option, text, "file", loaded));
  }
  return absl::OkStatus();
}

absl::Status ApplyFile(const std::string& text, LoadedConfig* loaded) {
  ASSIGN_OR_RETURN(const json document, ParseStrictJson(text, "The configuration file"));
  if (!document.is_object()) {
    return absl::InvalidArgumentError(
        "The configuration file must hold one JSON object with options as keys.");
  }
  return ApplyObject(document, "", loaded);
}

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Kubernetes puts the addresses of services into the environment; a service named "longstride" must
// not stop the server. LONGSTRIDE_TEST_… belongs to the test suites.
bool IsForeignVariable(std::string_view name, std::string_view value) {
  return EndsWith(name, "_SERVICE_HOST") || name.find("_SERVICE_PORT") != std::string_view::npos ||
         name.find("_TCP") != std::string_view::npos ||
         (EndsWith(name, "_PORT") && value.substr(0, 6) == "tcp://") ||
         name.substr(0, kPrefix.size() + 5) == "LONGSTRIDE_TEST_";
}

absl::Status ApplyEnvironment(const ConfigInputs& inputs, LoadedConfig* loaded) {
  std::map<std::string, const Option*> known = {{"LONGSTRIDE_CONFIG", nullptr}};
  std::vector<std::string> names = {"LONGSTRIDE_CONFIG"};
  for (const OptionSection& section : OptionSections()) {
    for (const Option& option : section.options) {
      known[option.Environment()] = &option;
      names.push_back(option.Environment());
    }
  }
  for (const auto& [name, value] : inputs.environment) {
    if (name.rfind(kPrefix, 0) != 0 || IsForeignVariable(name, value)) continue;
    const auto found = known.find(name);
    if (found == known.end()) {
      return absl::InvalidArgumentError(StrCat("The environment has an unknown variable ",
                                               Quoted(name), ".", DidYouMean(name, names)));
    }
    if (found->second == nullptr) continue;
    RETURN_IF_ERROR(Set(*found->second, value, "environment " + name, loaded));
  }
  return absl::OkStatus();
}

absl::Status UnknownFlag(const std::string& flag, const CommandFlags& command) {
  std::vector<std::string> known = command.valued;
  known.insert(known.end(), command.switches.begin(), command.switches.end());
  if (command.accepts_options) {
    for (std::string& name : OptionFlags()) known.push_back(std::move(name));
    known.emplace_back("--config");
  }
  return absl::InvalidArgumentError(StrCat("Unknown flag ", Quoted(flag), ".",
                                           DidYouMean(flag, known),
                                           " --help lists what is allowed."));
}

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// What one flag is: whether it takes a value, and for --no-x the switch that it turns off.
struct FlagMeaning {
  bool own = false;
  bool is_switch = false;
  bool negated = false;
  std::string name;
};

absl::StatusOr<FlagMeaning> Classify(const std::string& flag, const CommandFlags& command) {
  if (Contains(command.valued, flag)) return FlagMeaning{.own = true, .name = flag};
  if (Contains(command.switches, flag)) {
    return FlagMeaning{.own = true, .is_switch = true, .name = flag};
  }
  if (!command.accepts_options) return UnknownFlag(flag, command);
  if (flag == "--config") return FlagMeaning{.own = true, .name = flag};
  if (const Option* option = FindOption(flag); option != nullptr && option->Flag() == flag) {
    return FlagMeaning{.is_switch = option->kind == OptionKind::kSwitch, .name = flag};
  }
  if (flag.rfind("--no-", 0) == 0) {
    const std::string positive = "--" + flag.substr(5);
    const Option* option = FindOption(positive);
    if (option != nullptr && option->Flag() == positive && option->kind == OptionKind::kSwitch) {
      return FlagMeaning{.is_switch = true, .negated = true, .name = positive};
    }
  }
  return UnknownFlag(flag, command);
}

}  // namespace

absl::StatusOr<LoadedConfig> LoadConfig(const ConfigInputs& inputs) {
  LoadedConfig loaded;
  for (const OptionSection& section : OptionSections()) {
    for (const Option& option : section.options) loaded.sources[option.name] = "default";
  }
  if (!inputs.file_text.empty()) RETURN_IF_ERROR(ApplyFile(inputs.file_text, &loaded));
  RETURN_IF_ERROR(ApplyEnvironment(inputs, &loaded));
  for (const FlagValue& flag : inputs.flags) {
    const Option* option = FindOption(flag.flag);
    if (option == nullptr) return UnknownFlag(flag.flag, CommandFlags{});
    RETURN_IF_ERROR(Set(*option, flag.value, "flag " + flag.flag, &loaded));
  }
  RETURN_IF_ERROR(ValidateConfig(loaded.config));
  return loaded;
}

absl::StatusOr<ParsedArgs> ParseArgs(const std::vector<std::string>& args,
                                     const CommandFlags& command) {
  ParsedArgs parsed;
  std::set<std::string> seen;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (arg == "--") {
      parsed.plain.insert(parsed.plain.end(), args.begin() + static_cast<int64_t>(i) + 1,
                          args.end());
      break;
    }
    if (arg.size() < 2 || arg[0] != '-') {
      parsed.plain.push_back(arg);
      continue;
    }
    const size_t equals = arg.find('=');
    const bool has_value = equals != std::string::npos;
    ASSIGN_OR_RETURN(const FlagMeaning meaning, Classify(arg.substr(0, equals), command));
    std::string value = has_value ? arg.substr(equals + 1) : "true";
    if (meaning.negated) {
      if (has_value) {
        return absl::InvalidArgumentError(StrCat("The flag ", Quoted(arg.substr(0, equals)),
                                                 " takes no value; write ", meaning.name, "=",
                                                 value, " instead."));
      }
      value = "false";
    } else if (!has_value && !meaning.is_switch) {
      if (++i == args.size()) {
        return absl::InvalidArgumentError(StrCat("The flag ", arg, " needs a value."));
      }
      value = args[i];
    }
    if (!seen.insert(meaning.name).second) {
      return absl::InvalidArgumentError(
          StrCat("The flag ", meaning.name, " is given twice; keep one."));
    }
    if (meaning.own) {
      parsed.own[meaning.name] = value;
    } else {
      parsed.options.push_back({meaning.name, value});
    }
  }
  return parsed;
}

}  // namespace longstride

#include "config/server_config.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "config/config_docs.h"
#include "config/config_loader.h"
#include "config/option_table.h"
#include "config/option_value.h"
#include "config/profiles.h"
#include "config/sparsity_policy.h"

namespace longstride {
namespace {

std::string ReadSourceFile(const std::string& path) {
  std::ifstream in(std::string(LONGSTRIDE_SOURCE_DIR) + "/" + path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

absl::StatusOr<LoadedConfig> FromFile(const std::string& text) {
  return LoadConfig({.file_text = text, .environment = {}, .flags = {}});
}

std::string ErrorOfFile(const std::string& text) {
  const auto loaded = FromFile(text);
  return loaded.ok() ? "OK" : std::string(loaded.status().message());
}

absl::StatusOr<LoadedConfig> FromArgs(const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(const ParsedArgs parsed, ParseArgs(args, CommandFlags{}));
  return LoadConfig({.file_text = "", .environment = {}, .flags = parsed.options});
}

std::string ErrorOfArgs(const std::vector<std::string>& args) {
  const auto loaded = FromArgs(args);
  return loaded.ok() ? "OK" : std::string(loaded.status().message());
}

// A value that differs from the default and is valid by itself.
std::string OtherValue(const Option& option) {
  switch (option.kind) {
    case OptionKind::kText:
    case OptionKind::kPath:
      return "other";
    case OptionKind::kChoice:
      return option.choices[0] == FormatDefault(option) ? option.choices[1] : option.choices[0];
    case OptionKind::kSwitch:
      return FormatDefault(option) == "true" ? "false" : "true";
    case OptionKind::kCount:
      return std::to_string(static_cast<int64_t>(option.max));
    case OptionKind::kBytes:
      return FormatBytes(static_cast<int64_t>(option.max));
    case OptionKind::kNumber:
      return "0.25";
    case OptionKind::kDuration:
      return "1h";
  }
  return "";
}

TEST(OptionTable, NamesFlagsAndVariablesAreUnique) {
  std::set<std::string> names, flags, variables;
  for (const OptionSection& section : OptionSections()) {
    for (const Option& option : section.options) {
      EXPECT_TRUE(names.insert(std::string(option.name)).second) << option.name;
      EXPECT_TRUE(flags.insert(option.Flag()).second) << option.name;
      EXPECT_TRUE(variables.insert(option.Environment()).second) << option.name;
      EXPECT_FALSE(option.help.empty()) << option.name;
      EXPECT_EQ(FindOption(option.Flag()), &option);
    }
  }
}

TEST(OptionTable, DefaultsAreWithinTheirOwnRange) {
  for (const OptionSection& section : OptionSections()) {
    for (const Option& option : section.options) {
      ServerConfig config;
      EXPECT_TRUE(SetOption(option, FormatDefault(option), &config).ok()) << option.name;
      EXPECT_EQ(FormatOption(option, config), FormatDefault(option)) << option.name;
    }
  }
}

TEST(OptionTable, EveryOptionHasAFieldOfItsOwn) {
  for (const OptionSection& section : OptionSections()) {
    for (const Option& option : section.options) {
      ServerConfig config;
      ASSERT_TRUE(SetOption(option, OtherValue(option), &config).ok()) << option.name;
      for (const std::string& name : OptionNames()) {
        const Option& seen = *FindOption(name);
        const bool changed = FormatOption(seen, config) != FormatDefault(seen);
        EXPECT_EQ(changed, name == option.name) << option.name << " changes " << name;
      }
    }
  }
}

TEST(OptionTable, RefusesValuesJustOutsideTheRange) {
  for (const OptionSection& section : OptionSections()) {
    for (const Option& option : section.options) {
      if (option.kind != OptionKind::kCount) continue;
      ServerConfig config;
      const auto above = StrCat(static_cast<int64_t>(option.max) + 1);
      const auto below = StrCat(static_cast<int64_t>(option.min) - 1);
      EXPECT_FALSE(SetOption(option, above, &config).ok()) << option.name;
      EXPECT_FALSE(SetOption(option, below, &config).ok()) << option.name;
      EXPECT_TRUE(SetOption(option, StrCat(static_cast<int64_t>(option.min)), &config).ok());
    }
  }
}

TEST(LoadConfig, NeedsNothing) {
  const auto loaded = LoadConfig({});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.host, "127.0.0.1");
  EXPECT_EQ(loaded->config.http.port, 8000);
}

TEST(LoadConfig, FlagsWinOverEnvironmentOverFileOverDefaults) {
  ConfigInputs inputs;
  inputs.file_text = R"({"kv": {"dtype": "q8"}, "http": {"port": 1}, "threads": 3})";
  inputs.environment = {{"LONGSTRIDE_HTTP_PORT", "2"}, {"LONGSTRIDE_THREADS", "4"}, {"HOME", "/"}};
  inputs.flags = {{"--threads", "5"}};
  const auto loaded = LoadConfig(inputs);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.kv.dtype, "q8");
  EXPECT_EQ(loaded->config.http.port, 2);
  EXPECT_EQ(loaded->config.threads, 5);
  EXPECT_EQ(loaded->sources.at("kv.dtype"), "file");
  EXPECT_EQ(loaded->sources.at("http.port"), "environment LONGSTRIDE_HTTP_PORT");
  EXPECT_EQ(loaded->sources.at("threads"), "flag --threads");
  EXPECT_EQ(loaded->sources.at("grpc.port"), "default");
}

TEST(LoadConfig, EffectiveConfigurationReadsBackToTheSame) {
  ConfigInputs inputs;
  inputs.flags = {{"--kv-memory", "512MiB"},       {"--drain-grace", "1m30s"},
                  {"--served-name", "a \"b\" \\"}, {"--kv-memory-fraction", "0.35"},
                  {"--grpc-enabled", "false"},     {"--sparsity-profile", "p"}};
  const auto first = LoadConfig(inputs);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = FromFile(EffectiveConfig(*first));
  ASSERT_TRUE(second.ok()) << second.status();
  for (const std::string& name : OptionNames()) {
    const Option& option = *FindOption(name);
    EXPECT_EQ(FormatOption(option, first->config), FormatOption(option, second->config)) << name;
    EXPECT_EQ(second->sources.at(option.name), "file") << name;
  }
}

TEST(LoadConfig, AcceptsCommentsAndSizesAndDurations) {
  const auto loaded = FromFile(R"({
    // where it runs
    "kv": {"memory": "1.5GiB"}, /* half */ "drain": {"grace": "2m"},
    "limits": {"output_queue": 65536}
  })");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.kv.memory, int64_t{3} << 29);
  EXPECT_EQ(loaded->config.drain.grace, absl::Minutes(2));
  EXPECT_EQ(loaded->config.limits.output_queue, 65536);
}

TEST(LoadConfig, UnknownNamesSuggestTheNearest) {
  EXPECT_EQ(ErrorOfFile(R"({"kv": {"dtyp": "q8"}})"),
            "The configuration file has an unknown key 'kv.dtyp'. Did you mean 'kv.dtype'? "
            "`longstride config` lists all keys.");
  EXPECT_NE(ErrorOfArgs({"--kv-dtyp", "q8"}).find("Did you mean '--kv-dtype'?"), std::string::npos);
  const auto environment =
      LoadConfig({.file_text = "", .environment = {{"LONGSTRIDE_KV_DTYP", "q8"}}, .flags = {}});
  EXPECT_NE(environment.status().message().find("LONGSTRIDE_KV_DTYPE"), std::string::npos);
}

TEST(LoadConfig, DuplicatesAreErrors) {
  EXPECT_NE(ErrorOfFile(R"({"threads": 1, "threads": 2})").find("twice"), std::string::npos);
  EXPECT_NE(ErrorOfArgs({"--threads", "1", "--threads=2"}).find("given twice"), std::string::npos);
  EXPECT_NE(ErrorOfArgs({"--insecure", "--no-insecure"}).find("given twice"), std::string::npos);
}

TEST(LoadConfig, WrongValuesSayWhatIsAllowed) {
  EXPECT_EQ(ErrorOfArgs({"--http-port", "70000"}),
            "http.port (from the flag --http-port): got '70000'; allowed is 0 to 65535.");
  EXPECT_EQ(ErrorOfArgs({"--kv-dtype", "f17"}),
            "kv.dtype (from the flag --kv-dtype): got 'f17'; allowed is one of f32, f16, bf16, q8, fp8. "
            "Did you mean 'f16'?");
}

TEST(LoadConfig, RefusesWrongJsonTypes) {
  for (const char* text :
       {R"({"threads": "4"})", R"({"threads": 1.5})", R"({"threads": null})", R"({"insecure": 1})",
        R"({"insecure": "true"})", R"({"kv": 3})", R"({"host": 1})", R"({"kv.dtype": "q8"})",
        R"({"threads": {}})", R"([])", R"(3)", R"({"drain": {"grace": 30}})",
        R"({"kv": {"memory_fraction": 1e400}})", R"({"kv": {"dtype": {"a": 1}}})",
        R"({"threads": 99999999999999999999})", R"({"model": "a\u0000b"})", R"({"": 1})", "{"}) {
    EXPECT_NE(ErrorOfFile(text), "OK") << text;
  }
}

TEST(LoadConfig, IgnoresWhatKubernetesPutsIntoTheEnvironment) {
  const auto loaded = LoadConfig({.file_text = "",
                                  .environment = {{"LONGSTRIDE_SERVICE_HOST", "10.0.0.1"},
                                                  {"LONGSTRIDE_SERVICE_PORT_HTTP", "8000"},
                                                  {"LONGSTRIDE_PORT", "tcp://10.0.0.1:8000"},
                                                  {"LONGSTRIDE_HTTP_PORT", "tcp://10.0.0.1:80"},
                                                  {"LONGSTRIDE_PORT_8000_TCP_ADDR", "10.0.0.1"}},
                                  .flags = {}});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.http.port, 8000);
}

TEST(ParseArgs, AcceptsEverySpelling) {
  const auto loaded = FromArgs(
      {"--kv-dtype=q8", "--threads", "2", "--insecure", "--no-grpc-enabled", "--log-prompts=off"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.kv.dtype, "q8");
  EXPECT_TRUE(loaded->config.insecure);
  EXPECT_FALSE(loaded->config.grpc.enabled);
}

TEST(ParseArgs, RefusesMissingAndSuperfluousValues) {
  EXPECT_EQ(ErrorOfArgs({"--threads"}), "The flag --threads needs a value.");
  EXPECT_NE(ErrorOfArgs({"--no-insecure=true"}), "OK");
  EXPECT_NE(ErrorOfArgs({"--no-threads"}), "OK");
  EXPECT_NE(ErrorOfArgs({"--kv.dtype", "q8"}), "OK");
}

TEST(ParseArgs, KeepsPlainArgumentsAndOwnFlags) {
  CommandFlags command;
  command.valued = {"--prompt"};
  command.switches = {"--json"};
  const auto parsed = ParseArgs(
      {"model.gguf", "--json", "--prompt", "--x", "--threads", "1", "--", "--y"}, command);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->plain, (std::vector<std::string>{"model.gguf", "--y"}));
  EXPECT_EQ(parsed->own.at("--prompt"), "--x");
  EXPECT_EQ(parsed->own.at("--json"), "true");
  ASSERT_EQ(parsed->options.size(), 1u);
}

TEST(ValidateConfig, RefusesContradictions) {
  for (const std::vector<std::string>& args :
       std::vector<std::vector<std::string>>{{"--host", "0.0.0.0"},
                                             {"--host", "::"},
                                             {"--host", "127.example.org"},
                                             {"--tls-cert", "c.pem"},
                                             {"--sparsity-plan", "a", "--sparsity-profile", "b"},
                                             {"--http-port", "9000", "--grpc-port", "9000"},
                                             {"--scheduler-max-running", "600"},
                                             {"--scheduler-max-step-logits", "32"},
                                             {"--limits-choices", "100"},
                                             {"--prefix-cache-snapshot-interval", "100"}}) {
    EXPECT_NE(ErrorOfArgs(args), "OK") << args[0];
  }
}

TEST(ValidateConfig, ReachableAddressNeedsKeysOrConsent) {
  EXPECT_EQ(ErrorOfArgs({"--host", "0.0.0.0", "--insecure"}), "OK");
  EXPECT_EQ(ErrorOfArgs({"--host", "0.0.0.0", "--api-keys", "keys"}), "OK");
  EXPECT_EQ(ErrorOfArgs({"--host", "127.0.0.2"}), "OK");
  EXPECT_EQ(ErrorOfArgs({"--host", "::1"}), "OK");
  EXPECT_EQ(ErrorOfArgs({"--host", "localhost"}), "OK");
}

TEST(ParseBytes, ReadsUnitsAndRefusesTheRest) {
  EXPECT_EQ(*ParseBytes("512MiB"), 512 << 20);
  EXPECT_EQ(*ParseBytes("2GB"), 2000000000);
  EXPECT_EQ(*ParseBytes("4096"), 4096);
  EXPECT_EQ(*ParseBytes("1.5 GiB"), int64_t{3} << 29);
  for (const char* text :
       {"", "-1", "1.2.3", "GiB", "12XB", "1e9", "99999999999TiB", "0x10", " 1"}) {
    EXPECT_FALSE(ParseBytes(text).ok()) << text;
  }
}

TEST(FormatBytes, ReadsBackExactly) {
  for (int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{1023}, int64_t{1024}, int64_t{1} << 30,
                        (int64_t{1} << 40) + 1, int64_t{5} << 40}) {
    EXPECT_EQ(*ParseBytes(FormatBytes(bytes)), bytes);
  }
}

TEST(ParseDurationText, RefusesWhatHasNoUnitOrEnd) {
  EXPECT_EQ(*ParseDurationText("400ms"), absl::Milliseconds(400));
  EXPECT_EQ(*ParseDurationText("0"), absl::ZeroDuration());
  for (const char* text : {"", "30", "inf", "-1s", "1 s", "5x"}) {
    EXPECT_FALSE(ParseDurationText(text).ok()) << text;
  }
}

TEST(Profiles, AllParse) {
  ASSERT_GE(Profiles().size(), 3u);
  for (const Profile& profile : Profiles()) {
    const auto policy = SparsityPolicy::Parse(std::string(profile.text));
    EXPECT_TRUE(policy.ok()) << profile.name << ": " << policy.status();
    EXPECT_EQ(*FindProfile(profile.name), profile.text);
  }
}

TEST(Profiles, UnknownNameSuggestsTheNearest) {
  const auto found = FindProfile("strided1");
  EXPECT_NE(std::string(found.status().message()).find("Did you mean 'strided'?"),
            std::string::npos);
}

// The generated pages. When this fails after a change of options, run
//   longstride reference options > docs/configuration.md
//   longstride reference schema > docs/configuration.schema.json
TEST(GeneratedReference, ConfigurationPageIsCurrent) {
  EXPECT_EQ(ReadSourceFile("docs/configuration.md"), ConfigurationMarkdown());
}

TEST(GeneratedReference, SchemaIsCurrent) {
  EXPECT_EQ(ReadSourceFile("docs/configuration.schema.json"), ConfigurationSchema());
}

TEST(GeneratedReference, HelpNamesEveryFlag) {
  const std::string help = OptionsHelp();
  for (const std::string& flag : OptionFlags()) {
    EXPECT_NE(help.find(flag + "  ("), std::string::npos) << flag;
  }
}

}  // namespace
}  // namespace longstride

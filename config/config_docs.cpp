#include "config/config_docs.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "config/option_value.h"

namespace longstride {
namespace {

using nlohmann::ordered_json;

constexpr size_t kColumns = 100;

void AppendWrapped(std::string_view text, size_t indent, std::string* out) {
  size_t column = 0;
  size_t at = 0;
  while (at < text.size()) {
    size_t end = text.find(' ', at);
    if (end == std::string_view::npos) end = text.size();
    const std::string_view word = text.substr(at, end - at);
    at = end + 1;
    if (column == 0 || column + 1 + word.size() > kColumns) {
      if (column != 0) *out += '\n';
      out->append(indent, ' ');
      column = indent + word.size();
    } else {
      *out += ' ';
      column += 1 + word.size();
    }
    *out += word;
  }
  *out += '\n';
}

// "default 64", or what the empty default stands for.
std::string DefaultText(const Option& option) {
  const std::string value = FormatDefault(option);
  if (!option.zero_means.empty() && (value.empty() || value == "0")) {
    return std::string(option.zero_means);
  }
  return value.empty() ? "none" : value;
}

// Where a value that is not the default has a special meaning at 0.
std::string HelpText(const Option& option) {
  std::string text(option.help);
  const std::string value = FormatDefault(option);
  if (!option.zero_means.empty() && value != "0" && !value.empty()) {
    StrAppend(&text, " 0: ", option.zero_means, ".");
  }
  return text;
}

std::string EscapeCell(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

// Integers beyond what a table of options needs as fractions stay integers in the schema.
ordered_json SchemaNumber(double value) {
  const auto whole = static_cast<int64_t>(value);
  if (static_cast<double>(whole) == value) return whole;
  return value;
}

ordered_json SchemaOf(const Option& option) {
  ordered_json schema;
  schema["description"] = HelpText(option);
  switch (option.kind) {
    case OptionKind::kText:
    case OptionKind::kPath:
      schema["type"] = "string";
      break;
    case OptionKind::kChoice:
      schema["type"] = "string";
      schema["enum"] = option.choices;
      break;
    case OptionKind::kSwitch:
      schema["type"] = "boolean";
      break;
    case OptionKind::kCount:
    case OptionKind::kNumber:
      schema["type"] = option.kind == OptionKind::kCount ? "integer" : "number";
      schema["minimum"] = SchemaNumber(option.min);
      schema["maximum"] = SchemaNumber(option.max);
      break;
    case OptionKind::kBytes:
      schema["type"] = ordered_json::array({"integer", "string"});
      schema["minimum"] = SchemaNumber(option.min);
      schema["maximum"] = SchemaNumber(option.max);
      schema["pattern"] = "^[0-9.]+ ?(B|K|kB|KB|KiB|M|MB|MiB|G|GB|GiB|TB|TiB)?$";
      break;
    case OptionKind::kDuration:
      schema["type"] = "string";
      schema["pattern"] = "^(0|([0-9.]+(ns|us|ms|s|m|h))+)$";
      break;
  }
  const std::string value = FormatDefault(option);
  if (option.kind == OptionKind::kSwitch) {
    schema["default"] = value == "true";
  } else if (option.kind == OptionKind::kCount || option.kind == OptionKind::kNumber) {
    schema["default"] = ordered_json::parse(value);
  } else {
    schema["default"] = value;
  }
  return schema;
}

bool IsTextValue(const Option& option) {
  return option.kind != OptionKind::kCount && option.kind != OptionKind::kNumber &&
         option.kind != OptionKind::kSwitch;
}

// `value` as it stands in a configuration file.
std::string FileValue(const Option& option, const ServerConfig& config) {
  const std::string text = FormatOption(option, config);
  if (!IsTextValue(option)) return text;
  return ordered_json(text).dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

struct NamedLines {
  std::string section;                                         // "" for keys at the top
  std::vector<std::pair<const Option*, std::string>> options;  // option and its key
};

// Options by the object that holds them in the file, in table order.
std::vector<NamedLines> ByObject() {
  std::vector<NamedLines> objects = {{"", {}}};
  for (const OptionSection& section : OptionSections()) {
    for (const Option& option : section.options) {
      const size_t dot = option.name.find('.');
      const std::string object =
          dot == std::string_view::npos ? "" : std::string(option.name.substr(0, dot));
      size_t at = 0;
      while (at < objects.size() && objects[at].section != object) ++at;
      if (at == objects.size()) objects.push_back({object, {}});
      const size_t key_begin = dot == std::string_view::npos ? 0 : dot + 1;
      objects[at].options.emplace_back(&option, std::string(option.name.substr(key_begin)));
    }
  }
  return objects;
}

}  // namespace

std::string OptionsHelp() {
  std::string out;
  for (const OptionSection& section : OptionSections()) {
    StrAppend(&out, section.title, ":\n");
    for (const Option& option : section.options) {
      StrAppend(&out, "  ", option.Flag(), "  (", DescribeType(option),
                "; default: ", DefaultText(option), ")\n");
      AppendWrapped(HelpText(option), 6, &out);
    }
    out += '\n';
  }
  return out;
}

std::string ConfigurationMarkdown() {
  std::string out =
      "# Configuration\n\n"
      "<!-- Generated by `longstride reference options`; a test keeps it so. -->\n\n"
      "Every option can be set in the configuration file (`--config FILE`, or the environment\n"
      "variable `LONGSTRIDE_CONFIG`), by an environment variable and by a flag; a later one of "
      "the\n"
      "three wins. The file is JSON in which comments are allowed; dots in an option's name nest:\n"
      "`kv.dtype` is `{\"kv\": {\"dtype\": \"q8\"}}`, `LONGSTRIDE_KV_DTYPE=q8` and `--kv-dtype "
      "q8`.\n"
      "A switch is turned on by `--name` and off by `--no-name`. Unknown names and names given\n"
      "twice are errors. `longstride config` prints the configuration in effect and where each\n"
      "value came from. Editors can use\n"
      "[configuration.schema.json](configuration.schema.json).\n\n"
      "Variables `LONGSTRIDE_*_SERVICE_HOST`, `*_SERVICE_PORT*`, `*_TCP*` and `*_PORT=tcp://…`\n"
      "(which Kubernetes sets for services) and `LONGSTRIDE_TEST_*` are not options and are\n"
      "ignored.\n";
  for (const OptionSection& section : OptionSections()) {
    StrAppend(&out, "\n## ", section.title, "\n\n");
    out += "| option | flag | environment | type | default | meaning |\n";
    out += "| --- | --- | --- | --- | --- | --- |\n";
    for (const Option& option : section.options) {
      StrAppend(&out, "| `", option.name, "` | `", option.Flag(), "` | `", option.Environment(),
                "` | ", DescribeType(option), " | ", EscapeCell(DefaultText(option)), " | ",
                EscapeCell(HelpText(option)), " |\n");
    }
  }
  return out;
}

std::string ConfigurationSchema() {
  ordered_json schema;
  schema["$schema"] = "http://json-schema.org/draft-07/schema#";
  schema["title"] = "Longstride configuration";
  schema["type"] = "object";
  schema["additionalProperties"] = false;
  ordered_json& properties = schema["properties"];
  properties["$schema"] = {{"type", "string"}};
  for (const NamedLines& object : ByObject()) {
    ordered_json* into = &properties;
    if (!object.section.empty()) {
      ordered_json& section = properties[object.section];
      section["type"] = "object";
      section["additionalProperties"] = false;
      into = &section["properties"];
    }
    for (const auto& [option, key] : object.options) (*into)[key] = SchemaOf(*option);
  }
  return schema.dump(2) + "\n";
}

std::string EffectiveConfig(const LoadedConfig& loaded) {
  std::string out = "{\n";
  const std::vector<NamedLines> objects = ByObject();
  for (size_t o = 0; o < objects.size(); ++o) {
    const NamedLines& object = objects[o];
    const std::string indent = object.section.empty() ? "  " : "    ";
    if (!object.section.empty()) StrAppend(&out, "  \"", object.section, "\": {\n");
    const bool last_object = o + 1 == objects.size();
    for (size_t i = 0; i < object.options.size(); ++i) {
      const auto& [option, key] = object.options[i];
      const bool last = i + 1 == object.options.size() && (!object.section.empty() || last_object);
      StrAppend(&out, indent, "\"", key, "\": ", FileValue(*option, loaded.config), last ? "" : ",",
                "  // ", loaded.sources.at(option->name), "\n");
    }
    if (!object.section.empty()) StrAppend(&out, last_object ? "  }\n" : "  },\n");
  }
  return out + "}\n";
}

}  // namespace longstride

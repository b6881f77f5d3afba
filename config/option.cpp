// Reading and printing single options.
#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "config/nearest_name.h"
#include "config/option_table.h"
#include "config/option_value.h"

namespace longstride {
namespace {

std::string FormatNumber(double value) { return absl::StrFormat("%.10g", value); }

std::string FormatDurationText(absl::Duration value) { return absl::FormatDuration(value); }

// A bound of the option's range in the unit that people write.
std::string FormatBound(const Option& option, double bound) {
  switch (option.kind) {
    case OptionKind::kBytes:
      return FormatBytes(static_cast<int64_t>(bound));
    case OptionKind::kDuration:
      return FormatDurationText(absl::Seconds(bound));
    case OptionKind::kCount:
      return StrCat(static_cast<int64_t>(bound));
    default:
      return FormatNumber(bound);
  }
}

std::string RangeText(const Option& option) {
  return StrCat(FormatBound(option, option.min), " to ", FormatBound(option, option.max));
}

absl::Status CheckRange(const Option& option, double value, std::string_view text) {
  if (value >= option.min && value <= option.max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("got ", Quoted(text), "; allowed is ", RangeText(option)));
}

absl::Status SetText(const Option& option, std::string_view text, std::string* out) {
  if (option.kind == OptionKind::kChoice &&
      std::find(option.choices.begin(), option.choices.end(), text) == option.choices.end()) {
    return absl::InvalidArgumentError(StrCat("got ", Quoted(text), "; allowed is one of ",
                                             JoinNames(option.choices), ".",
                                             DidYouMean(text, option.choices)));
  }
  if (text.find('\0') != std::string_view::npos) {
    return absl::InvalidArgumentError("the text contains a NUL character");
  }
  *out = std::string(text);
  return absl::OkStatus();
}

absl::Status SetInteger(const Option& option, std::string_view text, int64_t* out) {
  int64_t value = 0;
  if (option.kind == OptionKind::kBytes) {
    ASSIGN_OR_RETURN(value, ParseBytes(text));
  } else if (!absl::SimpleAtoi(std::string(text), &value)) {
    return absl::InvalidArgumentError(
        StrCat("got ", Quoted(text), "; allowed is a whole number, ", RangeText(option)));
  }
  RETURN_IF_ERROR(CheckRange(option, static_cast<double>(value), text));
  *out = value;
  return absl::OkStatus();
}

absl::Status SetNumber(const Option& option, std::string_view text, double* out) {
  double value = 0;
  if (!absl::SimpleAtod(std::string(text), &value) || !std::isfinite(value)) {
    return absl::InvalidArgumentError(
        StrCat("got ", Quoted(text), "; allowed is a number, ", RangeText(option)));
  }
  RETURN_IF_ERROR(CheckRange(option, value, text));
  *out = value;
  return absl::OkStatus();
}

absl::Status SetSwitch(std::string_view text, bool* out) {
  const std::string lower = absl::AsciiStrToLower(std::string(text));
  if (lower == "true" || lower == "on" || lower == "yes" || lower == "1") {
    *out = true;
  } else if (lower == "false" || lower == "off" || lower == "no" || lower == "0") {
    *out = false;
  } else {
    return absl::InvalidArgumentError(StrCat("got ", Quoted(text), "; allowed is true or false"));
  }
  return absl::OkStatus();
}

// Dots and underscores become `separator`.
std::string Respell(std::string_view name, char separator) {
  std::string out(name);
  std::replace(out.begin(), out.end(), '.', separator);
  std::replace(out.begin(), out.end(), '_', separator);
  return out;
}

}  // namespace

std::string Option::Flag() const { return StrCat("--", Respell(name, '-')); }

std::string Option::Environment() const {
  return StrCat("LONGSTRIDE_", absl::AsciiStrToUpper(Respell(name, '_')));
}

const Option* FindOption(std::string_view name) {
  if (name.substr(0, 2) == "--") name.remove_prefix(2);
  const std::string wanted = Respell(name, '-');
  for (const OptionSection& section : OptionSections()) {
    for (const Option& option : section.options) {
      if (Respell(option.name, '-') == wanted) return &option;
    }
  }
  return nullptr;
}

std::vector<std::string> OptionNames() {
  std::vector<std::string> names;
  for (const OptionSection& section : OptionSections()) {
    for (const Option& option : section.options) names.emplace_back(option.name);
  }
  return names;
}

std::vector<std::string> OptionFlags() {
  std::vector<std::string> flags;
  for (const OptionSection& section : OptionSections()) {
    for (const Option& option : section.options) flags.push_back(option.Flag());
  }
  return flags;
}

std::string FormatOption(const Option& option, const ServerConfig& config) {
  // Fields are only read; the accessor is shared with SetOption.
  const OptionField field = option.field(const_cast<ServerConfig&>(config));
  if (const auto* text = std::get_if<std::string*>(&field)) return **text;
  if (const auto* number = std::get_if<double*>(&field)) return FormatNumber(**number);
  if (const auto* flag = std::get_if<bool*>(&field)) return **flag ? "true" : "false";
  if (const auto* time = std::get_if<absl::Duration*>(&field)) return FormatDurationText(**time);
  const int64_t value = *std::get<int64_t*>(field);
  return option.kind == OptionKind::kBytes ? FormatBytes(value) : StrCat(value);
}

std::string FormatDefault(const Option& option) { return FormatOption(option, ServerConfig{}); }

std::string DescribeType(const Option& option) {
  switch (option.kind) {
    case OptionKind::kText:
      return "text";
    case OptionKind::kPath:
      return "path";
    case OptionKind::kChoice:
      return JoinNames(option.choices);
    case OptionKind::kCount:
      return StrCat("integer, ", RangeText(option));
    case OptionKind::kBytes:
      return StrCat("size, ", RangeText(option));
    case OptionKind::kNumber:
      return StrCat("number, ", RangeText(option));
    case OptionKind::kSwitch:
      return "true, false";
    case OptionKind::kDuration:
      return StrCat("duration, ", RangeText(option));
  }
  return "";
}

absl::Status SetOption(const Option& option, std::string_view text, ServerConfig* config) {
  const OptionField field = option.field(*config);
  if (const auto* out = std::get_if<std::string*>(&field)) return SetText(option, text, *out);
  if (const auto* out = std::get_if<int64_t*>(&field)) return SetInteger(option, text, *out);
  if (const auto* out = std::get_if<double*>(&field)) return SetNumber(option, text, *out);
  if (const auto* out = std::get_if<bool*>(&field)) return SetSwitch(text, *out);
  ASSIGN_OR_RETURN(const absl::Duration value, ParseDurationText(text));
  RETURN_IF_ERROR(CheckRange(option, absl::ToDoubleSeconds(value), text));
  *std::get<absl::Duration*>(field) = value;
  return absl::OkStatus();
}

}  // namespace longstride

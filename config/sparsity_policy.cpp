#include "config/sparsity_policy.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>

#include "config/nearest_name.h"
#include "config/strict_json.h"

namespace longstride {
namespace {

using nlohmann::json;

constexpr StrictJsonLimits kPlanLimits = {.max_bytes = int64_t{16} << 20, .max_depth = 8};
constexpr StrictJsonLimits kMaskLimits = {.max_bytes = int64_t{64} << 20, .max_depth = 4};
constexpr StrictJsonLimits kTableLimits = {.max_bytes = int64_t{64} << 20, .max_depth = 8};
constexpr size_t kMaxRules = 4096;
constexpr size_t kMaxRanges = 4096;
constexpr size_t kMaxNameBytes = 64;

absl::Status At(std::string_view place, std::string_view message) {
  return absl::InvalidArgumentError(StrCat("sparsity plan, ", place, ": ", message));
}

// "layers[1].window": a parameter's place.
std::string Member(std::string_view place, std::string_view name) {
  return StrCat(place, ".", name);
}

absl::StatusOr<std::string> ReadSmallFile(const std::filesystem::path& path, int64_t max_bytes) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError("the file cannot be opened; check its name and permissions");
  std::string text;
  std::string block(size_t{1} << 16, '\0');
  while (in && static_cast<int64_t>(text.size()) <= max_bytes) {
    in.read(block.data(), static_cast<std::streamsize>(block.size()));
    text.append(block, 0, static_cast<size_t>(in.gcount()));
  }
  if (static_cast<int64_t>(text.size()) > max_bytes) {
    return absl::InvalidArgumentError(StrCat("the file is larger than ", max_bytes, " bytes"));
  }
  return text;
}

absl::StatusOr<int64_t> ToInt(const json& value, std::string_view place) {
  if (value.is_number_integer() && !value.is_number_unsigned()) return value.get<int64_t>();
  if (value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{INT64_MAX}) {
    return static_cast<int64_t>(value.get<uint64_t>());
  }
  return At(place, StrCat("got ", value.type_name(), "; a list here holds whole numbers only."));
}

absl::StatusOr<std::vector<int64_t>> ToInts(const json& list, std::string_view place) {
  if (!list.is_array()) {
    return At(place, StrCat("got ", list.type_name(), " beside lists; mix no lists and values."));
  }
  std::vector<int64_t> out;
  out.reserve(list.size());
  for (const json& item : list) {
    ASSIGN_OR_RETURN(const int64_t value, ToInt(item, place));
    out.push_back(value);
  }
  return out;
}

absl::StatusOr<IntRows> ToRows(const json& list, std::string_view place) {
  if (!list.is_array()) {
    return At(place, StrCat("got ", list.type_name(), " beside lists; mix no lists and values."));
  }
  IntRows out;
  out.reserve(list.size());
  for (const json& item : list) {
    ASSIGN_OR_RETURN(std::vector<int64_t> row, ToInts(item, place));
    out.push_back(std::move(row));
  }
  return out;
}

int Depth(const json& value) {
  if (!value.is_array()) return 0;
  int depth = 0;
  for (const json& item : value) depth = std::max(depth, Depth(item));
  return depth + 1;
}

absl::StatusOr<PolicyValue> ToValue(const json& value, std::string_view place) {
  switch (value.type()) {
    case json::value_t::boolean:
      return PolicyValue(value.get<bool>());
    case json::value_t::number_float:
      return PolicyValue(value.get<double>());
    case json::value_t::string:
      return PolicyValue(value.get<std::string>());
    case json::value_t::number_integer:
    case json::value_t::number_unsigned: {
      ASSIGN_OR_RETURN(const int64_t number, ToInt(value, place));
      return PolicyValue(number);
    }
    case json::value_t::array:
      break;
    default:
      return At(place, StrCat("got ", value.type_name(),
                              "; a parameter is a number, a string, true, false or a list."));
  }
  const int depth = Depth(value);
  if (depth == 1) {
    ASSIGN_OR_RETURN(std::vector<int64_t> ints, ToInts(value, place));
    return PolicyValue(std::move(ints));
  }
  if (depth == 2) {
    ASSIGN_OR_RETURN(IntRows rows, ToRows(value, place));
    return PolicyValue(std::move(rows));
  }
  if (depth > 3) return At(place, "lists are nested deeper than three levels.");
  std::vector<IntRows> heads;
  for (const json& item : value) {
    ASSIGN_OR_RETURN(IntRows rows, ToRows(item, place));
    heads.push_back(std::move(rows));
  }
  return PolicyValue(std::move(heads));
}

// Reads plan files: keeps the folder for {"file": …} parameters.
class PlanReader {
 public:
  explicit PlanReader(std::string folder) : folder_(std::move(folder)) {}

  absl::StatusOr<SparsityPolicy> Read(const json& root) const {
    if (!root.is_object()) {
      return absl::InvalidArgumentError(
          StrCat("sparsity plan: got ", root.type_name(),
                 "; a plan is an object with \"default\" and \"layers\"."));
    }
    static const std::vector<std::string> kKeys = {"name", "default", "layers", "fidelity_report"};
    for (const auto& [key, value] : root.items()) {
      if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end()) {
        return absl::InvalidArgumentError(StrCat("sparsity plan: unknown key ", Quoted(key),
                                                 "; known keys are ", JoinNames(kKeys), ".",
                                                 DidYouMean(key, kKeys)));
      }
    }
    SparsityPolicy policy;
    policy.name = "unnamed";
    if (root.contains("name")) {
      ASSIGN_OR_RETURN(policy.name, Text(root["name"], "name"));
      const bool printable = std::all_of(policy.name.begin(), policy.name.end(),
                                         [](char c) { return c >= ' ' && c <= '~'; });
      if (policy.name.empty() || policy.name.size() > kMaxNameBytes || !printable) {
        return At("name",
                  StrCat("a name has 1 to ", kMaxNameBytes, " printable ASCII characters."));
      }
    }
    if (root.contains("fidelity_report")) {
      ASSIGN_OR_RETURN(policy.fidelity_report, Text(root["fidelity_report"], "fidelity_report"));
      constexpr std::string_view kPrefix = "sha256:";
      const bool good = policy.fidelity_report.size() == kPrefix.size() + 64 &&
                        policy.fidelity_report.starts_with(kPrefix) &&
                        policy.fidelity_report.find_first_not_of(
                            "0123456789abcdef", kPrefix.size()) == std::string::npos;
      if (!good) {
        return At("fidelity_report",
                  "must be \"sha256:\" and the 64 lower-case hex digits of the report's digest.");
      }
    }
    policy.default_policy.place = "default";
    if (root.contains("default")) {
      ASSIGN_OR_RETURN(policy.default_policy, Pattern(root["default"], "default", {}));
    }
    if (root.contains("layers")) {
      const json& layers = root["layers"];
      if (!layers.is_array() || layers.size() > kMaxRules) {
        return At("layers", StrCat("must be a list of at most ", kMaxRules, " rules."));
      }
      for (size_t i = 0; i < layers.size(); ++i) {
        ASSIGN_OR_RETURN(LayerRule rule, Rule(layers[i], StrCat("layers[", i, "]")));
        policy.rules.push_back(std::move(rule));
      }
    }
    return policy;
  }

 private:
  static absl::StatusOr<std::string> Text(const json& value, std::string_view place) {
    if (!value.is_string())
      return At(place, StrCat("got ", value.type_name(), "; needs a string."));
    return value.get<std::string>();
  }

  static absl::StatusOr<double> Number(const json& value, const std::string& place) {
    if (!value.is_number())
      return At(place, StrCat("got ", value.type_name(), "; needs a number."));
    return value.get<double>();
  }

  absl::StatusOr<PatternPolicy> Pattern(const json& object, const std::string& place,
                                        const std::vector<std::string>& other_keys) const {
    if (!object.is_object()) {
      return At(place, StrCat("got ", object.type_name(), "; needs an object with \"pattern\"."));
    }
    if (!object.contains("pattern")) {
      return At(place, "\"pattern\" is missing; name one, for example \"window\".");
    }
    PatternPolicy policy;
    policy.place = place;
    ASSIGN_OR_RETURN(policy.pattern, Text(object["pattern"], Member(place, "pattern")));
    for (const auto& [key, value] : object.items()) {
      if (key == "pattern") continue;
      if (std::find(other_keys.begin(), other_keys.end(), key) != other_keys.end()) continue;
      if (key.size() > kMaxNameBytes) {
        return At(place, StrCat("unknown parameter ", Quoted(key), "."));
      }
      const std::string member = Member(place, key);
      if (value.is_object()) {
        ASSIGN_OR_RETURN(const json contents, Referenced(value, member, kMaskLimits));
        ASSIGN_OR_RETURN(policy.params[key], ToValue(contents, member));
      } else {
        ASSIGN_OR_RETURN(policy.params[key], ToValue(value, member));
      }
    }
    return policy;
  }

  // The contents of {"file": "name"}.
  absl::StatusOr<json> Referenced(const json& object, const std::string& place,
                                  const StrictJsonLimits& limits) const {
    if (object.size() != 1 || !object.contains("file") || !object["file"].is_string()) {
      return At(place, "an object here must be {\"file\": \"name.json\"}.");
    }
    const auto name = object["file"].get<std::string>();
    if (folder_.empty()) {
      return At(place, "files can be named only in a plan that is itself read from a file.");
    }
    if (name.empty() || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos || name[0] == '.') {
      return At(place, StrCat("got ", Quoted(name),
                              "; name a file in the plan's own folder, without '/'."));
    }
    absl::StatusOr<std::string> text =
        ReadSmallFile(std::filesystem::path(folder_) / name, limits.max_bytes);
    if (!text.ok()) {
      return Annotate(text.status(), StrCat("sparsity plan, ", place, ", file ", Quoted(name)));
    }
    return ParseStrictJson(*text, StrCat("sparsity plan, ", place, ", file ", Quoted(name)),
                           limits);
  }

  // Rows of a head table, one a layer; `read` makes a value of one cell.
  template <typename T, typename ReadCell>
  static absl::StatusOr<std::vector<std::vector<T>>> TableRows(const json& rows,
                                                               const std::string& place,
                                                               ReadCell read) {
    if (!rows.is_array()) {
      return At(place, StrCat("got ", rows.type_name(), "; needs a list with one list per layer."));
    }
    if (rows.empty()) return At(place, "is empty; needs one list per layer.");
    std::vector<std::vector<T>> out;
    for (const json& row : rows) {
      const std::string at = StrCat(place, "[", out.size(), "]");
      if (!row.is_array()) {
        return At(at, StrCat("got ", row.type_name(), "; needs a list with one entry per head."));
      }
      std::vector<T>& cells = out.emplace_back();
      for (const json& cell : row) {
        ASSIGN_OR_RETURN(T value, read(cell, StrCat(at, "[", cells.size(), "]")));
        cells.push_back(std::move(value));
      }
    }
    return out;
  }

  absl::StatusOr<HeadTable> Table(const json& value, const std::string& place) const {
    if (value.is_object() && value.contains("file")) {
      ASSIGN_OR_RETURN(const json contents, Referenced(value, place, kTableLimits));
      return TableContents(contents, place);
    }
    return TableContents(value, place);
  }

  absl::StatusOr<HeadTable> TableContents(const json& object, const std::string& place) const {
    static const std::vector<std::string> kKeys = {"model",  "patterns", "heads",
                                                   "scores", "name",     "measured"};
    if (!object.is_object()) {
      return At(place, StrCat("got ", object.type_name(),
                              "; a head table is an object with \"model\", \"patterns\" and "
                              "\"scores\" or \"heads\"."));
    }
    for (const auto& [key, value] : object.items()) {
      if (std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end()) continue;
      return At(place, StrCat("unknown key ", Quoted(key), "; a head table has ", JoinNames(kKeys),
                              ".", DidYouMean(key, kKeys)));
    }
    for (const char* key : {"model", "patterns"}) {
      if (!object.contains(key)) return At(place, StrCat(Quoted(key), " is missing."));
    }
    if (object.contains("heads") == object.contains("scores")) {
      return At(place, "a head table has either \"scores\" or \"heads\".");
    }
    HeadTable table;
    ASSIGN_OR_RETURN(table.model, Text(object["model"], Member(place, "model")));
    for (const char* key : {"name", "measured"}) {
      if (object.contains(key)) RETURN_IF_ERROR(Text(object[key], Member(place, key)).status());
    }
    const json& patterns = object["patterns"];
    if (!patterns.is_object()) {
      return At(Member(place, "patterns"),
                StrCat("got ", patterns.type_name(), "; needs an object of named patterns."));
    }
    std::vector<std::string> names;
    for (const auto& [name, pattern] : patterns.items()) {
      ASSIGN_OR_RETURN(
          table.patterns[name],
          Pattern(pattern, StrCat(place, ".patterns.", name.substr(0, kMaxNameBytes)), {}));
      names.push_back(name);
    }
    if (object.contains("scores")) {
      if (names != std::vector<std::string>{"full", "streaming"}) {
        return At(
            Member(place, "patterns"),
            "a table of scores names the patterns \"full\" and \"streaming\", and no others.");
      }
      ASSIGN_OR_RETURN(table.scores,
                       TableRows<double>(object["scores"], Member(place, "scores"), &Number));
      return table;
    }
    ASSIGN_OR_RETURN(
        table.heads,
        TableRows<std::string>(
            object["heads"], Member(place, "heads"),
            [&](const json& cell, const std::string& at) -> absl::StatusOr<std::string> {
              ASSIGN_OR_RETURN(std::string name, Text(cell, at));
              if (table.patterns.contains(name)) return name;
              return At(at, StrCat("got ", Quoted(name), "; the table's patterns are ",
                                   JoinNames(names), ".", DidYouMean(name, names)));
            }));
    return table;
  }

  // A rule whose heads' patterns come from a table.
  absl::Status ReadTableRule(const json& object, const std::string& place, LayerRule* rule) const {
    static const std::vector<std::string> kKeys = {"layers", "head_table", "threshold",
                                                   "streaming_share"};
    for (const auto& [key, value] : object.items()) {
      if (std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end()) continue;
      return At(place, StrCat("unknown key ", Quoted(key), "; a rule with a head table has ",
                              JoinNames(kKeys), ".", DidYouMean(key, kKeys)));
    }
    rule->policy.place = place;
    ASSIGN_OR_RETURN(rule->table, Table(object["head_table"], Member(place, "head_table")));
    const bool threshold = object.contains("threshold");
    const bool share = object.contains("streaming_share");
    if (rule->table->scores.empty()) {
      if (!threshold && !share) return absl::OkStatus();
      return At(place,
                "the head table names each head's pattern; 'threshold' and 'streaming_share' "
                "are for tables of scores.");
    }
    if (threshold == share) {
      return At(place, "the head table has scores; give either 'threshold' or 'streaming_share'.");
    }
    if (threshold) {
      ASSIGN_OR_RETURN(rule->threshold, Number(object["threshold"], Member(place, "threshold")));
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(rule->streaming_share,
                     Number(object["streaming_share"], Member(place, "streaming_share")));
    if (*rule->streaming_share >= 0 && *rule->streaming_share <= 1) return absl::OkStatus();
    return At(place,
              StrCat("'streaming_share' is ", *rule->streaming_share, "; allowed are 0 to 1."));
  }

  absl::StatusOr<LayerRule> Rule(const json& object, const std::string& place) const {
    LayerRule rule;
    if (object.is_object() && object.contains("head_table")) {
      RETURN_IF_ERROR(ReadTableRule(object, place, &rule));
    } else {
      ASSIGN_OR_RETURN(rule.policy, Pattern(object, place, {"layers", "heads"}));
    }
    if (object.contains("layers")) {
      ASSIGN_OR_RETURN(const std::string text, Text(object["layers"], Member(place, "layers")));
      if (text == "full") {
        rule.kind = NativeKind::kFull;
      } else if (text == "windowed") {
        rule.kind = NativeKind::kWindowed;
      } else if (text == "chunked") {
        rule.kind = NativeKind::kChunked;
      } else {
        absl::StatusOr<IndexRanges> ranges = IndexRanges::Parse(text);
        if (!ranges.ok()) return At(Member(place, "layers"), ToStd(ranges.status().message()));
        rule.layers = *std::move(ranges);
      }
    }
    if (object.contains("heads")) {
      ASSIGN_OR_RETURN(const std::string text, Text(object["heads"], Member(place, "heads")));
      absl::StatusOr<IndexRanges> ranges = IndexRanges::Parse(text);
      if (!ranges.ok()) return At(Member(place, "heads"), ToStd(ranges.status().message()));
      rule.heads = *std::move(ranges);
    }
    return rule;
  }

  std::string folder_;
};

}  // namespace

absl::Status PatternPolicy::Error(std::string_view message) const {
  return At(place.empty() ? std::string_view("default") : std::string_view(place), message);
}

absl::StatusOr<int64_t> PatternPolicy::Int(const std::string& name, int64_t fallback, int64_t min,
                                           int64_t max) const {
  const auto it = params.find(name);
  if (it == params.end()) return fallback;
  const auto* value = std::get_if<int64_t>(&it->second);
  if (value == nullptr) {
    return Error(StrCat("'", name, "' must be a whole number from ", min, " to ", max, "."));
  }
  if (*value < min || *value > max) {
    return Error(StrCat("'", name, "' is ", *value, "; allowed are ", min, " to ", max, "."));
  }
  return *value;
}

absl::StatusOr<int64_t> PatternPolicy::RequiredInt(const std::string& name, int64_t min,
                                                   int64_t max) const {
  if (!Has(name)) {
    return Error(StrCat("pattern '", pattern, "' needs '", name, "', a whole number from ", min,
                        " to ", max, "."));
  }
  return Int(name, min, min, max);
}

absl::StatusOr<double> PatternPolicy::RequiredNumber(const std::string& name, double min,
                                                     double max) const {
  const auto it = params.find(name);
  if (it == params.end()) {
    return Error(StrCat("pattern '", pattern, "' needs '", name, "', a number from ", min, " to ",
                        max, "."));
  }
  const auto* whole = std::get_if<int64_t>(&it->second);
  const auto* number = std::get_if<double>(&it->second);
  if (whole == nullptr && number == nullptr) {
    return Error(StrCat("'", name, "' must be a number from ", min, " to ", max, "."));
  }
  const double value = whole != nullptr ? static_cast<double>(*whole) : *number;
  if (!(value >= min && value <= max)) {
    return Error(StrCat("'", name, "' is ", value, "; allowed are ", min, " to ", max, "."));
  }
  return value;
}

absl::StatusOr<bool> PatternPolicy::Bool(const std::string& name, bool fallback) const {
  const auto it = params.find(name);
  if (it == params.end()) return fallback;
  if (const auto* value = std::get_if<bool>(&it->second)) return *value;
  return Error(StrCat("'", name, "' must be true or false."));
}

absl::StatusOr<std::vector<int64_t>> PatternPolicy::IntList(const std::string& name) const {
  const auto it = params.find(name);
  if (it != params.end()) {
    if (const auto* list = std::get_if<std::vector<int64_t>>(&it->second)) return *list;
  }
  return Error(StrCat("pattern '", pattern, "' needs '", name, "', a list of whole numbers."));
}

absl::StatusOr<IntRows> PatternPolicy::Rows(const std::string& name) const {
  const auto it = params.find(name);
  if (it != params.end()) {
    if (const auto* rows = std::get_if<IntRows>(&it->second)) return *rows;
    const auto* list = std::get_if<std::vector<int64_t>>(&it->second);
    if (list != nullptr && list->empty()) return IntRows();
  }
  return Error(StrCat("pattern '", pattern, "' needs '", name,
                      "', a list with one list of whole numbers per row."));
}

absl::StatusOr<std::vector<IntRows>> PatternPolicy::RowsPerHead(const std::string& name) const {
  const auto it = params.find(name);
  if (it != params.end()) {
    if (const auto* heads = std::get_if<std::vector<IntRows>>(&it->second)) return *heads;
  }
  return Error(StrCat("pattern '", pattern, "' needs '", name,
                      "', per head a list with one list of whole numbers per row."));
}

absl::Status PatternPolicy::CheckKnown(const std::vector<std::string>& known) const {
  for (const auto& [name, value] : params) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string allowed =
        known.empty() ? StrCat("pattern '", pattern, "' takes no parameters.")
                      : StrCat("pattern '", pattern, "' takes ", JoinNames(known), ".");
    return Error(
        StrCat("unknown parameter ", Quoted(name), "; ", allowed, DidYouMean(name, known)));
  }
  return absl::OkStatus();
}

bool IndexRanges::Contains(int32_t i) const {
  if (ranges.empty()) return true;
  return std::any_of(ranges.begin(), ranges.end(),
                     [i](const auto& r) { return r.first <= i && i <= r.second; });
}

int32_t IndexRanges::Max() const {
  int32_t max = -1;
  for (const auto& range : ranges) max = std::max(max, range.second);
  return max;
}

absl::StatusOr<IndexRanges> IndexRanges::Parse(const std::string& text) {
  const absl::Status bad = absl::InvalidArgumentError(
      StrCat("got ", Quoted(text), "; needs indices and ranges such as \"0-5,9\"."));
  IndexRanges out;
  const char* at = text.data();
  const char* end = at + text.size();
  const auto skip_spaces = [&] {
    while (at < end && *at == ' ') ++at;
  };
  const auto number = [&](int32_t* value) {
    skip_spaces();
    const auto [next, error] = std::from_chars(at, end, *value);
    if (error != std::errc() || *value < 0 || *at == '-') return false;
    at = next;
    skip_spaces();
    return true;
  };
  while (true) {
    std::pair<int32_t, int32_t> range;
    if (!number(&range.first)) return bad;
    range.second = range.first;
    if (at < end && *at == '-') {
      ++at;
      if (!number(&range.second)) return bad;
    }
    if (range.second < range.first || out.ranges.size() >= kMaxRanges) return bad;
    out.ranges.push_back(range);
    if (at == end) return out;
    if (*at != ',') return bad;
    ++at;
  }
}

absl::StatusOr<SparsityPolicy> SparsityPolicy::Parse(const std::string& text,
                                                     const std::string& folder) {
  ASSIGN_OR_RETURN(const json root, ParseStrictJson(text, "sparsity plan", kPlanLimits));
  return PlanReader(folder).Read(root);
}

absl::StatusOr<SparsityPolicy> SparsityPolicy::Load(const std::string& path) {
  const std::filesystem::path file(path);
  absl::StatusOr<std::string> text = ReadSmallFile(file, kPlanLimits.max_bytes);
  if (!text.ok()) return Annotate(text.status(), "sparsity plan");
  const std::filesystem::path folder = file.parent_path();
  return Parse(*text, folder.empty() ? "." : folder.string());
}

}  // namespace longstride

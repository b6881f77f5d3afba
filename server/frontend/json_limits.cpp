#include "server/frontend/json_limits.h"

#include <algorithm>
#include <cmath>

#include "server/frontend/error_mapping.h"

namespace longstride::frontend {
namespace {

using nlohmann::json;

// Builds the tree itself, so that every limit is checked before the value is stored.
class BoundedBuilder final : public nlohmann::json_sax<json> {
 public:
  explicit BoundedBuilder(const JsonLimits& limits) : limits_(limits) {}

  const std::string& error() const { return error_; }
  json Take() { return std::move(root_); }

  bool null() override { return Add(json(nullptr)); }
  bool boolean(bool value) override { return Add(json(value)); }
  bool number_integer(number_integer_t value) override { return Add(json(value)); }
  bool number_unsigned(number_unsigned_t value) override { return Add(json(value)); }
  bool number_float(number_float_t value, const string_t&) override {
    if (!std::isfinite(value)) return Fail("a number is out of range");
    return Add(json(value));
  }
  bool string(string_t& value) override { return Add(json(std::move(value))); }
  bool binary(binary_t&) override { return Fail("binary values are not JSON"); }
  bool start_object(std::size_t) override { return Open(json::object()); }
  bool start_array(std::size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    if (++members_ > limits_.max_members) {
      return Fail(StrCat("the JSON has more than ", limits_.max_members, " object members"));
    }
    if (stack_.back()->contains(name)) return Fail("a key appears twice in one object");
    key_ = std::move(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    const bool utf8 = std::string_view(error.what()).find("UTF-8") != std::string_view::npos;
    return Fail(StrCat(utf8 ? "invalid UTF-8" : "invalid JSON", " at byte ", position));
  }

 private:
  bool Fail(std::string message) {
    if (error_.empty()) error_ = std::move(message);
    return false;
  }

  // Where the stored value stands, or nullptr.
  json* Place(json value) {
    if (++values_ > limits_.max_values) {
      Fail(StrCat("the JSON has more than ", limits_.max_values, " values"));
      return nullptr;
    }
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    json& slot = parent[key_];
    slot = std::move(value);
    return &slot;
  }

  bool Add(json value) { return Place(std::move(value)) != nullptr; }

  bool Open(json value) {
    if (static_cast<int32_t>(stack_.size()) >= limits_.max_depth) {
      return Fail(StrCat("the JSON is nested deeper than ", limits_.max_depth, " levels"));
    }
    json* place = Place(std::move(value));
    if (place == nullptr) return false;
    stack_.push_back(place);  // stays valid: only the top container grows
    return true;
  }

  bool Close() {
    stack_.pop_back();
    return true;
  }

  const JsonLimits limits_;
  json root_;
  std::vector<json*> stack_;
  std::string key_;
  std::string error_;
  int64_t values_ = 0;
  int64_t members_ = 0;
};

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text, const JsonLimits& limits) {
  BoundedBuilder builder(limits);
  bool parsed = false;
  try {
    parsed = json::sax_parse(text.begin(), text.end(), &builder);
  } catch (const std::exception&) {
    return absl::InvalidArgumentError("the JSON could not be read");
  }
  if (!parsed) {
    return absl::InvalidArgumentError(
        StrCat("the request body cannot be read: ",
               builder.error().empty() ? std::string("invalid JSON") : builder.error(),
               "; send one JSON document in UTF-8"));
  }
  return builder.Take();
}

std::string_view JsonTypeName(const json& value) {
  switch (value.type()) {
    case json::value_t::null:
      return "null";
    case json::value_t::object:
      return "an object";
    case json::value_t::array:
      return "a list";
    case json::value_t::string:
      return "a string";
    case json::value_t::boolean:
      return "a boolean";
    default:
      return "a number";
  }
}

std::optional<int64_t> JsonInt(const json& value) {
  if (value.is_number_unsigned()) {
    const auto u = value.get<uint64_t>();
    if (u > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(u);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const double d = value.get<double>();
    if (d == std::floor(d) && std::abs(d) <= 9007199254740992.0) return static_cast<int64_t>(d);
  }
  return std::nullopt;
}

const json* JsonFields::Find(std::string_view name) {
  asked_.emplace_back(name);
  const auto it = object_.find(std::string(name));
  if (it == object_.end() || it->is_null()) return nullptr;
  return &*it;
}

std::string JsonFields::Path(std::string_view name) const {
  return path_.empty() ? std::string(name) : StrCat(path_, ".", name);
}

absl::Status JsonFields::Bool(std::string_view name, bool* out) {
  const json* value = Find(name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_boolean()) {
    return InvalidParam(
        Path(name), StrCat("'", Path(name), "' must be true or false, got ", JsonTypeName(*value)));
  }
  *out = value->get<bool>();
  return absl::OkStatus();
}

absl::Status JsonFields::Int(std::string_view name, std::optional<int64_t>* out) {
  const json* value = Find(name);
  if (value == nullptr) return absl::OkStatus();
  const std::optional<int64_t> number = JsonInt(*value);
  if (!number.has_value()) {
    return InvalidParam(Path(name),
                        StrCat("'", Path(name), "' must be an integer, got ",
                               value->is_number() ? "a number that is not one (or beyond 64 bits)"
                                                  : JsonTypeName(*value)));
  }
  *out = number;
  return absl::OkStatus();
}

absl::Status JsonFields::Number(std::string_view name, std::optional<double>* out) {
  const json* value = Find(name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_number()) {
    return InvalidParam(Path(name),
                        StrCat("'", Path(name), "' must be a number, got ", JsonTypeName(*value)));
  }
  *out = value->get<double>();
  return absl::OkStatus();
}

absl::Status JsonFields::String(std::string_view name, std::string* out) {
  const json* value = Find(name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_string()) {
    return InvalidParam(Path(name),
                        StrCat("'", Path(name), "' must be a string, got ", JsonTypeName(*value)));
  }
  *out = value->get_ref<const std::string&>();
  return absl::OkStatus();
}

absl::Status JsonFields::Ints(std::string_view name, std::vector<int64_t>* out) {
  const json* value = Find(name);
  if (value == nullptr) return absl::OkStatus();
  const auto fail = [&] {
    return InvalidParam(Path(name), StrCat("'", Path(name), "' must be a list of integers"));
  };
  if (!value->is_array()) return fail();
  out->clear();
  out->reserve(value->size());
  for (const json& item : *value) {
    const std::optional<int64_t> number = JsonInt(item);
    if (!number.has_value()) return fail();
    out->push_back(*number);
  }
  return absl::OkStatus();
}

std::vector<std::string> JsonFields::Ignored(std::size_t max) const {
  std::vector<std::string> ignored;
  for (const auto& [name, value] : object_.items()) {
    if (ignored.size() >= max) break;
    if (std::find(asked_.begin(), asked_.end(), name) == asked_.end()) ignored.push_back(name);
  }
  return ignored;
}

}  // namespace longstride::frontend

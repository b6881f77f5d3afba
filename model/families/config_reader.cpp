#include "model/families/config_reader.h"

#include <cmath>

#include "nlohmann/json.hpp"

namespace longstride::model {

using nlohmann::json;

struct ConfigReader::State {
  std::shared_ptr<const json> document;
  const json* object = nullptr;
  std::string what;
  std::string prefix;  // "text_config."

  // nullptr where absent or null.
  const json* Find(std::string_view key) const {
    const auto it = object->find(std::string(key));
    return it == object->end() || it->is_null() ? nullptr : &*it;
  }
};

namespace {

absl::Status Missing(const std::string& place) {
  return absl::InvalidArgumentError(StrCat(place, " is missing"));
}

absl::Status WrongType(const std::string& place, std::string_view wanted, const json& got) {
  return absl::InvalidArgumentError(
      StrCat(place, " must be ", wanted, ", got a value of type ", got.type_name()));
}

bool AsInt(const json& value, int64_t* out) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return false;
    *out = static_cast<int64_t>(number);
    return true;
  }
  if (value.is_number_integer()) {
    *out = value.get<int64_t>();
    return true;
  }
  if (!value.is_number_float()) return false;
  const double number = value.get<double>();
  if (!(std::fabs(number) < 9e15) || number != std::floor(number)) return false;
  *out = static_cast<int64_t>(number);
  return true;
}

}  // namespace

absl::StatusOr<ConfigReader> ConfigReader::Parse(std::string_view text, std::string_view what) {
  auto document =
      std::make_shared<const json>(json::parse(text, nullptr, /*allow_exceptions=*/false));
  if (!document->is_object()) {
    return absl::InvalidArgumentError(StrCat(what, " is not a valid JSON object"));
  }
  auto state = std::make_shared<State>();
  state->object = document.get();
  state->document = std::move(document);
  state->what = std::string(what);
  return ConfigReader(std::move(state));
}

std::string ConfigReader::Place(std::string_view key) const {
  return StrCat(state_->what, " key \"", state_->prefix, key, "\"");
}

bool ConfigReader::Has(std::string_view key) const { return state_->Find(key) != nullptr; }

bool ConfigReader::IsNull(std::string_view key) const {
  const auto it = state_->object->find(std::string(key));
  return it != state_->object->end() && it->is_null();
}

bool ConfigReader::IsList(std::string_view key) const {
  const json* value = state_->Find(key);
  return value != nullptr && value->is_array();
}

bool ConfigReader::IsObject(std::string_view key) const {
  const json* value = state_->Find(key);
  return value != nullptr && value->is_object();
}

std::vector<std::string> ConfigReader::Keys() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : state_->object->items()) {
    if (!value.is_null()) keys.push_back(key);
  }
  return keys;
}

absl::StatusOr<ConfigReader> ConfigReader::Object(std::string_view key) const {
  const json* value = state_->Find(key);
  if (value == nullptr) return Missing(Place(key));
  if (!value->is_object()) return WrongType(Place(key), "an object", *value);
  auto state = std::make_shared<State>(*state_);
  state->object = value;
  state->prefix = StrCat(state_->prefix, key, ".");
  return ConfigReader(std::move(state));
}

absl::StatusOr<int64_t> ConfigReader::Int(std::string_view key, int64_t min, int64_t max) const {
  const json* value = state_->Find(key);
  if (value == nullptr) return Missing(Place(key));
  int64_t number = 0;
  if (!AsInt(*value, &number)) return WrongType(Place(key), "an integer", *value);
  if (number < min || number > max) {
    return absl::InvalidArgumentError(
        StrCat(Place(key), " is ", number, "; ", min, " to ", max, " are allowed"));
  }
  return number;
}

absl::StatusOr<int64_t> ConfigReader::IntOr(std::string_view key, int64_t fallback, int64_t min,
                                            int64_t max) const {
  if (!Has(key)) return fallback;
  return Int(key, min, max);
}

absl::StatusOr<double> ConfigReader::Number(std::string_view key) const {
  const json* value = state_->Find(key);
  if (value == nullptr) return Missing(Place(key));
  if (!value->is_number()) return WrongType(Place(key), "a number", *value);
  const double number = value->get<double>();
  if (!std::isfinite(number)) {
    return absl::InvalidArgumentError(StrCat(Place(key), " must be a finite number"));
  }
  return number;
}

absl::StatusOr<double> ConfigReader::NumberOr(std::string_view key, double fallback) const {
  if (!Has(key)) return fallback;
  return Number(key);
}

absl::StatusOr<bool> ConfigReader::BoolOr(std::string_view key, bool fallback) const {
  const json* value = state_->Find(key);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  int64_t number = 0;  // older files write 0 and 1, or a count where anything above 0 means true
  if (AsInt(*value, &number) && number >= 0) return number != 0;
  return WrongType(Place(key), "true or false", *value);
}

absl::StatusOr<std::string> ConfigReader::String(std::string_view key) const {
  const json* value = state_->Find(key);
  if (value == nullptr) return Missing(Place(key));
  if (!value->is_string()) return WrongType(Place(key), "a text", *value);
  return value->get<std::string>();
}

absl::StatusOr<std::string> ConfigReader::StringOr(std::string_view key,
                                                   std::string_view fallback) const {
  if (!Has(key)) return std::string(fallback);
  return String(key);
}

absl::StatusOr<std::vector<std::string>> ConfigReader::Strings(std::string_view key) const {
  const json* value = state_->Find(key);
  if (value == nullptr) return Missing(Place(key));
  if (!value->is_array()) return WrongType(Place(key), "a list of texts", *value);
  std::vector<std::string> out;
  for (const json& element : *value) {
    if (!element.is_string()) return WrongType(Place(key), "a list of texts", element);
    out.push_back(element.get<std::string>());
  }
  return out;
}

absl::StatusOr<std::vector<double>> ConfigReader::Numbers(std::string_view key) const {
  const json* value = state_->Find(key);
  if (value == nullptr) return Missing(Place(key));
  if (!value->is_array()) return WrongType(Place(key), "a list of numbers", *value);
  std::vector<double> out;
  for (const json& element : *value) {
    if (!element.is_number() || !std::isfinite(element.get<double>())) {
      return WrongType(Place(key), "a list of finite numbers", element);
    }
    out.push_back(element.get<double>());
  }
  return out;
}

absl::StatusOr<std::vector<int64_t>> ConfigReader::Ints(std::string_view key) const {
  const json* value = state_->Find(key);
  if (value == nullptr) return Missing(Place(key));
  std::vector<int64_t> out;
  int64_t number = 0;
  if (AsInt(*value, &number)) return std::vector<int64_t>{number};
  if (!value->is_array()) return WrongType(Place(key), "a list of integers", *value);
  for (const json& element : *value) {
    if (element.is_boolean()) {
      number = element.get<bool>() ? 1 : 0;
    } else if (!AsInt(element, &number)) {
      return WrongType(Place(key), "a list of integers", element);
    }
    out.push_back(number);
  }
  return out;
}

}  // namespace longstride::model

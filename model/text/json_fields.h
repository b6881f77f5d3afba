// Typed access to the fields of a JSON object, with errors that name the field. Internal.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "config/base/status.h"

namespace longstride::model {

// `where` names the object in messages, for example "pre_tokenizer Split".
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  const std::string& where() const { return where_; }

  // The field, or nullptr if it is absent or null.
  const nlohmann::json* Find(std::string_view name) const {
    if (!object_.is_object()) return nullptr;
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  absl::StatusOr<bool> Bool(std::string_view name, bool absent) const {
    const nlohmann::json* value = Find(name);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) return Wrong(name, "true or false");
    return value->get<bool>();
  }
  absl::StatusOr<int64_t> Int(std::string_view name, std::optional<int64_t> absent = {}) const {
    const nlohmann::json* value = Find(name);
    if (value == nullptr && absent.has_value()) return *absent;
    if (value == nullptr || !value->is_number_integer()) return Wrong(name, "an integer");
    if (value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX) {
      return Wrong(name, "an integer of 63 bits");
    }
    return value->get<int64_t>();
  }
  absl::StatusOr<std::string> String(std::string_view name,
                                     std::optional<std::string> absent = {}) const {
    const nlohmann::json* value = Find(name);
    if (value == nullptr && absent.has_value()) return *std::move(absent);
    if (value == nullptr || !value->is_string()) return Wrong(name, "a string");
    return value->get<std::string>();
  }
  absl::StatusOr<const nlohmann::json*> Array(std::string_view name) const {
    const nlohmann::json* value = Find(name);
    if (value == nullptr || !value->is_array()) return Wrong(name, "an array");
    return value;
  }
  absl::Status Wrong(std::string_view name, std::string_view expected) const {
    return absl::InvalidArgumentError(
        StrCat("tokenizer.json: ", where_, ": \"", name, "\" must be ", expected));
  }

 private:
  const nlohmann::json& object_;
  std::string where_;
};

}  // namespace longstride::model

// Typed, checked access to a checkpoint's metadata (config.json or GGUF keys).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"

namespace longstride::model {

// One JSON object. A key whose value is null counts as absent. Errors are INVALID_ARGUMENT and name
// the key with the objects around it ("text_config.hidden_size"). Copies share the document.
class ConfigReader {
 public:
  // `what` names the document in messages ("config.json").
  static absl::StatusOr<ConfigReader> Parse(std::string_view json, std::string_view what);

  bool Has(std::string_view key) const;
  // True where the key is there and null: for options whose absence means a default, but whose null
  // means "off".
  bool IsNull(std::string_view key) const;
  // Keys present, in name order.
  std::vector<std::string> Keys() const;
  // True where the value is a list.
  bool IsList(std::string_view key) const;
  bool IsObject(std::string_view key) const;

  absl::StatusOr<ConfigReader> Object(std::string_view key) const;
  // The value must be an integer in [min, max]. A fraction without one (2.0) is an integer.
  absl::StatusOr<int64_t> Int(std::string_view key, int64_t min, int64_t max) const;
  absl::StatusOr<int64_t> IntOr(std::string_view key, int64_t fallback, int64_t min,
                                int64_t max) const;
  // The value must be a finite number.
  absl::StatusOr<double> Number(std::string_view key) const;
  absl::StatusOr<double> NumberOr(std::string_view key, double fallback) const;
  absl::StatusOr<bool> BoolOr(std::string_view key, bool fallback) const;
  absl::StatusOr<std::string> String(std::string_view key) const;
  absl::StatusOr<std::string> StringOr(std::string_view key, std::string_view fallback) const;
  absl::StatusOr<std::vector<std::string>> Strings(std::string_view key) const;
  absl::StatusOr<std::vector<double>> Numbers(std::string_view key) const;
  // A single integer is a list of one.
  absl::StatusOr<std::vector<int64_t>> Ints(std::string_view key) const;

  // Where a key stands, for messages of the caller: config key "text_config.hidden_size".
  std::string Place(std::string_view key) const;

 private:
  struct State;  // keeps the JSON library out of this header
  explicit ConfigReader(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

}  // namespace longstride::model

// Parsing of JSON that comes from clients: bounded in depth, size and number of values while it is
// read, before any tree stands (a tree 200,000 levels deep overflows the stack where it is copied
// or destroyed). Included by .cpp files of the front end only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "config/base/status.h"

namespace longstride::frontend {

struct JsonLimits {
  int32_t max_depth = 64;
  int64_t max_values = int64_t{8} << 20;   // array elements and object members, all levels
  int64_t max_members = int64_t{1} << 20;  // object members, all levels
};

// INVALID_ARGUMENT: not JSON (with the byte offset), invalid UTF-8, too deep, too many values, or a
// key twice in one object. Messages never quote the text.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const JsonLimits& limits = {});

// Typed access to the members of one JSON object. A null member counts as absent. Errors are
// INVALID_ARGUMENT with the member's path as param. Remembers what was asked for, so that the rest
// can be reported as ignored.
class JsonFields {
 public:
  // `object` must be an object and outlive this; `path` is its own place, "" for the body.
  JsonFields(const nlohmann::json& object, std::string path)
      : object_(object), path_(std::move(path)) {}

  // The member, or nullptr if it is absent or null.
  const nlohmann::json* Find(std::string_view name);
  std::string Path(std::string_view name) const;

  absl::Status Bool(std::string_view name, bool* out);
  absl::Status Int(std::string_view name, std::optional<int64_t>* out);
  absl::Status Number(std::string_view name, std::optional<double>* out);
  absl::Status String(std::string_view name, std::string* out);
  absl::Status Ints(std::string_view name, std::vector<int64_t>* out);

  // Members that nobody asked for, in name order; at most `max`.
  std::vector<std::string> Ignored(std::size_t max = 32) const;

 private:
  const nlohmann::json& object_;
  const std::string path_;
  std::vector<std::string> asked_;
};

// "a string", "an object": for messages.
std::string_view JsonTypeName(const nlohmann::json& value);
// An integer that fits in 64 bits; 16.0 counts as one.
std::optional<int64_t> JsonInt(const nlohmann::json& value);

}  // namespace longstride::frontend

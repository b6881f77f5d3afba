// API keys, stored as hashes. File: one `name:sha256` per line (64 hex digits of the key's
// SHA-256),
// '#' starts a comment. The name identifies the holder in fairness, prefix isolation and logs.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"

namespace longstride::frontend {

class ApiKeys {
 public:
  // Without keys everybody may call.
  ApiKeys() = default;
  // INVALID_ARGUMENT: unreadable, malformed (with the line's number), a name twice, or no key at
  // all.
  static absl::StatusOr<ApiKeys> Load(const std::string& path);
  static absl::StatusOr<ApiKeys> Parse(std::string_view text);

  bool required() const { return !keys_.empty(); }
  // The holder's name. Compares with every key, in time that does not depend on how much matches.
  std::optional<std::string> Check(std::string_view key) const;
  // The same for an Authorization value, "Bearer KEY".
  std::optional<std::string> CheckAuthorization(std::string_view value) const;

 private:
  struct Key {
    std::string name;
    std::array<uint8_t, 32> hash;
  };
  std::vector<Key> keys_;
};

// 64 hex digits of SHA-256: what the file holds for a key.
std::string HashApiKey(std::string_view key);

}  // namespace longstride::frontend

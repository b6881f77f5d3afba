// The sparsity plans that are built in: config/profiles/*.json.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"

namespace longstride {

struct Profile {
  std::string_view name;  // file name without .json
  std::string_view text;  // for SparsityPolicy::Parse
};

// Sorted by name.
const std::vector<Profile>& Profiles();

// INVALID_ARGUMENT suggests the nearest name and lists all.
absl::StatusOr<std::string_view> FindProfile(std::string_view name);

}  // namespace longstride

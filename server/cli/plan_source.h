// A plan that the command line names: a built-in profile or a plan file.
#pragma once

#include <string>

#include "config/base/status.h"
#include "config/sparsity_policy.h"

namespace longstride::cli {

struct NamedPlan {
  std::string text;  // the plan file's contents
  SparsityPolicy policy;
};

// `name`: a profile's name, else a file. INVALID_ARGUMENT: neither, or a bad plan.
absl::StatusOr<NamedPlan> ReadPlan(const std::string& name);

}  // namespace longstride::cli

// How much memory the process may still take.
#pragma once

#include <cstdint>
#include <string>

#include "config/base/status.h"

namespace longstride::model {

// The smaller of what the system can give without swapping and what the process's control group
// (container) has left. UNAVAILABLE where neither can be read.
absl::StatusOr<int64_t> AvailableMemory();

// The same from other places, for tests: `proc` as /proc, `cgroup` as /sys/fs/cgroup.
absl::StatusOr<int64_t> AvailableMemory(const std::string& proc, const std::string& cgroup);

}  // namespace longstride::model

#include "model/available_memory.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

namespace longstride::model {
namespace {

// The number after `key` at the start of a line.
std::optional<int64_t> Field(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string name;
    int64_t value = 0;
    if (words >> name && name == key && words >> value && value >= 0) return value;
  }
  return std::nullopt;
}

// A file of one number; absent for "max" and for a limit that limits nothing.
std::optional<int64_t> Number(const std::string& path) {
  constexpr int64_t kUnlimited = int64_t{1} << 60;  // version 1 writes a huge number
  std::ifstream in(path);
  int64_t value = 0;
  if (in >> value && value >= 0 && value < kUnlimited) return value;
  return std::nullopt;
}

struct CgroupFiles {
  const char* limit;
  const char* usage;
  const char* stat;
  const char* reclaimable;  // page cache that goes first, in `stat`
};
// Version 2 and version 1, as a container sees its own group.
constexpr CgroupFiles kCgroupFiles[] = {
    {"/memory.max", "/memory.current", "/memory.stat", "inactive_file"},
    {"/memory/memory.limit_in_bytes", "/memory/memory.usage_in_bytes", "/memory/memory.stat",
     "total_inactive_file"},
};

}  // namespace

absl::StatusOr<int64_t> AvailableMemory(const std::string& proc, const std::string& cgroup) {
  std::optional<int64_t> available;
  if (const auto kib = Field(proc + "/meminfo", "MemAvailable:")) available = *kib * 1024;
  for (const CgroupFiles& files : kCgroupFiles) {
    const auto limit = Number(cgroup + files.limit);
    const auto usage = Number(cgroup + files.usage);
    if (!limit || !usage) continue;
    const int64_t cache = Field(cgroup + files.stat, files.reclaimable).value_or(0);
    const int64_t left = std::max<int64_t>(0, *limit - *usage + std::min(cache, *usage));
    available = available ? std::min(*available, left) : left;
  }
  if (available) return *available;
  return absl::UnavailableError(
      "the system does not say how much memory is available; set the KV cache's size in bytes.");
}

absl::StatusOr<int64_t> AvailableMemory() { return AvailableMemory("/proc", "/sys/fs/cgroup"); }

}  // namespace longstride::model

#include "model/kv_budget.h"

#include <algorithm>

#include "model/available_memory.h"

namespace longstride::model {
namespace {

// The largest piece that a device maps at a time.
constexpr int64_t kMappedPiece = int64_t{16} << 20;
// Graphs of recorded steps, the edits of a step's choices, the driver's own.
constexpr int64_t kReserve = int64_t{512} << 20;

}  // namespace

absl::Status CheckKvOptions(const ModelOptions& options) {
  if (options.kv_budget_bytes < 0) {
    return absl::InvalidArgumentError(
        StrCat("the KV cache's size is ", options.kv_budget_bytes, " bytes; give 0 or more."));
  }
  if (!(options.kv_memory_fraction >= 0.0) || options.kv_memory_fraction > 1.0) {
    return absl::InvalidArgumentError(StrCat("the KV cache's share of memory is ",
                                             options.kv_memory_fraction,
                                             "; give more than 0 and at most 1, or 0 for the "
                                             "device's usual share."));
  }
  return absl::OkStatus();
}

int64_t KvShare(const ModelOptions& options, int64_t left, double standard) {
  if (options.kv_budget_bytes > 0) return options.kv_budget_bytes;
  const double fraction =
      options.kv_memory_fraction == 0.0 ? standard : options.kv_memory_fraction;
  return static_cast<int64_t>(static_cast<double>(left) * fraction);
}

absl::StatusOr<int64_t> HostKvBudget(const ModelOptions& options, int64_t weight_bytes) {
  if (options.kv_budget_bytes > 0) return options.kv_budget_bytes;
  ASSIGN_OR_RETURN(const int64_t available, AvailableMemory());
  return KvShare(options, std::max<int64_t>(0, available - weight_bytes), kHostKvFraction);
}

int64_t BesideDeviceKv(const std::vector<CacheGroup>& groups) {
  int64_t bytes = kReserve;
  for (const CacheGroup& group : groups) {
    bytes += 2 * static_cast<int64_t>(group.layers.size()) * kMappedPiece;
  }
  return bytes;
}

absl::StatusOr<int64_t> DeviceKvBudget(const ModelOptions& options,
                                       const kernels::DeviceMemory& memory,
                                       const std::vector<CacheGroup>& groups) {
  const int64_t beside = BesideDeviceKv(groups);
  const int64_t room = memory.free_bytes - beside;
  int64_t least = 0;
  for (const CacheGroup& group : groups) least += group.page_bytes;
  const int64_t wanted = options.kv_budget_bytes;
  if (room < std::max(wanted, least)) {
    return absl::ResourceExhaustedError(
        StrCat("the KV cache needs ", std::max(wanted, least), " bytes of device memory and ",
               beside, " beside it, but with weights, workspace and the scratch of the largest steps "
               "loaded, ", memory.free_bytes, " of the device's ", memory.total_bytes,
               " bytes are free; lower ",
               wanted > least ? "--kv-memory (or leave it out: all that fits), " : "",
               "--scheduler-max-step-tokens, --scheduler-max-running or --max-context, or use "
               "--device cpu."));
  }
  return std::max(least, KvShare(options, room, kDeviceKvFraction));
}

}  // namespace longstride::model

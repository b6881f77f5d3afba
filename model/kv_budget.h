// What the KV cache may take, from what the operator said and what is left beside the rest.
#pragma once

#include <cstdint>
#include <vector>

#include "config/base/status.h"
#include "kernels/backend.h"
#include "model/cache_group.h"
#include "model/model.h"

namespace longstride::model {

// Shares of what is left where ModelOptions::kv_memory_fraction is 0: on a device the rest of the
// need has been measured, the host has other processes.
inline constexpr double kHostKvFraction = 0.6;
inline constexpr double kDeviceKvFraction = 0.95;

// INVALID_ARGUMENT: a negative size, or a share above 1.
absl::Status CheckKvOptions(const ModelOptions& options);

// kv_budget_bytes, or else the share of `left` that kv_memory_fraction or `standard` says.
int64_t KvShare(const ModelOptions& options, int64_t left, double standard);

// On the host, once weights of that many bytes (repacked or mapped) will be in memory.
absl::StatusOr<int64_t> HostKvBudget(const ModelOptions& options, int64_t weight_bytes);

// On a device whose memory is as `memory` says with weights, workspace and the scratch of the largest
// steps in it. RESOURCE_EXHAUSTED names need, have and what to lower where kv_budget_bytes does not
// fit, or nothing is left.
absl::StatusOr<int64_t> DeviceKvBudget(const ModelOptions& options,
                                       const kernels::DeviceMemory& memory,
                                       const std::vector<CacheGroup>& groups);

// What DeviceKvBudget leaves beside the cache: a device maps memory in pieces, of which each layer's
// keys and values may leave one unused, and recorded steps and the driver take some.
int64_t BesideDeviceKv(const std::vector<CacheGroup>& groups);

}  // namespace longstride::model

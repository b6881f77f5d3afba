// From what the operator said to the options of each part.
#pragma once

#include "config/base/logging.h"
#include "config/server_config.h"
#include "model/fidelity/live_shadow.h"
#include "model/model.h"
#include "server/engine/options.h"
#include "server/frontend/inference_service.h"
#include "server/metrics/metrics.h"

namespace longstride::cli {

// Reads the plan and template files. INVALID_ARGUMENT: no model given, a file that cannot be read,
// a bad plan. UNIMPLEMENTED: a device that is not built in.
absl::StatusOr<model::ModelOptions> ToModelOptions(const ServerConfig& config);

// What `device` names; auto: CUDA where a device can be used, else the CPU, and why not CUDA.
struct DeviceChoice {
  kernels::BackendKind backend = kernels::BackendKind::kCpu;
  absl::Status cuda;  // OK, or why CUDA is not used, where that was asked
};
DeviceChoice ChooseDevice(const ServerConfig& config);

// The policy that sparsity.plan or sparsity.profile names, or the checkpoint's own.
absl::StatusOr<SparsityPolicy> ToSparsityPolicy(const ServerConfig& config);
kernels::KvDType ToKvDType(const ServerConfig& config);

// `max_context`: the loaded model's.
engine::EngineOptions ToEngineOptions(const ServerConfig& config, int32_t max_context);

frontend::ServiceOptions ToServiceOptions(const ServerConfig& config);
frontend::AuditOptions ToAuditOptions(const ServerConfig& config);

LogLevel ToLogLevel(const ServerConfig& config);
LogFormat ToLogFormat(const ServerConfig& config);

// What metrics show of a loaded model.
metrics::ShadowFacts ToShadowFacts(const model::Model& model,
                                   const model::fidelity::LiveShadow& shadow);
metrics::ModelFacts ToModelFacts(model::Model& model);

}  // namespace longstride::cli

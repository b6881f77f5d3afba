#include "config/server_config.h"

#include <algorithm>

#include "config/option_table.h"

namespace longstride {
namespace {

absl::Status AtLeast(const char* name, int64_t value, const char* other, int64_t minimum) {
  if (value >= minimum) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat(name, " is ", value, " but must be at least ", other, ", which is ", minimum, "."));
}

}  // namespace

absl::Status ValidateConfig(const ServerConfig& config) {
  RETURN_IF_ERROR(AtLeast("scheduler.max_step_tokens", config.scheduler.max_step_tokens,
                          "scheduler.max_running", config.scheduler.max_running));
  RETURN_IF_ERROR(AtLeast("scheduler.max_step_logits", config.scheduler.max_step_logits,
                          "scheduler.max_running", config.scheduler.max_running));
  RETURN_IF_ERROR(AtLeast("scheduler.max_running", config.scheduler.max_running, "limits.choices",
                          config.limits.choices));
  if (config.prefix_cache.snapshot_interval % 64 != 0) {
    return absl::InvalidArgumentError(StrCat("prefix_cache.snapshot_interval is ",
                                             config.prefix_cache.snapshot_interval,
                                             " but must be a multiple of 64."));
  }
  if (!config.sparsity.plan.empty() && !config.sparsity.profile.empty()) {
    return absl::InvalidArgumentError(
        "sparsity.plan and sparsity.profile are both set; keep one of them.");
  }
  if (config.audit.text && config.audit.file.empty()) {
    return absl::InvalidArgumentError(
        "audit.text is set, but there is no audit log; set audit.file, too.");
  }
  if (config.tls.cert.empty() != config.tls.key.empty()) {
    return absl::InvalidArgumentError(
        "tls.cert and tls.key go together, but only one of them is set; set both or neither.");
  }
  if (config.grpc.enabled && config.grpc.port != 0 && config.grpc.port == config.http.port) {
    return absl::InvalidArgumentError(StrCat("http.port and grpc.port are both ", config.http.port,
                                             "; give them different ports."));
  }
  if (!IsLoopbackHost(config.host) && config.api_keys.empty() && !config.insecure) {
    return absl::InvalidArgumentError(
        StrCat("host is ", config.host,
               ", which other machines can reach, but there are no API keys; set api_keys (see "
               "`longstride hash-key`), or insecure if something else guards the port."));
  }
  return absl::OkStatus();
}

bool IsLoopbackHost(const std::string& host) {
  if (host == "localhost" || host == "::1" || host == "[::1]") return true;
  // 127.a.b.c, and nothing that merely begins like it ("127.example.org").
  if (host.rfind("127.", 0) != 0) return false;
  return std::all_of(host.begin(), host.end(),
                     [](char c) { return c == '.' || (c >= '0' && c <= '9'); });
}

}  // namespace longstride

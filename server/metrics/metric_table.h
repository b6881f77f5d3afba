// The one declaration of each metric: name, type, labels, buckets, help. The registry, GET
// /metrics, docs/metrics.md and the checks of dashboards and alerts follow from it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace longstride::metrics {

enum class MetricType { kCounter, kGauge, kHistogram };

// Index into MetricTable(). "Alias" metrics exist under names that inference gateways read.
enum class MetricId {
  // Requests.
  kRequestsSubmitted,
  kRequestsFinished,
  kAdmissionRejections,
  kRequestsRunning,
  kRequestsWaiting,
  kPromptTokensWaiting,
  kTimeToFirstToken,
  kInterTokenLatency,
  kTimePerOutputToken,
  kEndToEndLatency,
  kQueueTime,
  kPrefillTime,
  kDecodeTime,
  kInferenceTime,
  kRequestPromptTokens,
  kRequestGenerationTokens,
  kRequestMaxTokens,
  kRequestChoices,
  kRequestComputedTokens,
  // Tokens.
  kPromptTokens,
  kGenerationTokens,
  kPrefixQueries,
  kPrefixHits,
  kPrefixGeneratedHits,
  kRecomputedTokens,
  kPreemptions,
  kPreemptedTokens,
  // Steps.
  kSteps,
  kStepDuration,
  kStepPhase,
  kStepTokens,
  kStepSequences,
  kInvalidLogits,
  // GPU.
  kGpuDecodeSteps,
  kGpuSampledTokens,
  kGpuMemory,
  kGpuPageCopyBytes,
  kGpuPageCopySeconds,
  kGpuMeasuredSteps,
  kGpuKernelSeconds,
  kGpuAttentionFlops,
  kGpuAttentionBytes,
  // KV cache and sparsity.
  kKvUsage,
  kKvBudget,
  kKvPages,
  kKvBytes,
  kKvPagesFreed,
  kAttentionKeys,
  kAttendedRatio,
  kShadowInfo,
  kShadowSteps,
  kShadowSeconds,
  kShadowMass,
  kShadowError,
  kShadowLayerMass,
  kShadowLayerError,
  kCacheConfig,
  // Front ends.
  kHttpRequests,
  kGrpcRequests,
  kCallDuration,
  kReceivedBytes,
  kSentBytes,
  kOpenConnections,
  kConnectionsRefused,
  kOpenStreams,
  kStreamErrors,
  kClientsGone,
  kClientStall,
  kAuthenticationFailures,
  kTokenizedTokens,
  kTokenizeTime,
  kWrittenTokens,
  kWriteTime,
  kAuditRecords,
  kAuditCommit,
  kAuditFailures,
  kAuditPending,
  kAuditLost,
  // The process.
  kReady,
  kDraining,
  kBuildInfo,
  kModelInfo,
  kModelBytes,
  kProcessResident,
  kProcessStart,
  kProcessCpu,
  kProcessFds,
  // Aliases.
  kAliasWaiting,
  kAliasRunning,
  kAliasKvUsage,
  kAliasCacheConfig,
  kCount,
};

struct Metric {
  MetricId id = MetricId::kCount;
  std::string_view section;
  std::string_view name;  // "longstride:num_requests_running"
  MetricType type = MetricType::kCounter;
  std::vector<std::string> labels = {};
  std::vector<double> buckets = {};  // kHistogram: upper bounds, ascending, +Inf implied
  std::string_view help;
  bool on_gpu_only = false;  // no series where no GPU is used, though it has no labels

  bool is_alias() const { return id >= MetricId::kAliasWaiting; }
};

// In the order of MetricId. Immutable.
const std::vector<Metric>& MetricTable();

// docs/metrics.md.
std::string MetricsMarkdown();

}  // namespace longstride::metrics

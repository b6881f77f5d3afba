#include "server/metrics/metrics.h"

#include <algorithm>
#include <sstream>
#include <tuple>

#include "config/base/check.h"
#include "config/base/version.h"
#include "prometheus/text_serializer.h"
#include "server/metrics/process_stats.h"

namespace longstride::metrics {
namespace {

using engine::AbortCause;
using engine::FinishReason;

constexpr double kNano = 1e-9;

constexpr std::array<const char*, 8> kReasons = {"stop",  "length",     "error",       "deadline",
                                                 "abort", "disconnect", "slow_client", "shutdown"};

// Index into kReasons.
size_t ReasonIndex(const engine::FinishReport& report) {
  switch (report.reason) {
    case FinishReason::kStop:
      return 0;
    case FinishReason::kLength:
      return 1;
    case FinishReason::kError:
      return 2;
    case FinishReason::kDeadline:
      return 3;
    case FinishReason::kCancelled:
      break;
  }
  switch (report.abort) {
    case AbortCause::kDeadline:
      return 3;
    case AbortCause::kDisconnect:
      return 5;
    case AbortCause::kSlowClient:
      return 6;
    case AbortCause::kShutdown:
      return 7;
    case AbortCause::kNone:
    case AbortCause::kClient:
      break;
  }
  return 4;
}

const char* TransportName(size_t transport) { return transport == 0 ? "http" : "grpc"; }

// Pages that fit the budget if all groups that keep everything grow together: what a router may
// count on for prefixes. Where every group has a window, all of them.
int64_t PagesOfBudget(const ModelFacts& facts) {
  int64_t kept = 0;
  int64_t all = 0;
  for (const model::CacheGroup& group : facts.groups) {
    all += group.page_bytes;
    if (group.retention.keeps_all()) kept += group.page_bytes;
  }
  const int64_t page = kept > 0 ? kept : all;
  return page > 0 ? facts.kv_budget_bytes / page : 0;
}

}  // namespace

Metrics::Metrics(const MetricsOptions& options, const Clock* clock) : options_(options) {
  const std::vector<Metric>& table = MetricTable();
  LS_CHECK_EQ(table.size(), static_cast<size_t>(MetricId::kCount));
  for (size_t i = 0; i < table.size(); ++i) {
    LS_CHECK_EQ(static_cast<size_t>(table[i].id), i);
    families_.push_back(std::make_unique<Family>(table[i]));
  }
  MakeTransportCells();
  MakeStepCells();
  At(MetricId::kProcessStart).Value().Set(ProcessStartSeconds(absl::ToUnixSeconds(clock->Now())));
  At(MetricId::kBuildInfo).Series({Version(), BuildCommit(), BuildCompiler()})->Set(1);
}

Metrics::~Metrics() = default;

void Metrics::MakeTransportCells() {
  for (size_t i = 0; i < transports_.size(); ++i) {
    const std::vector<std::string> label = {TransportName(i)};
    TransportCells& cells = transports_[i];
    cells.duration = At(MetricId::kCallDuration).Histogram(label);
    cells.received = At(MetricId::kReceivedBytes).Series(label);
    cells.sent = At(MetricId::kSentBytes).Series(label);
    cells.connections = At(MetricId::kOpenConnections).Series(label);
    cells.refused = At(MetricId::kConnectionsRefused).Series(label);
    cells.streams = At(MetricId::kOpenStreams).Series(label);
    cells.stream_errors = At(MetricId::kStreamErrors).Series(label);
    cells.clients_gone = At(MetricId::kClientsGone).Series(label);
    cells.authentication_failures = At(MetricId::kAuthenticationFailures).Series(label);
    cells.written_tokens = At(MetricId::kWrittenTokens).Series(label);
    cells.write_seconds = At(MetricId::kWriteTime).Series(label);
  }
}

void Metrics::MakeStepCells() {
  Family& phases = At(MetricId::kStepPhase);
  phases_ = {.plan = phases.Series({"plan"}),
             .selection = phases.Series({"selection"}),
             .attention = phases.Series({"attention"}),
             .linear = phases.Series({"linear"}),
             .other = phases.Series({"other"}),
             .sampling = phases.Series({"sampling"}),
             .emit = phases.Series({"emit"})};
  submitted_ = {At(MetricId::kRequestsSubmitted).Series({"generate"}),
                At(MetricId::kRequestsSubmitted).Series({"embed"}),
                At(MetricId::kRequestsSubmitted).Series({"classify"})};
  computed_tokens_ = At(MetricId::kPromptTokens).Series({"computed"});
  cached_tokens_ = At(MetricId::kPromptTokens).Series({"prefix_cache"});
  decode_tokens_ = At(MetricId::kStepTokens).Series({"decode"});
  prefill_tokens_ = At(MetricId::kStepTokens).Series({"prefill"});
  static_assert(kReasons.size() == std::tuple_size_v<decltype(finished_)>);
  for (size_t i = 0; i < kReasons.size(); ++i) {
    finished_[i] = At(MetricId::kRequestsFinished).Series({kReasons[i]});
  }
}

void Metrics::DescribeModel(const ModelFacts& facts) {
  At(MetricId::kModelInfo)
      .Series({facts.name, facts.family, facts.weights_type, facts.model_digest, facts.plan,
               facts.plan_digest, facts.device, std::to_string(facts.max_context)})
      ->Set(1);
  At(MetricId::kModelBytes).Series({"weights"})->Set(static_cast<double>(facts.weight_bytes));
  At(MetricId::kModelBytes).Series({"workspace"})->Set(static_cast<double>(facts.workspace_bytes));
  At(MetricId::kKvBudget).Value().Set(static_cast<double>(facts.kv_budget_bytes));
  const std::string block_size = std::to_string(kernels::kPageTokens);
  const std::string num_blocks = std::to_string(PagesOfBudget(facts));
  At(MetricId::kCacheConfig).Series({block_size, num_blocks, facts.kv_dtype})->Set(1);
  if (options_.gateway_aliases) {
    At(MetricId::kAliasCacheConfig).Series({facts.name, block_size, num_blocks})->Set(1);
    alias_cells_ = {.running = At(MetricId::kAliasRunning).Series({facts.name}),
                    .waiting = At(MetricId::kAliasWaiting).Series({facts.name}),
                    .kv_usage = At(MetricId::kAliasKvUsage).Series({facts.name})};
    aliases_ = &alias_cells_;
  }
  constexpr const char* kCauses[kFreeCauses] = {"window", "evict", "finish", "abort", "preempt"};
  for (const model::CacheGroup& group : facts.groups) {
    Family& pages = At(MetricId::kKvPages);
    GroupCells cells = {.free = pages.Series({group.name, "free"}),
                        .used = pages.Series({group.name, "used"}),
                        .cached = pages.Series({group.name, "cached"}),
                        .snapshot = pages.Series({group.name, "snapshot"}),
                        .host = facts.on_gpu ? pages.Series({group.name, "host"}) : nullptr,
                        .bytes = At(MetricId::kKvBytes).Series({group.name})};
    for (size_t i = 0; i < kFreeCauses; ++i) {
      cells.freed[i] = At(MetricId::kKvPagesFreed).Series({group.name, kCauses[i]});
    }
    if (group.page_bytes > 0) {
      cells.free->Set(static_cast<double>(facts.kv_budget_bytes / group.page_bytes));
    }
    groups_.push_back(cells);
  }
  if (facts.on_gpu) MakeGpuCells();
  for (const std::string& pattern : facts.patterns) {
    Family& keys = At(MetricId::kAttentionKeys);
    patterns_.push_back({.causal = keys.Series({pattern, "causal"}),
                         .visible = keys.Series({pattern, "visible"}),
                         .read = keys.Series({pattern, "read"})});
  }
}

void Metrics::Submitted(const engine::GenerationRequest& request) {
  submitted_[static_cast<size_t>(request.kind)]->Add(1);
}

void Metrics::Rejected(std::string_view reason) {
  At(MetricId::kAdmissionRejections).Series({std::string(reason)})->Add(1);
}

void Metrics::Admitted(double queue_seconds, int32_t prompt_tokens, int32_t cached_tokens) {
  At(MetricId::kQueueTime).Distribution().Observe(queue_seconds);
  computed_tokens_->Add(prompt_tokens - cached_tokens);
  cached_tokens_->Add(cached_tokens);
  At(MetricId::kPrefixQueries).Value().Add(prompt_tokens);
  At(MetricId::kPrefixHits).Value().Add(cached_tokens);
}

void Metrics::GeneratedPrefixHit(int32_t tokens) {
  At(MetricId::kPrefixGeneratedHits).Value().Add(tokens);
}

void Metrics::FirstToken(double ttft_seconds) {
  At(MetricId::kTimeToFirstToken).Distribution().Observe(ttft_seconds);
}

void Metrics::InterToken(double seconds) {
  At(MetricId::kInterTokenLatency).Distribution().Observe(seconds);
}

void Metrics::Preempted(int32_t tokens_lost) {
  At(MetricId::kPreemptions).Value().Add(1);
  At(MetricId::kPreemptedTokens).Value().Add(tokens_lost);
}

void Metrics::PagesFreed(int32_t group, engine::PageFreeCause cause, int64_t pages) {
  const auto index = static_cast<size_t>(group);
  if (index >= groups_.size()) return;
  groups_[index].freed[static_cast<size_t>(cause)]->Add(static_cast<double>(pages));
}

void Metrics::PagesCopied(bool to_host, int64_t bytes, double seconds) {
  if (!gpu_) return;
  gpu_->copied_bytes[to_host ? 1 : 0]->Add(static_cast<double>(bytes));
  gpu_->copied_seconds[to_host ? 1 : 0]->Add(seconds);
}

void Metrics::ClientStalled(double seconds) {
  At(MetricId::kClientStall).Distribution().Observe(seconds);
}

void Metrics::InvalidLogits() { At(MetricId::kInvalidLogits).Value().Add(1); }

void Metrics::AddPhases(const engine::StepReport& report) {
  const model::StepTimes& times = report.model;
  const int64_t split = times.selection_ns + times.attention_ns + times.linear_ns;
  phases_.plan->Add(static_cast<double>(report.plan_ns) * kNano);
  phases_.selection->Add(static_cast<double>(times.selection_ns) * kNano);
  phases_.attention->Add(static_cast<double>(times.attention_ns) * kNano);
  phases_.linear->Add(static_cast<double>(times.linear_ns) * kNano);
  phases_.other->Add(static_cast<double>(std::max<int64_t>(0, report.forward_ns - split)) * kNano);
  phases_.sampling->Add(static_cast<double>(report.sample_ns) * kNano);
  phases_.emit->Add(static_cast<double>(report.emit_ns) * kNano);
}

void Metrics::StepDone(const engine::StepReport& report) {
  AddPhases(report);
  if (report.num_sequences > 0) {  // else the step only tidied up
    const int64_t total = report.plan_ns + report.forward_ns + report.sample_ns + report.emit_ns;
    At(MetricId::kSteps).Value().Add(1);
    At(MetricId::kStepDuration).Distribution().Observe(static_cast<double>(total) * kNano);
    At(MetricId::kStepSequences).Distribution().Observe(report.num_sequences);
  }
  if (gpu_) AddGpu(report);
  if (report.shadow) AddShadow(*report.shadow);
  At(MetricId::kGenerationTokens).Value().Add(report.generated_tokens);
  decode_tokens_->Add(report.decode_tokens);
  prefill_tokens_->Add(report.prefill_tokens);
  At(MetricId::kRecomputedTokens).Value().Add(report.recomputed_tokens);
  for (size_t i = 0; i < std::min(groups_.size(), report.groups.size()); ++i) {
    const engine::GroupPages& pages = report.groups[i];
    groups_[i].free->Set(static_cast<double>(pages.free));
    groups_[i].used->Set(static_cast<double>(pages.used));
    groups_[i].cached->Set(static_cast<double>(pages.cached));
    groups_[i].snapshot->Set(static_cast<double>(pages.snapshot));
    if (groups_[i].host != nullptr) groups_[i].host->Set(static_cast<double>(pages.in_host));
    groups_[i].bytes->Set(static_cast<double>(pages.bytes_used));
  }
  for (const model::PatternCounters& counters : report.counters) {
    const auto index = static_cast<size_t>(counters.pattern);
    if (index >= patterns_.size()) continue;
    patterns_[index].causal->Add(static_cast<double>(counters.keys_total));
    patterns_[index].visible->Add(static_cast<double>(counters.keys_visible));
    patterns_[index].read->Add(static_cast<double>(counters.keys_read));
  }
}

void Metrics::DescribeShadow(const ShadowFacts& facts) {
  int64_t all = 0, measured = 0;
  for (size_t l = 0; l < facts.layers.size(); ++l) {
    std::vector<ShadowCells>& layer = shadow_.emplace_back();
    for (const ShadowFacts::Heads& heads : facts.layers[l]) {
      ShadowCells& cells = layer.emplace_back();
      ++all;
      if (!heads.measured) continue;
      ++measured;
      cells.mass = At(MetricId::kShadowMass).Histogram({heads.pattern});
      cells.error = At(MetricId::kShadowError).Histogram({heads.pattern});
      const std::vector<std::string> place = {std::to_string(l), heads.heads};
      cells.layer_mass = At(MetricId::kShadowLayerMass).Series(place);
      cells.layer_error = At(MetricId::kShadowLayerError).Series(place);
    }
  }
  const char* state = measured == 0 ? "none" : measured < all ? "some" : "all";
  At(MetricId::kShadowInfo).Series({state, facts.reason, facts.baseline_digest})->Set(1);
}

void Metrics::AddShadow(const model::ShadowReport& report) {
  constexpr double kNewest = 1.0 / 16;
  At(MetricId::kShadowSteps).Value().Add(1);
  At(MetricId::kShadowSeconds).Value().Add(static_cast<double>(report.nanos) * kNano);
  for (const model::ShadowSample& sample : report.samples) {
    ShadowCells& cells =
        shadow_[static_cast<size_t>(sample.layer)][static_cast<size_t>(sample.segment)];
    cells.mass->Observe(sample.captured_mass);
    cells.error->Observe(sample.output_error);
    const double newest = cells.seen ? kNewest : 1.0;
    cells.layer_mass->Add(newest * (sample.captured_mass - cells.layer_mass->Get()));
    cells.layer_error->Add(newest * (sample.output_error - cells.layer_error->Get()));
    cells.seen = true;
  }
}

void Metrics::MakeGpuCells() {
  GpuCells& cells = gpu_.emplace();
  constexpr const char* kRuns[] = {"launched", "recorded", "replayed"};
  for (size_t i = 0; i < cells.decode_steps.size(); ++i) {
    cells.decode_steps[i] = At(MetricId::kGpuDecodeSteps).Series({kRuns[i]});
  }
  cells.on_device = At(MetricId::kGpuSampledTokens).Series({"device"});
  cells.on_host = At(MetricId::kGpuSampledTokens).Series({"host"});
  constexpr const char* kDirections[] = {"in", "out"};
  for (size_t i = 0; i < cells.copied_bytes.size(); ++i) {
    cells.copied_bytes[i] = At(MetricId::kGpuPageCopyBytes).Series({kDirections[i]});
    cells.copied_seconds[i] = At(MetricId::kGpuPageCopySeconds).Series({kDirections[i]});
  }
  cells.measured = At(MetricId::kGpuMeasuredSteps).Series({});
  cells.attention = At(MetricId::kGpuKernelSeconds).Series({"attention"});
  cells.linear = At(MetricId::kGpuKernelSeconds).Series({"linear"});
  cells.other = At(MetricId::kGpuKernelSeconds).Series({"other"});
  cells.flops = At(MetricId::kGpuAttentionFlops).Series({});
  cells.bytes = At(MetricId::kGpuAttentionBytes).Series({});
  watch_memory_ = true;
}

void Metrics::AddGpu(const engine::StepReport& report) {
  if (report.repeatable) gpu_->decode_steps[static_cast<size_t>(*report.repeatable)]->Add(1);
  gpu_->on_device->Add(report.chosen_on_device);
  gpu_->on_host->Add(report.generated_tokens - report.chosen_on_device);
  if (!report.kernel_times) return;
  const kernels::KernelTimes& times = *report.kernel_times;
  gpu_->measured->Add(1);
  gpu_->attention->Add(times.attention_seconds);
  gpu_->linear->Add(times.linear_seconds);
  gpu_->other->Add(times.other_seconds);
  gpu_->flops->Add(times.attention_flops);
  gpu_->bytes->Add(times.attention_bytes);
}

void Metrics::Finished(const engine::FinishReport& report) {
  const engine::RequestUsage& usage = report.usage;
  finished_[ReasonIndex(report)]->Add(1);
  At(MetricId::kEndToEndLatency).Distribution().Observe(report.e2e_seconds);
  At(MetricId::kRequestPromptTokens).Distribution().Observe(usage.prompt_tokens);
  if (usage.kv_tokens_total > 0) {
    At(MetricId::kAttendedRatio)
        .Distribution()
        .Observe(static_cast<double>(usage.kv_tokens_attended) /
                 static_cast<double>(usage.kv_tokens_total));
  }
  if (report.kind != engine::RequestKind::kGenerate) return;
  At(MetricId::kRequestComputedTokens)
      .Distribution()
      .Observe(usage.prompt_tokens - usage.cached_tokens);
  At(MetricId::kRequestGenerationTokens).Distribution().Observe(usage.generated_tokens);
  At(MetricId::kRequestMaxTokens).Distribution().Observe(report.max_tokens);
  At(MetricId::kRequestChoices).Distribution().Observe(report.num_choices);
  if (report.ttft_seconds < 0) return;  // ended before its first token
  At(MetricId::kPrefillTime).Distribution().Observe(usage.prefill_seconds);
  At(MetricId::kDecodeTime).Distribution().Observe(usage.decode_seconds);
  At(MetricId::kInferenceTime).Distribution().Observe(usage.prefill_seconds + usage.decode_seconds);
  const int32_t later = usage.generated_tokens - report.num_choices;
  if (later > 0) {
    At(MetricId::kTimePerOutputToken)
        .Distribution()
        .Observe(usage.decode_seconds * report.num_choices / later);
  }
}

void Metrics::ConnectionOpened(frontend::Transport t) { Of(t).connections->Add(1); }
void Metrics::ConnectionClosed(frontend::Transport t) { Of(t).connections->Add(-1); }
void Metrics::ConnectionRefused(frontend::Transport t) { Of(t).refused->Add(1); }
void Metrics::StreamOpened(frontend::Transport t) { Of(t).streams->Add(1); }
void Metrics::StreamClosed(frontend::Transport t) { Of(t).streams->Add(-1); }
void Metrics::StreamError(frontend::Transport t, int32_t code) { Of(t).stream_errors->Add(1); }
void Metrics::AuthenticationFailed(frontend::Transport t) { Of(t).authentication_failures->Add(1); }

void Metrics::CallDone(const frontend::CallReport& report) {
  TransportCells& cells = Of(report.transport);
  cells.duration->Observe(report.seconds);
  cells.received->Add(static_cast<double>(report.request_bytes));
  cells.sent->Add(static_cast<double>(report.response_bytes));
  if (report.client_gone) cells.clients_gone->Add(1);
  const std::string route(report.route);
  const std::string status = std::to_string(report.status);
  if (report.transport == frontend::Transport::kHttp) {
    At(MetricId::kHttpRequests).Series({route, std::string(report.method), status})->Add(1);
  } else {
    At(MetricId::kGrpcRequests).Series({route, status})->Add(1);
  }
}

void Metrics::TokensWritten(frontend::Transport t, int64_t tokens, int64_t nanos) {
  Of(t).written_tokens->Add(static_cast<double>(tokens));
  Of(t).write_seconds->Add(static_cast<double>(nanos) * kNano);
}

void Metrics::Tokenized(int64_t tokens, double seconds) {
  At(MetricId::kTokenizedTokens).Value().Add(static_cast<double>(tokens));
  At(MetricId::kTokenizeTime).Distribution().Observe(seconds);
}

void Metrics::AuditCommitted(int64_t records, double seconds) {
  At(MetricId::kAuditRecords).Value().Add(static_cast<double>(records));
  At(MetricId::kAuditCommit).Distribution().Observe(seconds);
}

void Metrics::AuditFailed() { At(MetricId::kAuditFailures).Value().Add(1); }

void Metrics::AuditPending(int64_t records) {
  At(MetricId::kAuditPending).Value().Set(static_cast<double>(records));
}

void Metrics::AuditLost(int64_t records) {
  At(MetricId::kAuditLost).Value().Add(static_cast<double>(records));
}

void Metrics::RefreshProcess() {
  const ProcessStats stats = ReadProcessStats();
  At(MetricId::kProcessResident).Value().Set(static_cast<double>(stats.resident_bytes));
  At(MetricId::kProcessCpu).Value().Set(stats.cpu_seconds);
  At(MetricId::kProcessFds).Value().Set(static_cast<double>(stats.open_fds));
}

void Metrics::RefreshGpu() {
  if (!watch_memory_) return;
  const auto memory = kernels::MemoryOf(kernels::BackendKind::kCuda);
  if (!memory.ok()) return;
  At(MetricId::kGpuMemory).Series({"free"})->Set(static_cast<double>(memory->free_bytes));
  At(MetricId::kGpuMemory).Series({"total"})->Set(static_cast<double>(memory->total_bytes));
}

void Metrics::Refresh() {
  RefreshProcess();
  RefreshGpu();
  const engine::Engine* engine = engine_;
  const engine::EngineStatus status = engine == nullptr ? engine::EngineStatus{} : engine->Status();
  At(MetricId::kReady).Value().Set(status.health == engine::Health::kReady ? 1 : 0);
  At(MetricId::kDraining).Value().Set(status.health == engine::Health::kDraining ? 1 : 0);
  At(MetricId::kRequestsRunning).Value().Set(status.running_requests);
  At(MetricId::kRequestsWaiting).Value().Set(status.waiting_requests);
  At(MetricId::kPromptTokensWaiting).Value().Set(static_cast<double>(status.waiting_prompt_tokens));
  At(MetricId::kKvUsage).Value().Set(status.kv_utilization);
  const AliasCells* aliases = aliases_;
  if (aliases == nullptr) return;  // not wanted, or no model yet
  aliases->running->Set(status.running_requests);
  aliases->waiting->Set(status.waiting_requests);
  aliases->kv_usage->Set(status.kv_utilization);
}

std::string Metrics::Scrape() {
  Refresh();
  std::vector<prometheus::MetricFamily> families;
  for (const auto& family : families_) {
    prometheus::MetricFamily collected = family->Collect();
    if (!collected.metric.empty()) families.push_back(std::move(collected));
  }
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, families);
  return out.str();
}

}  // namespace longstride::metrics

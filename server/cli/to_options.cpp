#include "server/cli/to_options.h"

#include <filesystem>
#include <string_view>

#include "config/profiles.h"
#include "server/cli/command.h"

namespace longstride::cli {
namespace {

constexpr int64_t kMaxPlanBytes = int64_t{1} << 20;
constexpr int64_t kMaxTemplateBytes = int64_t{256} << 10;

kernels::KernelChoice KernelsOf(const ServerConfig& config) {
  if (config.kernels == "fast") return kernels::KernelChoice::kFast;
  if (config.kernels == "portable") return kernels::KernelChoice::kPortable;
  return kernels::KernelChoice::kAuto;
}

}  // namespace

DeviceChoice ChooseDevice(const ServerConfig& config) {
  using kernels::BackendKind;
  if (config.device == "cuda") return {BackendKind::kCuda, absl::OkStatus()};
  if (config.device == "reference") return {BackendKind::kReference, absl::OkStatus()};
  if (config.device == "cpu") return {BackendKind::kCpu, absl::OkStatus()};
  const absl::Status cuda = kernels::MemoryOf(BackendKind::kCuda).status();
  return {cuda.ok() ? BackendKind::kCuda : BackendKind::kCpu, cuda};
}

kernels::KvDType ToKvDType(const ServerConfig& config) {
  using kernels::KvDType;
  for (const KvDType dtype :
       {KvDType::kF32, KvDType::kF16, KvDType::kBF16, KvDType::kQ8, KvDType::kFp8}) {
    if (config.kv.dtype == kernels::KvDTypeName(dtype)) return dtype;
  }
  return KvDType::kF16;  // not reached: the option's choices are these names
}

absl::StatusOr<SparsityPolicy> ToSparsityPolicy(const ServerConfig& config) {
  if (!config.sparsity.plan.empty()) {
    ASSIGN_OR_RETURN(const std::string text,
                     ReadTextFile(config.sparsity.plan, "The plan file", kMaxPlanBytes));
    const std::filesystem::path folder = std::filesystem::path(config.sparsity.plan).parent_path();
    return SparsityPolicy::Parse(text, folder.empty() ? "." : folder.string());
  }
  if (config.sparsity.profile.empty()) return SparsityPolicy{};
  ASSIGN_OR_RETURN(const std::string_view profile, FindProfile(config.sparsity.profile));
  return SparsityPolicy::Parse(std::string(profile));
}

absl::StatusOr<model::ModelOptions> ToModelOptions(const ServerConfig& config) {
  if (config.model.empty()) {
    return absl::InvalidArgumentError(
        "No model is given; name a .gguf file or a Hugging Face folder, as in `longstride serve "
        "MODEL`.");
  }
  model::ModelOptions options;
  options.path = config.model;
  options.served_name = config.served_name;
  ASSIGN_OR_RETURN(options.policy, ToSparsityPolicy(config));
  options.backend = ChooseDevice(config).backend;
  options.backend_options.num_threads = static_cast<int>(config.threads);
  options.backend_options.isa = config.cpu_isa == "auto" ? "" : config.cpu_isa;
  options.backend_options.kernels = KernelsOf(config);
  options.backend_options.cuda_graphs = config.cuda.graphs;
  options.kv_dtype = ToKvDType(config);
  options.kv_budget_bytes = config.kv.memory;
  options.kv_memory_fraction = config.kv.memory_fraction;
  options.kv_host_bytes = config.kv.host_memory;
  options.max_context = static_cast<int32_t>(config.max_context);
  options.max_step_tokens = static_cast<int32_t>(config.scheduler.max_step_tokens);
  options.max_sequences = static_cast<int32_t>(config.scheduler.max_running);
  if (!config.chat_template.empty()) {
    ASSIGN_OR_RETURN(options.chat_template,
                     ReadTextFile(config.chat_template, "The chat template", kMaxTemplateBytes));
  }
  return options;
}

engine::EngineOptions ToEngineOptions(const ServerConfig& config, int32_t max_context) {
  engine::EngineOptions options;
  options.max_running_sequences = static_cast<int32_t>(config.scheduler.max_running);
  options.max_step_tokens = static_cast<int32_t>(config.scheduler.max_step_tokens);
  options.max_step_logits = static_cast<int32_t>(config.scheduler.max_step_logits);
  options.max_concurrent_prefills = static_cast<int32_t>(config.scheduler.max_prefills);
  options.inter_token_bound = config.scheduler.inter_token_bound;
  options.max_queued_requests = static_cast<int32_t>(config.limits.queued_requests);
  options.max_queued_prompt_tokens = config.limits.queued_prompt_tokens;
  options.max_context = max_context;
  options.reserve_tokens = static_cast<int32_t>(config.scheduler.reserve_tokens);
  options.priority_ageing = config.scheduler.priority_ageing;
  options.max_preemptions = static_cast<int32_t>(config.scheduler.max_preemptions);
  options.max_bypasses = static_cast<int32_t>(config.scheduler.max_bypasses);
  options.max_choices = static_cast<int32_t>(config.limits.choices);
  options.prefix_cache = config.prefix_cache.enabled;
  options.window_snapshot_interval = static_cast<int32_t>(config.prefix_cache.snapshot_interval);
  options.prefix_cache_fraction = config.prefix_cache.fraction;
  options.share_generated_pages = config.prefix_cache.generated_pages;
  options.max_output_queue_bytes = config.limits.output_queue;
  options.slow_client_timeout = config.limits.slow_client_timeout;
  options.check_integrity = config.scheduler.check_integrity;
  return options;
}

frontend::ServiceOptions ToServiceOptions(const ServerConfig& config) {
  frontend::ServiceOptions options;
  options.limits.max_choices = config.limits.choices;
  options.log_prompts = config.log.prompts;
  options.worker_threads = static_cast<int32_t>(config.workers);
  return options;
}

frontend::AuditOptions ToAuditOptions(const ServerConfig& config) {
  return {.file = config.audit.file,
          .text = config.audit.text,
          .refuse_on_failure = config.audit.on_failure == "refuse",
          .queue_bytes = config.audit.queue};
}

LogLevel ToLogLevel(const ServerConfig& config) {
  if (config.log.level == "debug") return LogLevel::kDebug;
  if (config.log.level == "warning") return LogLevel::kWarning;
  if (config.log.level == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

LogFormat ToLogFormat(const ServerConfig& config) {
  return config.log.format == "json" ? LogFormat::kJson : LogFormat::kHuman;
}

metrics::ShadowFacts ToShadowFacts(const model::Model& model,
                                   const model::fidelity::LiveShadow& shadow) {
  metrics::ShadowFacts facts;
  facts.baseline_digest = shadow.baseline_digest();
  facts.reason = shadow.reason();
  const model::SparsityPlan& plan = model.plan();
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    std::vector<metrics::ShadowFacts::Heads>& layer = facts.layers.emplace_back();
    for (const model::HeadSegment& segment : plan.layers[l].segments) {
      layer.push_back(
          {.heads = StrCat(segment.query.first, "-", segment.query.first + segment.query.count - 1),
           .pattern = plan.patterns[static_cast<size_t>(segment.pattern)]->Describe(),
           .measured = shadow.measures(static_cast<int32_t>(l), layer.size())});
    }
  }
  return facts;
}

metrics::ModelFacts ToModelFacts(model::Model& model) {
  metrics::ModelFacts facts;
  facts.name = model.name();
  facts.family = model.spec().family;
  facts.weights_type = model.spec().weights_type;
  facts.model_digest = model.model_digest();
  facts.plan = model.plan().name;
  facts.plan_digest = model.plan().digest;
  facts.device = model.backend().Describe();
  facts.on_gpu = model.backend().device() == kernels::Device::kCuda;
  facts.kv_dtype = kernels::KvDTypeName(model.options().kv_dtype);
  facts.max_context = model.max_context();
  facts.weight_bytes = model.weight_bytes();
  facts.workspace_bytes = model.workspace_bytes();
  facts.kv_budget_bytes = model.cache().options().budget_bytes;
  facts.groups = model.cache().groups();
  for (const auto& pattern : model.plan().patterns) facts.patterns.push_back(pattern->Describe());
  return facts;
}

}  // namespace longstride::cli

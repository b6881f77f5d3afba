#include "server/cli/inspect_report.h"

#include <algorithm>

#include "model/available_memory.h"
#include "model/decoder.h"
#include "model/families/family.h"
#include "model/kv_budget.h"
#include "model/sparsity/sparsity_plan.h"
#include "model/weights/weights_file.h"
#include "server/cli/command.h"
#include "server/cli/to_options.h"

namespace longstride::cli {
namespace {

constexpr int64_t kDensityLengths[] = {1024, 4096, 16384, 32768, 131072, 524288, 1048576};

std::string DescribeRetention(const model::Retention& retention) {
  std::string out;
  if (retention.window > 0) out = StrCat("window ", retention.window);
  if (retention.sink_tokens > 0) StrAppend(&out, " + ", retention.sink_tokens, " first");
  if (retention.chunk > 0) StrAppend(&out, out.empty() ? "" : ", ", "chunk ", retention.chunk);
  return out.empty() ? "all" : out;
}

// The pattern of a query head in a part of the layer.
std::string PatternOf(const model::SparsityPlan& plan, size_t layer, int32_t part, int32_t head) {
  for (const model::HeadSegment& segment : plan.layers[layer].segments) {
    if (segment.part == part && head < segment.query.first + segment.query.count) {
      return plan.patterns[segment.pattern]->Describe();
    }
  }
  return "";
}

InspectReport::Layer DescribeLayer(const model::LayerSpec& spec, size_t index,
                                   const model::SparsityPlan& plan,
                                   const model::SparsityPlan& native) {
  InspectReport::Layer out;
  out.num_heads = spec.attention.num_heads;
  out.num_kv_heads = spec.attention.num_kv_heads;
  out.head_dim = spec.attention.head_dim;
  out.ffn_dim = spec.mlp.ffn_dim;
  out.num_experts = spec.mlp.num_experts;
  out.rope = spec.attention.rope >= 0;
  for (const model::HeadSegment& segment : plan.layers[index].segments) {
    out.segments.push_back({.first_head = segment.query.first,
                            .num_heads = segment.query.count,
                            .part = segment.part,
                            .pattern = plan.patterns[segment.pattern]->Describe(),
                            .native = PatternOf(native, index, segment.part, segment.query.first),
                            .group = plan.groups[segment.group].name});
  }
  return out;
}

std::vector<InspectReport::Density> Densities(const model::SparsityPlan& plan,
                                              int32_t max_context) {
  std::vector<int64_t> lengths;
  for (const int64_t length : kDensityLengths) {
    if (length < max_context) lengths.push_back(length);
  }
  lengths.push_back(max_context);
  std::vector<InspectReport::Density> densities;
  for (const int64_t length : lengths) {
    const int64_t last = length - 1;
    constexpr auto kGenerated = model::NumericsClass::kGenerated;
    InspectReport::Density density{.length = length,
                                   .plan = plan.Density(last),
                                   .patterns = {},
                                   .generated_plan = plan.Density(last, kGenerated),
                                   .generated_patterns = {}};
    for (int32_t p = 0; p < static_cast<int32_t>(plan.patterns.size()); ++p) {
      const auto keys = static_cast<double>(length);
      density.patterns.push_back(plan.KeysSeen(p, last) / keys);
      density.generated_patterns.push_back(plan.KeysSeen(p, last, kGenerated) / keys);
    }
    densities.push_back(std::move(density));
  }
  return densities;
}

void DescribeGroups(const model::SparsityPlan& plan, int64_t step_tokens, InspectReport* report) {
  const int64_t cached = std::max<int64_t>(0, report->question.context - step_tokens);
  const int64_t step = report->question.context - cached;
  for (const model::CacheGroup& group : plan.groups) {
    report->groups.push_back(
        {.name = group.name,
         .retention = DescribeRetention(group.retention),
         .num_layers = static_cast<int32_t>(group.layers.size()),
         .num_kv_heads = group.num_kv_heads,
         .head_dim = group.head_dim,
         .page_bytes = group.page_bytes,
         .pages_per_sequence = model::PagesNeeded(group, cached, step),
         .pages_written =
             (report->question.context + kernels::kPageTokens - 1) / kernels::kPageTokens});
  }
  report->kv_bytes_per_sequence = plan.CacheBytes(cached, step);
}

// The checkpoint's bytes that stay in memory: quantised weights are repacked to the same size, and
// the file's own pages are given back. What kernels take beside activations is not in it: a server
// measures that when it starts.
absl::Status JudgeMemory(const model::ModelOptions& options, const model::ModelSpec& spec,
                         const model::SparsityPlan& plan, InspectReport* report) {
  report->kv_bytes = report->kv_bytes_per_sequence * report->question.concurrency;
  report->step_bytes =
      model::WorkspaceBytes(spec, model::StepTokens(plan, options.max_step_tokens));
  if (options.backend == kernels::BackendKind::kCuda) {
    const auto memory = kernels::MemoryOf(options.backend);
    if (!memory.ok()) return WithExit(memory.status(), kExitUsage);
    report->step_bytes += model::BesideDeviceKv(plan.groups);
    report->available_bytes = memory->free_bytes;
    const int64_t left = std::max<int64_t>(
        0, memory->free_bytes - report->weight_bytes - report->step_bytes);
    report->kv_budget_bytes = model::KvShare(options, left, model::kDeviceKvFraction);
  } else {
    ASSIGN_OR_RETURN(report->available_bytes, model::AvailableMemory());
    ASSIGN_OR_RETURN(report->kv_budget_bytes, model::HostKvBudget(options, report->weight_bytes));
  }
  if (report->kv_bytes_per_sequence > 0) {
    report->max_concurrency = report->kv_budget_bytes / report->kv_bytes_per_sequence;
  }
  report->fits = report->weight_bytes + report->step_bytes + report->kv_budget_bytes <=
                     report->available_bytes &&
                 report->kv_bytes <= report->kv_budget_bytes;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<InspectReport> InspectModel(const ServerConfig& config,
                                           const InspectQuestion& question,
                                           model::SparsityPlan* resolved) {
  ASSIGN_OR_RETURN(const model::ModelOptions options, ToModelOptions(config));
  const auto file = model::WeightsFile::Open(options.path);
  if (!file.ok()) return WithExit(file.status(), kExitModel);
  const auto spec = model::LoadModelSpec(**file);
  if (!spec.ok()) return WithExit(spec.status(), kExitModel);
  ASSIGN_OR_RETURN(*resolved, model::SparsityPlan::Resolve(options.policy, *spec, options.kv_dtype,
                                                           options.max_context));
  const model::SparsityPlan& plan = *resolved;
  InspectReport report;
  report.name = !options.served_name.empty() ? options.served_name
                : !spec->name.empty()        ? spec->name
                                             : (*file)->name();
  report.family = spec->family;
  report.weights_type = spec->weights_type;
  report.model_digest = (*file)->digest();
  report.plan = plan.name;
  report.plan_digest = plan.digest;
  report.fidelity_report = plan.fidelity_report;
  report.kv_dtype = kernels::KvDTypeName(options.kv_dtype);
  report.num_parameters = spec->num_parameters;
  report.vocab_size = spec->vocab_size;
  report.dim = spec->dim;
  report.max_context = plan.max_context;
  report.causal = plan.causal;
  report.dual_chunk = spec->dual_chunk;
  report.notes = spec->notes;
  if (spec->classifier) report.labels = spec->classifier->labels;
  ASSIGN_OR_RETURN(
      const model::SparsityPlan native,
      model::SparsityPlan::Resolve(SparsityPolicy{}, *spec, options.kv_dtype, options.max_context));
  for (size_t i = 0; i < spec->layers.size(); ++i) {
    report.layers.push_back(DescribeLayer(spec->layers[i], i, plan, native));
  }
  for (const auto& pattern : plan.patterns) report.patterns.push_back(pattern->Describe());
  report.densities = Densities(plan, plan.max_context);
  report.question = question;
  if (report.question.context == 0) report.question.context = plan.max_context;
  if (report.question.context > plan.max_context) {
    return absl::InvalidArgumentError(StrCat("--context: got ", report.question.context,
                                             "; this model serves at most ", plan.max_context,
                                             " tokens."));
  }
  report.weight_bytes = (*file)->file_bytes();
  report.flops = FlopsOf(*spec, plan, report.question.context);
  DescribeGroups(plan,
                 model::StepTokens(plan, static_cast<int32_t>(config.scheduler.max_step_tokens)),
                 &report);
  RETURN_IF_ERROR(JudgeMemory(options, *spec, plan, &report));
  return report;
}

}  // namespace longstride::cli

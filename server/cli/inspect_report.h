// What `longstride inspect` finds out about a checkpoint without loading its weights.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "config/server_config.h"
#include "model/sparsity/sparsity_plan.h"
#include "server/cli/plan_cost.h"

namespace longstride::cli {

struct InspectQuestion {
  int64_t context = 0;      // tokens of one sequence; 0: the longest that is served
  int64_t concurrency = 1;  // such sequences at the same time
};

struct InspectReport {
  struct Segment {
    int32_t first_head = 0;
    int32_t num_heads = 0;
    int32_t part = 0;  // of an attention that sums several
    std::string pattern;
    std::string native;  // the checkpoint's own there
    std::string group;
  };
  struct Layer {
    int32_t num_heads = 0;
    int32_t num_kv_heads = 0;
    int32_t head_dim = 0;
    int32_t ffn_dim = 0;
    int32_t num_experts = 0;  // 0: not a mixture
    bool rope = true;
    std::vector<Segment> segments;
  };
  struct Density {
    int64_t length = 0;
    double plan = 0;               // of a prompt's query, mean over layers and heads
    std::vector<double> patterns;  // in the order of `patterns`
    // The same of a generated token.
    double generated_plan = 0;
    std::vector<double> generated_patterns;
  };
  struct Group {
    std::string name;
    std::string retention;  // "all", "window 512", …
    int32_t num_layers = 0;
    int32_t num_kv_heads = 0;
    int32_t head_dim = 0;
    int64_t page_bytes = 0;
    int64_t pages_per_sequence = 0;  // at the asked context
    int64_t pages_written = 0;       // in all; those not held any more were freed
  };

  std::string name;
  std::string family;
  std::optional<model::DualChunk> dual_chunk;  // of the checkpoint
  std::vector<std::string> notes;              // ModelSpec::notes
  std::string weights_type;
  std::string model_digest;
  std::string plan;
  std::string plan_digest;
  std::string fidelity_report;  // that the plan file names, "" for none
  std::string kv_dtype;
  int64_t num_parameters = 0;
  int32_t vocab_size = 0;
  int32_t dim = 0;
  int32_t max_context = 0;
  bool causal = true;               // false: an encoder
  std::vector<std::string> labels;  // of a classifier
  std::vector<Layer> layers;
  std::vector<std::string> patterns;
  std::vector<Density> densities;
  std::vector<Group> groups;

  InspectQuestion question;  // with the context filled in
  int64_t weight_bytes = 0;
  int64_t step_bytes = 0;       // activations of the largest step; on a GPU also a reserve
  int64_t kv_bytes_per_sequence = 0;
  int64_t kv_bytes = 0;         // of all sequences
  int64_t kv_budget_bytes = 0;  // what the server would give the cache
  int64_t available_bytes = 0;  // that this process may still use, of the device's memory on a GPU
  int64_t max_concurrency = 0;  // such sequences that fit the budget
  bool fits = false;
  PlanFlops flops;  // at the asked context

  std::string device;  // that would run the model and its kernels, or why none can

  // Where the machine was measured.
  std::optional<MachineRates> rates;
  std::optional<PlanPrediction> prediction;
};

// Exit statuses as for loading a model. `resolved` gets the plan.
absl::StatusOr<InspectReport> InspectModel(const ServerConfig& config,
                                           const InspectQuestion& question,
                                           model::SparsityPlan* resolved);

// "0-4, 6-10", of ascending indices.
std::string IndexRangesText(const std::vector<size_t>& indices);
std::string InspectText(const InspectReport& report);
std::string InspectJson(const InspectReport& report);

}  // namespace longstride::cli

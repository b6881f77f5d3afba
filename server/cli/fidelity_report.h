// What `longstride fidelity` finds out. docs/fidelity.md says how each figure is got and what it
// means; docs/fidelity_report.schema.json is the JSON's schema.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "model/fidelity/divergence_summary.h"
#include "model/fidelity/plan_search.h"
#include "model/fidelity/speed.h"
#include "model/fidelity/task_scores.h"

namespace longstride::cli {

struct FidelityReport {
  struct Plan {
    std::string name;
    std::string digest;
    std::string text;                         // the plan file's contents
    int64_t measured_kv_bytes = 0;            // most held while a window was computed
    int64_t kv_bytes_at_context = 0;          // of one sequence of max_context tokens
    model::fidelity::Spread prefill, decode;  // tokens/s
    model::fidelity::Spread prefill_attention, decode_attention;  // share of the time
  };
  struct DataFile {
    std::string name;  // without its folders
    std::string sha256;
    int64_t bytes = 0;
    int64_t tokens = 0;  // that windows were made of
  };
  // A divergence from the baseline, or why it was not measured.
  struct Yardstick {
    std::string name;
    std::string description;
    std::optional<model::fidelity::DivergenceSummary> divergence;
    std::string reason;  // where it is absent
  };
  struct Layer {
    bool changed = false;  // the plan's patterns differ from the baseline's
    // Over the keys that dense causal attention reads.
    double baseline_density = 0;  // keys the baseline allows, as counted
    double asked_density = 0;     // keys the plan's patterns allow, as they say
    double achieved_density = 0;  // keys the plan allowed, as counted
    // Scores computed: more than allowed, as kernels take whole blocks.
    double baseline_work = 0;
    double work = 0;
    std::vector<double> mass;        // [head] mean captured share; empty where not measured
    std::vector<double> least_mass;  // [head] of any sampled row
  };
  struct Search {
    std::string target;
    model::fidelity::SearchResult result;
    int64_t search_windows = 0, check_windows = 0;
    std::string written;  // name of the plan file, "" for none
  };

  std::string version, commit, compiler, device, date, command;
  uint64_t seed = 1;
  std::string model, family, weights_type, model_digest, kv_dtype;
  int32_t max_context = 0;
  Plan baseline, plan;
  bool generated = false;  // the plan took the text for generated tokens, not for a prompt
  std::vector<DataFile> data;
  int32_t window_tokens = 0;
  int64_t windows = 0;
  int64_t tokens = 0;

  Yardstick noise;  // the baseline against itself, cut into other steps
  model::fidelity::DivergenceSummary divergence;
  std::vector<model::fidelity::PositionBucket> buckets;
  std::vector<Yardstick> yardsticks;
  std::vector<Layer> layers;
  std::string mass_reason;                        // why captured mass is absent
  int64_t mass_rows = 0;                          // sampled queries per head
  std::optional<model::fidelity::Estimate> mass;  // mean over changed layers' heads
  int64_t speed_prompt_tokens = 0, speed_decode_tokens = 0;
  std::vector<model::fidelity::TaskResult> tasks;
  std::string tasks_reason;
  std::optional<Search> search;
  std::vector<std::string> notes;  // what a reader must know before quoting a figure
};

std::string FidelityText(const FidelityReport& report);
std::string FidelityJson(const FidelityReport& report);
std::string FidelityHtml(const FidelityReport& report);

// One sentence: how near the plan is to the baseline, and what it saves.
std::string FidelityVerdict(const FidelityReport& report);
// "0.0123 (0.0101 to 0.0150)", with `digits` significant digits and times `scale`.
std::string WithInterval(const model::fidelity::Estimate& estimate, int digits, double scale = 1,
                         const char* unit = "");

}  // namespace longstride::cli

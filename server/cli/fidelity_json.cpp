// A FidelityReport for programs; docs/fidelity_report.schema.json describes it.
#include <nlohmann/json.hpp>

#include "server/cli/fidelity_report.h"

namespace longstride::cli {
namespace {

using model::fidelity::DivergenceSummary;
using model::fidelity::Estimate;
using model::fidelity::Spread;
using nlohmann::ordered_json;

ordered_json ToJson(const Estimate& e) {
  ordered_json interval = nullptr;
  if (e.interval) interval = {e.interval->low, e.interval->high};
  return {{"value", e.value}, {"interval", interval}, {"units", e.units}};
}

ordered_json ToJson(const DivergenceSummary& d) {
  return {{"positions", d.positions},
          {"kl", ToJson(d.kl)},
          {"kl_median", d.kl_median},
          {"kl_p99", d.kl_p99},
          {"kl_p99_9", d.kl_p999},
          {"kl_max", d.kl_max},
          {"same_top", ToJson(d.same_top)},
          {"baseline_perplexity", ToJson(d.base_perplexity)},
          {"plan_perplexity", ToJson(d.other_perplexity)},
          {"perplexity_ratio", ToJson(d.perplexity_ratio)}};
}

ordered_json ToJson(const FidelityReport::Yardstick& y) {
  ordered_json out = {{"name", y.name}, {"description", y.description}};
  out["divergence"] = y.divergence ? ToJson(*y.divergence) : ordered_json(nullptr);
  out["reason"] = y.divergence ? ordered_json(nullptr) : ordered_json(y.reason);
  return out;
}

ordered_json ToJson(const Spread& s) {
  return {{"median", s.median}, {"least", s.least}, {"most", s.most}};
}

ordered_json ToJson(const FidelityReport::Plan& plan) {
  return {{"name", plan.name},
          {"digest", plan.digest},
          {"text", plan.text},
          {"kv_bytes_measured", plan.measured_kv_bytes},
          {"kv_bytes_at_max_context", plan.kv_bytes_at_context},
          {"prefill_tokens_per_second", ToJson(plan.prefill)},
          {"decode_tokens_per_second", ToJson(plan.decode)},
          {"prefill_attention_share", ToJson(plan.prefill_attention)},
          {"decode_attention_share", ToJson(plan.decode_attention)}};
}

ordered_json IdentityJson(const FidelityReport& r) {
  ordered_json data = ordered_json::array();
  for (const FidelityReport::DataFile& file : r.data) {
    data.push_back({{"name", file.name},
                    {"sha256", file.sha256},
                    {"bytes", file.bytes},
                    {"tokens", file.tokens}});
  }
  return {{"version", r.version},
          {"commit", r.commit},
          {"compiler", r.compiler},
          {"device", r.device},
          {"date", r.date},
          {"command", r.command},
          {"seed", r.seed},
          {"model", r.model},
          {"family", r.family},
          {"weights_type", r.weights_type},
          {"model_digest", r.model_digest},
          {"kv_dtype", r.kv_dtype},
          {"max_context", r.max_context},
          {"data", data},
          {"window_tokens", r.window_tokens},
          {"windows", r.windows},
          {"text_as", r.generated ? "generated" : "prompt"},
          {"tokens", r.tokens}};
}

ordered_json LayersJson(const FidelityReport& r) {
  ordered_json layers = ordered_json::array();
  for (size_t l = 0; l < r.layers.size(); ++l) {
    const FidelityReport::Layer& layer = r.layers[l];
    const bool measured = !layer.mass.empty();
    layers.push_back(
        {{"layer", l},
         {"changed", layer.changed},
         {"baseline_density", layer.baseline_density},
         {"asked_density", layer.asked_density},
         {"achieved_density", layer.achieved_density},
         {"baseline_work", layer.baseline_work},
         {"work", layer.work},
         {"captured_mass", measured ? ordered_json(layer.mass) : nullptr},
         {"least_captured_mass", measured ? ordered_json(layer.least_mass) : nullptr}});
  }
  return layers;
}

ordered_json TasksJson(const FidelityReport& r) {
  ordered_json results = ordered_json::array();
  for (const model::fidelity::TaskResult& task : r.tasks) {
    results.push_back({{"task", task.name},
                       {"description", task.description},
                       {"tokens", task.tokens > 0 ? ordered_json(task.tokens) : nullptr},
                       {"questions", task.questions},
                       {"baseline_accuracy", ToJson(task.base_accuracy)},
                       {"plan_accuracy", ToJson(task.plan_accuracy)},
                       {"accuracy_change", ToJson(task.accuracy_change)},
                       {"margin_change", ToJson(task.margin_change)},
                       {"only_baseline_right", task.only_base_right},
                       {"only_plan_right", task.only_plan_right},
                       {"mcnemar_p", task.mcnemar_p}});
  }
  ordered_json worst = nullptr;
  if (const int index = model::fidelity::WorstTask(r.tasks); index >= 0) {
    const auto& task = r.tasks[static_cast<size_t>(index)];
    worst = {{"task", task.name}, {"tokens", task.tokens}};
  }
  return {{"results", results},
          {"worst", worst},
          {"reason", r.tasks.empty() ? ordered_json(r.tasks_reason) : nullptr}};
}

ordered_json SearchJson(const FidelityReport::Search& search) {
  ordered_json rungs = ordered_json::array();
  for (const auto& rung : search.result.rungs) {
    rungs.push_back({{"plan", rung.rung.plan.name},
                     {"description", rung.rung.description},
                     {"digest", rung.rung.plan.digest},
                     {"density", rung.rung.density},
                     {"keys_share", rung.keys_share},
                     {"searched", ToJson(rung.searched)},
                     {"holds_searched", rung.holds_searched},
                     {"checked", rung.checked ? ToJson(*rung.checked) : ordered_json(nullptr)},
                     {"holds_checked", rung.holds_checked}});
  }
  return {
      {"target", search.target},
      {"search_windows", search.search_windows},
      {"check_windows", search.check_windows},
      {"rungs", rungs},
      {"chosen", search.result.chosen},
      {"written", search.written.empty() ? ordered_json(nullptr) : ordered_json(search.written)}};
}

}  // namespace

std::string FidelityJson(const FidelityReport& r) {
  ordered_json buckets = ordered_json::array();
  for (const auto& bucket : r.buckets) {
    buckets.push_back(
        {{"begin", bucket.begin}, {"end", bucket.end}, {"divergence", ToJson(bucket.summary)}});
  }
  ordered_json yardsticks = ordered_json::array();
  for (const auto& yardstick : r.yardsticks) yardsticks.push_back(ToJson(yardstick));
  const ordered_json mass = {
      {"mean", r.mass ? ToJson(*r.mass) : ordered_json(nullptr)},
      {"rows_per_head", r.mass_rows},
      {"reason", r.mass_reason.empty() ? ordered_json(nullptr) : ordered_json(r.mass_reason)}};
  const ordered_json out = {
      {"format", "longstride fidelity report 1"},
      {"verdict", FidelityVerdict(r)},
      {"notes", r.notes},
      {"identity", IdentityJson(r)},
      {"baseline", ToJson(r.baseline)},
      {"plan", ToJson(r.plan)},
      {"divergence", ToJson(r.divergence)},
      {"noise_floor", ToJson(r.noise)},
      {"yardsticks", yardsticks},
      {"by_position", buckets},
      {"layers", LayersJson(r)},
      {"captured_mass", mass},
      {"speed",
       {{"prompt_tokens", r.speed_prompt_tokens}, {"decode_tokens", r.speed_decode_tokens}}},
      {"tasks", TasksJson(r)},
      {"search", r.search ? SearchJson(*r.search) : ordered_json(nullptr)}};
  return out.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace longstride::cli

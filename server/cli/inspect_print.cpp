// An InspectReport for people and for programs.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "config/option_value.h"
#include "server/cli/inspect_report.h"

namespace longstride::cli {
namespace {

using nlohmann::ordered_json;

std::string Percent(double share) {
  return share >= 0.0995 ? absl::StrFormat("%.0f%%", share * 100)
                         : absl::StrFormat("%.2g%%", share * 100);
}

std::string Parameters(int64_t count) {
  if (count >= 1000000000) return absl::StrFormat("%.1f B", static_cast<double>(count) * 1e-9);
  return absl::StrFormat("%.0f M", static_cast<double>(count) * 1e-6);
}

std::string LayerLine(const InspectReport::Layer& layer) {
  std::string out =
      absl::StrFormat("%d heads, %d KV heads of %d%s, MLP %d", layer.num_heads, layer.num_kv_heads,
                      layer.head_dim, layer.rope ? "" : ", no RoPE", layer.ffn_dim);
  if (layer.num_experts > 0) StrAppend(&out, " x ", layer.num_experts, " experts");
  return out;
}

std::string SegmentLine(const InspectReport::Layer& layer) {
  std::string out;
  int32_t part = 0;
  for (const InspectReport::Segment& segment : layer.segments) {
    if (!out.empty()) out += segment.part == part ? "; " : " + ";
    part = segment.part;
    if (segment.num_heads < layer.num_heads) {
      StrAppend(&out, "heads ", segment.first_head, "-", segment.first_head + segment.num_heads - 1,
                " ");
    }
    StrAppend(&out, segment.pattern, " in ", segment.group);
  }
  return out;
}

void AppendLayers(const InspectReport& report, std::string* out) {
  *out += "\nLayers\n";
  std::vector<std::pair<std::string, std::vector<size_t>>> kinds;
  for (size_t i = 0; i < report.layers.size(); ++i) {
    const std::string line =
        StrCat(LayerLine(report.layers[i]), "; ", SegmentLine(report.layers[i]));
    auto kind = kinds.begin();
    while (kind != kinds.end() && kind->first != line) ++kind;
    if (kind == kinds.end()) kind = kinds.insert(kinds.end(), {line, {}});
    kind->second.push_back(i);
  }
  for (const auto& [line, layers] : kinds)
    StrAppend(out, "  ", IndexRangesText(layers), ": ", line, "\n");
  if (report.dual_chunk) {
    StrAppend(out, "  all: dual chunk attention, chunks of ", report.dual_chunk->chunk_size,
              " of which ", report.dual_chunk->local_size, " overlap\n");
  }
}

using Densities = std::vector<double>;

void AppendDensityTable(const InspectReport& report, const char* title,
                        double InspectReport::Density::*plan,
                        Densities InspectReport::Density::*patterns, std::string* out) {
  StrAppend(out, "\n", title, "\n");
  absl::StrAppendFormat(out, "  %10s %8s", "length", "model");
  for (const std::string& pattern : report.patterns) absl::StrAppendFormat(out, "  %s", pattern);
  *out += "\n";
  for (const InspectReport::Density& density : report.densities) {
    absl::StrAppendFormat(out, "  %10d %8s", density.length, Percent(density.*plan));
    for (size_t i = 0; i < (density.*patterns).size(); ++i) {
      absl::StrAppendFormat(out, "  %*s", static_cast<int>(report.patterns[i].size()),
                            Percent((density.*patterns)[i]));
    }
    *out += "\n";
  }
}

// A second table where generated tokens see other keys than a prompt's.
void AppendDensities(const InspectReport& report, std::string* out) {
  using Density = InspectReport::Density;
  const bool one = std::all_of(
      report.densities.begin(), report.densities.end(),
      [](const Density& d) { return d.patterns == d.generated_patterns; });
  AppendDensityTable(report,
                     !report.causal ? "Keys that a query sees on average, of all of the text"
                     : one ? "Keys that the last query sees, of all before it"
                         : "Keys that a prompt's last query sees, of all before it",
                     &Density::plan, &Density::patterns, out);
  if (one) return;
  AppendDensityTable(report, "Keys that a generated token sees there", &Density::generated_plan,
                     &Density::generated_patterns, out);
}

void AppendMemory(const InspectReport& report, std::string* out) {
  *out += "\nCache groups\n";
  for (const InspectReport::Group& group : report.groups) {
    absl::StrAppendFormat(out,
                          "  %s: keeps %s; %d layers, %d KV heads of %d; a page of 64 tokens is "
                          "%s; %d pages, %d freed\n",
                          group.name, group.retention, group.num_layers, group.num_kv_heads,
                          group.head_dim, FormatBytesShort(group.page_bytes),
                          group.pages_per_sequence,
                          std::max<int64_t>(0, group.pages_written - group.pages_per_sequence));
  }
  absl::StrAppendFormat(out, "\nMemory at %d tokens, %d at a time\n", report.question.context,
                        report.question.concurrency);
  StrAppend(out, "  weights      ", FormatBytesShort(report.weight_bytes), "\n");
  StrAppend(out, "  a step       ", FormatBytesShort(report.step_bytes), "\n");
  StrAppend(out, "  KV cache     ", FormatBytesShort(report.kv_bytes), " (",
            FormatBytesShort(report.kv_bytes_per_sequence), " a sequence, ", report.kv_dtype,
            ")\n");
  StrAppend(out, "  KV budget    ", FormatBytesShort(report.kv_budget_bytes), ", enough for ",
            report.max_concurrency, " such sequences\n");
  StrAppend(out, "  available    ", FormatBytesShort(report.available_bytes), "\n");
  StrAppend(out, "  ", report.fits ? "It fits." : "It does not fit.", "\n");
}

void AppendCosts(const InspectReport& report, std::string* out) {
  const PlanFlops& f = report.flops;
  absl::StrAppendFormat(out, "\nWork at %d tokens, floating-point operations\n",
                        report.question.context);
  absl::StrAppendFormat(out, "  prompt       %.3g linear, %.3g attention (dense: %.3g)\n",
                        f.prefill_linear, f.prefill_attention, f.prefill_dense_attention);
  if (!report.causal) return;
  absl::StrAppendFormat(out, "  next token   %.3g linear, %.3g attention (dense: %.3g)\n",
                        f.decode_linear, f.decode_attention, f.decode_dense_attention);
  if (!report.prediction) return;
  absl::StrAppendFormat(out,
                        "\nPredicted for one request on %s, measured over %d tokens\n"
                        "  first token  %.3g s\n  decode       %.3g tokens/s\n",
                        report.device, report.rates->tokens, report.prediction->time_to_first_token,
                        report.prediction->decode_tokens_per_second);
}

ordered_json ToJson(const StepRates& rates) {
  return {{"row_ns", rates.row},
          {"attention_row_ns", rates.attention_row},
          {"attention_volume_ns", rates.attention_volume}};
}

ordered_json PredictionJson(const InspectReport& report) {
  if (!report.prediction) return nullptr;
  return {{"device", report.device},
          {"calibration_tokens", report.rates->tokens},
          {"prefill", ToJson(report.rates->prefill)},
          {"decode", ToJson(report.rates->decode)},
          {"time_to_first_token_s", report.prediction->time_to_first_token},
          {"decode_tokens_per_second", report.prediction->decode_tokens_per_second}};
}

ordered_json FlopsJson(const PlanFlops& f) {
  return {{"prefill_linear", f.prefill_linear},
          {"prefill_attention", f.prefill_attention},
          {"prefill_dense_attention", f.prefill_dense_attention},
          {"decode_linear", f.decode_linear},
          {"decode_attention", f.decode_attention},
          {"decode_dense_attention", f.decode_dense_attention}};
}

ordered_json LayersJson(const InspectReport& report) {
  ordered_json layers = ordered_json::array();
  for (const InspectReport::Layer& layer : report.layers) {
    ordered_json segments = ordered_json::array();
    for (const InspectReport::Segment& segment : layer.segments) {
      segments.push_back({{"first_head", segment.first_head},
                          {"num_heads", segment.num_heads},
                          {"part", segment.part},
                          {"pattern", segment.pattern},
                          {"native", segment.native},
                          {"group", segment.group}});
    }
    layers.push_back({{"num_heads", layer.num_heads},
                      {"num_kv_heads", layer.num_kv_heads},
                      {"head_dim", layer.head_dim},
                      {"ffn_dim", layer.ffn_dim},
                      {"num_experts", layer.num_experts},
                      {"rope", layer.rope},
                      {"segments", segments}});
  }
  return layers;
}

ordered_json GroupsJson(const InspectReport& report) {
  ordered_json groups = ordered_json::array();
  for (const InspectReport::Group& group : report.groups) {
    groups.push_back({{"name", group.name},
                      {"retention", group.retention},
                      {"num_layers", group.num_layers},
                      {"num_kv_heads", group.num_kv_heads},
                      {"head_dim", group.head_dim},
                      {"page_bytes", group.page_bytes},
                      {"pages_per_sequence", group.pages_per_sequence},
                      {"pages_written", group.pages_written}});
  }
  return groups;
}

}  // namespace

std::string IndexRangesText(const std::vector<size_t>& indices) {
  std::string out;
  for (size_t i = 0; i < indices.size();) {
    size_t end = i;
    while (end + 1 < indices.size() && indices[end + 1] == indices[end] + 1) ++end;
    StrAppend(&out, out.empty() ? "" : ", ", indices[i]);
    if (end > i) StrAppend(&out, "-", indices[end]);
    i = end + 1;
  }
  return out;
}

std::string InspectText(const InspectReport& report) {
  std::string out = StrCat(report.name, ": ", report.family, ", ", report.weights_type, ", ",
                           Parameters(report.num_parameters), " parameters\n");
  StrAppend(&out, "  context ", report.max_context, ", vocabulary ", report.vocab_size, ", width ",
            report.dim, ", ", report.layers.size(), " layers\n");
  if (!report.causal) {
    StrAppend(&out, "  an encoder");
    for (size_t i = 0; i < report.labels.size(); ++i) {
      StrAppend(&out, i == 0 ? "; its classifier's labels: " : ", ", report.labels[i]);
    }
    out += "\n";
  }
  StrAppend(&out, "  weights digest ", report.model_digest, "\n");
  StrAppend(&out, "  plan ", report.plan, ", digest ", report.plan_digest, "\n");
  StrAppend(&out, "  device: ", report.device, "\n");
  if (!report.fidelity_report.empty()) {
    StrAppend(&out, "  fidelity report ", report.fidelity_report, "\n");
  }
  for (const std::string& note : report.notes) StrAppend(&out, "  note: ", note, "\n");
  AppendLayers(report, &out);
  AppendDensities(report, &out);
  AppendMemory(report, &out);
  AppendCosts(report, &out);
  return out;
}

std::string InspectJson(const InspectReport& report) {
  ordered_json densities = ordered_json::array();
  for (const InspectReport::Density& density : report.densities) {
    ordered_json patterns, generated;
    for (size_t i = 0; i < report.patterns.size(); ++i) {
      patterns[report.patterns[i]] = density.patterns[i];
      generated[report.patterns[i]] = density.generated_patterns[i];
    }
    densities.push_back({{"length", density.length},
                         {"model", density.plan},
                         {"patterns", patterns},
                         {"generated", {{"model", density.generated_plan},
                                        {"patterns", generated}}}});
  }
  const ordered_json memory = {{"context", report.question.context},
                               {"concurrency", report.question.concurrency},
                               {"weight_bytes", report.weight_bytes},
                               {"step_bytes", report.step_bytes},
                               {"kv_bytes_per_sequence", report.kv_bytes_per_sequence},
                               {"kv_bytes", report.kv_bytes},
                               {"kv_budget_bytes", report.kv_budget_bytes},
                               {"available_bytes", report.available_bytes},
                               {"max_concurrency", report.max_concurrency},
                               {"fits", report.fits}};
  const ordered_json out = {
      {"name", report.name},
      {"family", report.family},
      {"weights_type", report.weights_type},
      {"num_parameters", report.num_parameters},
      {"vocab_size", report.vocab_size},
      {"dim", report.dim},
      {"max_context", report.max_context},
      {"encoder", !report.causal},
      {"labels", report.labels},
      {"dual_chunk", report.dual_chunk ? ordered_json{{"chunk_size", report.dual_chunk->chunk_size},
                                                      {"local_size", report.dual_chunk->local_size}}
                                       : ordered_json(nullptr)},
      {"notes", report.notes},
      {"model_digest", report.model_digest},
      {"plan", report.plan},
      {"plan_digest", report.plan_digest},
      {"fidelity_report", report.fidelity_report.empty() ? ordered_json(nullptr)
                                                         : ordered_json(report.fidelity_report)},
      {"kv_dtype", report.kv_dtype},
      {"device", report.device},
      {"layers", LayersJson(report)},
      {"density", densities},
      {"groups", GroupsJson(report)},
      {"memory", memory},
      {"flops", FlopsJson(report.flops)},
      {"prediction", PredictionJson(report)}};
  return out.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace longstride::cli

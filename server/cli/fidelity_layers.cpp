#include "server/cli/fidelity_layers.h"

#include <algorithm>

namespace longstride::cli {
namespace {

using model::HeadSegment;
using model::SparsityPlan;
using model::fidelity::CapturedMass;
using model::fidelity::LayerCounters;

double Share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

// Mean over the window's positions, weighted by the keys before each as the counters are.
double AskedDensity(const SparsityPlan& plan, size_t layer, int32_t window_tokens,
                    model::NumericsClass numerics) {
  double visible = 0;
  double causal = 0;
  for (const HeadSegment& segment : plan.layers[layer].segments) {
    const auto& pattern = *plan.patterns[static_cast<size_t>(segment.pattern)];
    for (int32_t i = 0; i < window_tokens; ++i) {
      visible += segment.query.count * pattern.VisibleKeys(i, numerics);
      if (segment.part == 0) causal += segment.query.count * (i + 1.0);
    }
  }
  return visible / causal;
}

// One line per head: equal text means the same function.
std::string PatternsOf(const SparsityPlan& plan, size_t layer) {
  std::string text;
  for (const HeadSegment& segment : plan.layers[layer].segments) {
    for (int32_t h = 0; h < segment.query.count; ++h) {
      StrAppend(&text, plan.patterns[static_cast<size_t>(segment.pattern)]->Describe(), "\n");
    }
  }
  return text;
}

}  // namespace

void DescribeLayers(const LayerObservations& seen, int32_t window_tokens,
                    const model::fidelity::BootstrapOptions& bootstrap, FidelityReport* report) {
  const CapturedMass& mass = *seen.mass;
  std::vector<double> window_mass(mass.window_rows().size());
  std::vector<double> window_rows(mass.window_rows().size());
  bool any_changed = false;
  for (size_t l = 0; l < seen.baseline->layers.size(); ++l) {
    FidelityReport::Layer layer;
    const LayerCounters::Layer& b = seen.baseline_counters->layers()[l];
    const LayerCounters::Layer& p = seen.plan_counters->layers()[l];
    layer.baseline_density = Share(b.keys_visible, b.keys_total);
    layer.achieved_density = Share(p.keys_visible, p.keys_total);
    layer.baseline_work = Share(b.keys_read, b.keys_total);
    layer.work = Share(p.keys_read, p.keys_total);
    layer.asked_density = AskedDensity(*seen.plan, l, window_tokens, seen.numerics);
    layer.changed = PatternsOf(*seen.baseline, l) != PatternsOf(*seen.plan, l);
    any_changed = any_changed || layer.changed;
    const auto index = static_cast<int32_t>(l);
    for (int32_t h = 0; mass.available() && h < mass.num_heads(index); ++h) {
      const CapturedMass::Cell& cell = mass.cell(0, index, h);
      double sum = 0;
      for (size_t w = 0; w < cell.window_sums.size(); ++w) {
        sum += cell.window_sums[w];
        if (!layer.changed) continue;
        window_mass[w] += cell.window_sums[w];
        window_rows[w] += mass.window_rows()[w];
      }
      layer.mass.push_back(sum / static_cast<double>(mass.rows_per_head()));
      layer.least_mass.push_back(cell.least);
    }
    report->layers.push_back(std::move(layer));
  }
  report->mass_rows = mass.rows_per_head();
  if (!mass.available()) {
    report->mass_reason = !seen.plan->one_softmax() ? std::string(seen.plan->WhyNotOneSoftmax())
                          : seen.plan->one_numerics_class
                              ? "queries and keys lie on the device; measure on the CPU"
                              : "which keys the plan reads depends on the query";
  } else if (!any_changed) {
    report->mass_reason = "the plan changes no layer";
  } else {
    report->mass = BootstrapRatio(window_mass, window_rows, bootstrap);
  }
}

}  // namespace longstride::cli

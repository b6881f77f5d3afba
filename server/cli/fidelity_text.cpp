// A FidelityReport on the terminal, and its sentence.
#include "absl/strings/str_format.h"
#include "config/option_value.h"
#include "server/cli/fidelity_report.h"

namespace longstride::cli {
namespace {

using model::fidelity::Estimate;

double DensityOf(const FidelityReport& r, double FidelityReport::Layer::*field) {
  double sum = 0;
  for (const FidelityReport::Layer& layer : r.layers) sum += layer.*field;
  return r.layers.empty() ? 0 : sum / static_cast<double>(r.layers.size());
}

// The measured yardstick with the largest divergence, if any.
const FidelityReport::Yardstick* LargestYardstick(const FidelityReport& r) {
  const FidelityReport::Yardstick* best = nullptr;
  for (const auto& y : r.yardsticks) {
    if (!y.divergence || y.divergence->kl.value <= 0) continue;
    if (best == nullptr || y.divergence->kl.value > best->divergence->kl.value) best = &y;
  }
  return best;
}

std::string Row(const std::string& name, const std::string& value) {
  return absl::StrFormat("  %-24s %s\n", name, value);
}

}  // namespace

std::string WithInterval(const Estimate& e, int digits, double scale, const char* unit) {
  std::string out = absl::StrFormat("%.*g%s", digits, e.value * scale, unit);
  if (e.interval) {
    absl::StrAppendFormat(&out, " (%.*g to %.*g)", digits, e.interval->low * scale, digits,
                          e.interval->high * scale);
  }
  return out;
}

std::string FidelityVerdict(const FidelityReport& r) {
  const double base = DensityOf(r, &FidelityReport::Layer::baseline_density);
  const double plan = DensityOf(r, &FidelityReport::Layer::achieved_density);
  std::string out = absl::StrFormat(
      "In windows of %d tokens, %s reads %.3g%% of the keys (the baseline %.3g%%) and names the "
      "same "
      "likeliest token at %.4g%% of the positions; the mean KL divergence is %.3g nats",
      r.window_tokens, r.plan.name, plan * 100, base * 100, r.divergence.same_top.value * 100,
      r.divergence.kl.value);
  const auto* yardstick = LargestYardstick(r);
  const double floor = r.noise.divergence ? r.noise.divergence->kl.value : 0;
  if (r.divergence.kl.value <= floor) {
    out += ", not distinguishable from the baseline's own noise";
  } else if (yardstick != nullptr) {
    absl::StrAppendFormat(&out, ", %.3g times that of %s",
                          r.divergence.kl.value / yardstick->divergence->kl.value, yardstick->name);
  }
  return out + ".";
}

std::string FidelityText(const FidelityReport& r) {
  std::string out = StrCat(r.model, " (", r.weights_type, "), plan ", r.plan.name, ", digest ",
                           r.plan.digest, "\n", r.windows, " windows of ", r.window_tokens,
                           " tokens; 95% intervals over windows\n\n");
  out += Row("KL, nats", WithInterval(r.divergence.kl, 3));
  if (r.noise.divergence) out += Row("  noise floor", WithInterval(r.noise.divergence->kl, 3));
  for (const auto& y : r.yardsticks) {
    out += Row("  " + y.name,
               y.divergence ? WithInterval(y.divergence->kl, 3) : "absent: " + y.reason);
  }
  out += Row("same likeliest token", WithInterval(r.divergence.same_top, 4, 100, "%"));
  out += Row("perplexity", WithInterval(r.divergence.base_perplexity, 4) + " baseline");
  out += Row("", WithInterval(r.divergence.other_perplexity, 4) + " plan");
  out += Row("  ratio", WithInterval(r.divergence.perplexity_ratio, 5));
  out += Row("captured attention mass",
             r.mass ? WithInterval(*r.mass, 4, 100, "%") + " on the changed layers"
                    : "absent: " + r.mass_reason);
  out += absl::StrFormat("  %-24s %.3g%% baseline, %.3g%% asked, %.3g%% achieved\n",
                         "keys read, of all before",
                         DensityOf(r, &FidelityReport::Layer::baseline_density) * 100,
                         DensityOf(r, &FidelityReport::Layer::asked_density) * 100,
                         DensityOf(r, &FidelityReport::Layer::achieved_density) * 100);
  out += absl::StrFormat("  %-24s %.3g%% baseline, %.3g%% plan (whole blocks)\n", "scores computed",
                         DensityOf(r, &FidelityReport::Layer::baseline_work) * 100,
                         DensityOf(r, &FidelityReport::Layer::work) * 100);
  for (const auto* plan : {&r.baseline, &r.plan}) {
    out += absl::StrFormat("  %-24s prefill %.0f, decode %.1f tokens/s; KV %s here, %s at %d\n",
                           plan == &r.baseline ? "baseline" : "plan", plan->prefill.median,
                           plan->decode.median, FormatBytesShort(plan->measured_kv_bytes),
                           FormatBytesShort(plan->kv_bytes_at_context), r.max_context);
  }
  out += "\n  KL by position\n";
  for (const auto& bucket : r.buckets) {
    out += absl::StrFormat("  %8d to %-8d %s\n", bucket.begin, bucket.end - 1,
                           WithInterval(bucket.summary.kl, 3));
  }
  if (r.tasks.empty()) {
    StrAppend(&out, "\n  Tasks: absent: ", r.tasks_reason, "\n");
  } else {
    out += "\n  Tasks, share right (guessing: 25%)     baseline   plan   paired p\n";
    for (const auto& task : r.tasks) {
      out += absl::StrFormat("  %-20s %9s   %11.0f%% %6.0f%%   %8.2g\n", task.name,
                             task.tokens > 0 ? StrCat(task.tokens) : "all",
                             task.base_accuracy.value * 100, task.plan_accuracy.value * 100,
                             task.mcnemar_p);
    }
    if (const int index = model::fidelity::WorstTask(r.tasks); index >= 0) {
      const auto& worst = r.tasks[static_cast<size_t>(index)];
      StrAppend(&out, "  worst: ", worst.name, " at ", worst.tokens, " tokens, ",
                WithInterval(worst.accuracy_change, 3, 100, " points"), "\n");
    }
  }
  if (r.search) {
    StrAppend(&out, "\n  Search for ", r.search->target, "\n");
    for (const auto& rung : r.search->result.rungs) {
      out += absl::StrFormat("  %6.2f%%  KL %-9.3g top %6.2f%%  %-7s %s\n", rung.keys_share * 100,
                             rung.searched.kl.value, rung.searched.same_top.value * 100,
                             rung.holds_checked    ? "chosen"
                             : rung.checked        ? "unseen!"
                             : rung.holds_searched ? "holds"
                                                   : "",
                             rung.rung.description);
    }
  }
  StrAppend(&out, "\n", FidelityVerdict(r), "\n");
  for (const std::string& note : r.notes) StrAppend(&out, "Note: ", note, "\n");
  return out;
}

}  // namespace longstride::cli

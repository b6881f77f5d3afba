// A FidelityReport as one page without external resources.
#include <algorithm>

#include "absl/strings/str_format.h"
#include "config/option_value.h"
#include "server/cli/fidelity_report.h"
#include "server/cli/svg_plots.h"

namespace longstride::cli {
namespace {

using model::fidelity::Estimate;
using svg::Escape;

constexpr char kPageStyle[] = R"css(
:root{color-scheme:light dark;--bg:#fbfbf9;--card:#fff;--ink:#1d1f23;--ink2:#5c626b;--grid:#e2e3e0;
--s0:#1f6feb;--s1:#c4540a;--s2:#2a8a5c;--s3:#8250df}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--card:#1d2024;--ink:#e8e9ea;--ink2:#a3a9b1;
--grid:#34383e;--s0:#6aa5ff;--s1:#ff9a56;--s2:#5fc998;--s3:#b794f6}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:860px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 4px}
h2{font-size:1.15rem;margin:40px 0 4px}
p{margin:6px 0 12px}.sub,.note{color:var(--ink2)}
.verdict{font-size:1.08rem;border-left:4px solid var(--s0);padding:2px 0 2px 14px;margin:18px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px}
.tile,.card{background:var(--card);border:1px solid var(--grid);border-radius:8px;padding:12px 14px}
.card{padding:14px 10px}.tile b{display:block;font-size:1.45rem;font-variant-numeric:tabular-nums}
.tile span{color:var(--ink2);font-size:.85rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--grid)}
th:first-child,td:first-child{text-align:left}th{color:var(--ink2);font-weight:600}
.scroll{overflow-x:auto}.bad{color:var(--s1);font-weight:600}
code,pre{font:.85rem ui-monospace,monospace;overflow-wrap:anywhere;white-space:pre-wrap}
)css";

std::string Tile(const std::string& value, const std::string& label, const std::string& more) {
  return StrCat("<div class='tile'><span>", Escape(label), "</span><b>", Escape(value),
                "</b><span>", Escape(more), "</span></div>\n");
}

std::string Interval(const Estimate& e, int digits, double scale = 1) {
  if (!e.interval) return "no interval";
  return absl::StrFormat("%.*g to %.*g", digits, e.interval->low * scale, digits,
                         e.interval->high * scale);
}

std::string Section(const std::string& title, const std::string& explanation,
                    const std::string& body) {
  return StrCat("<h2>", Escape(title), "</h2>\n<p class='sub'>", Escape(explanation),
                "</p>\n<div class='card'>", body, "</div>\n");
}

std::string Cells(const std::vector<std::string>& cells, const char* tag = "td") {
  std::string out = "<tr>";
  for (const std::string& cell : cells) StrAppend(&out, "<", tag, ">", cell, "</", tag, ">");
  return out + "</tr>\n";
}

svg::Point PointOf(const Estimate& e) {
  svg::Point point{.y = e.value};
  if (e.interval) {
    point.low = e.interval->low;
    point.high = e.interval->high;
  }
  return point;
}

std::string Tiles(const FidelityReport& r) {
  std::string out = "<div class='tiles'>\n";
  const auto& d = r.divergence;
  out +=
      Tile(absl::StrFormat("%.3g nats", d.kl.value), "mean KL to the baseline", Interval(d.kl, 3));
  out += Tile(absl::StrFormat("%.2f%%", d.same_top.value * 100), "same likeliest token",
              Interval(d.same_top, 4, 100) + " %");
  out += Tile(absl::StrFormat("x %.4f", d.perplexity_ratio.value), "perplexity",
              Interval(d.perplexity_ratio, 5));
  double base = 0, plan = 0;
  for (const auto& layer : r.layers) {
    base += layer.baseline_density / static_cast<double>(r.layers.size());
    plan += layer.achieved_density / static_cast<double>(r.layers.size());
  }
  out += Tile(absl::StrFormat("%.3g%%", plan * 100), "keys read, of all before",
              absl::StrFormat("baseline %.3g%%", base * 100));
  out += Tile(FormatBytesShort(r.plan.kv_bytes_at_context),
              absl::StrFormat("KV memory at %d tokens", r.max_context),
              StrCat("baseline ", FormatBytesShort(r.baseline.kv_bytes_at_context)));
  if (const int index = model::fidelity::WorstTask(r.tasks); index >= 0) {
    const auto& worst = r.tasks[static_cast<size_t>(index)];
    out += Tile(absl::StrFormat("%+.0f points", worst.accuracy_change.value * 100),
                StrCat("worst task: ", worst.name),
                absl::StrFormat("at %d tokens, %d questions", worst.tokens, worst.questions));
  }
  return out + "</div>\n";
}

std::string PositionSection(const FidelityReport& r) {
  svg::LinePlot plot{.x_title = "positions from", .y_title = "KL, nats", .log_y = true};
  svg::Series kl{.name = "plan against baseline", .color = 0};
  for (const auto& bucket : r.buckets) {
    plot.labels.push_back(std::to_string(bucket.begin));
    kl.points.emplace_back(PointOf(bucket.summary.kl));
  }
  plot.series.push_back(kl);
  int color = 1;
  for (const auto& y : r.yardsticks) {
    if (!y.divergence || y.divergence->kl.value <= 0) continue;
    svg::Series series{.name = y.name, .color = color++ % 4, .reference = true};
    series.points.assign(r.buckets.size(), svg::Point{.y = y.divergence->kl.value});
    plot.series.push_back(std::move(series));
  }
  std::string table =
      "<div class='scroll'><table>\n" +
      Cells({"positions", "KL", "median", "p99", "same token", "perplexity ratio"}, "th");
  const auto add = [&table](const std::string& name, const model::fidelity::DivergenceSummary& s) {
    table += Cells({name, WithInterval(s.kl, 3), absl::StrFormat("%.3g", s.kl_median),
                    absl::StrFormat("%.3g", s.kl_p99), WithInterval(s.same_top, 4, 100, "%"),
                    WithInterval(s.perplexity_ratio, 5)});
  };
  for (const auto& bucket : r.buckets) {
    add(StrCat(bucket.begin, " to ", bucket.end - 1), bucket.summary);
  }
  add("all", r.divergence);
  return Section(
      "Divergence by position",
      "KL divergence of the next-token distribution under the plan from the baseline's, "
      "teacher-forced on the same text. Early positions lie inside every window and hide "
      "what happens later, so they are shown apart. Bars are 95% intervals; a value of 0 "
      "sits on the axis.",
      Render(plot) + table + "</table></div>");
}

std::string YardstickSection(const FidelityReport& r) {
  std::string table = "<table>\n" + Cells({"change", "KL", "same token"}, "th");
  const auto add = [&table](const FidelityReport::Yardstick& y) {
    const std::string name =
        StrCat(Escape(y.name), "<br><span class='note'>", Escape(y.description), "</span>");
    table += y.divergence ? Cells({name, WithInterval(y.divergence->kl, 3),
                                   WithInterval(y.divergence->same_top, 4, 100, "%")})
                          : Cells({name, StrCat("absent: ", Escape(y.reason)), ""});
  };
  table += Cells({StrCat("<b>", Escape(r.plan.name), "</b>"), WithInterval(r.divergence.kl, 3),
                  WithInterval(r.divergence.same_top, 4, 100, "%")});
  add(r.noise);
  for (const auto& y : r.yardsticks) add(y);
  return Section(
      "On a scale you know",
      "The same figures for changes that operators make every day, on the same text, and "
      "for no change at all (the noise floor: anything at or below it is not a "
      "difference).",
      table + "</table>");
}

std::string MassSection(const FidelityReport& r) {
  std::string body;
  if (!r.mass) {
    body = StrCat("<p>Absent: ", Escape(r.mass_reason), "</p>");
  } else {
    svg::HeatMap map{.x_title = "query head", .y_title = "layer"};
    for (size_t l = 0; l < r.layers.size(); ++l) {
      map.row_labels.push_back(std::to_string(l));
      std::vector<std::optional<double>>& row = map.rows.emplace_back();
      std::vector<std::string>& titles = map.titles.emplace_back();
      for (size_t h = 0; h < r.layers[l].mass.size(); ++h) {
        row.emplace_back(r.layers[l].mass[h]);
        titles.push_back(absl::StrFormat("layer %d, head %d: %.2f%% on average, %.2f%% at worst", l,
                                         h, r.layers[l].mass[h] * 100,
                                         r.layers[l].least_mass[h] * 100));
      }
    }
    body =
        Render(map) + absl::StrFormat(
                          "<p class='sub'>%s of the mass on the layers that the plan changes; %d "
                          "sampled queries a head.</p>",
                          WithInterval(*r.mass, 4, 100, "%"), r.mass_rows);
  }
  return Section(
      "Attention mass captured",
      "Share of each head's softmax mass, for the baseline's own queries, that lies on "
      "keys which the plan reads as well. Full colour is all of it; pale heads lose what "
      "they look at.",
      body);
}

std::string DensitySection(const FidelityReport& r) {
  svg::LinePlot plot{.x_title = "layer", .y_title = "keys read / keys before", .y_min = 0.0};
  svg::Series base{.name = "baseline", .color = 0};
  svg::Series asked{.name = "asked", .color = 2};
  svg::Series achieved{.name = "achieved", .color = 1};
  svg::Series work{.name = "scores computed", .color = 3};
  for (size_t l = 0; l < r.layers.size(); ++l) {
    plot.labels.push_back(std::to_string(l));
    base.points.emplace_back(svg::Point{.y = r.layers[l].baseline_density});
    asked.points.emplace_back(svg::Point{.y = r.layers[l].asked_density});
    achieved.points.emplace_back(svg::Point{.y = r.layers[l].achieved_density});
    work.points.emplace_back(svg::Point{.y = r.layers[l].work});
  }
  plot.series = {base, asked, achieved, work};
  return Section("Density by layer",
                 "Keys a query reads over all keys before it, mean over the text's positions: what "
                 "the patterns ask for, what was counted, and the scores that the kernels computed "
                 "(they take whole blocks).",
                 Render(plot));
}

std::string SpeedSection(const FidelityReport& r) {
  std::string table = "<table>\n" + Cells({"", "prefill, tokens/s", "decode, tokens/s",
                                           "attention's share of decode", "KV memory here",
                                           absl::StrFormat("at %d tokens", r.max_context)},
                                          "th");
  for (const auto* plan : {&r.baseline, &r.plan}) {
    const auto spread = [](const model::fidelity::Spread& s, int decimals) {
      return absl::StrFormat("%.*f (%.*f to %.*f)", decimals, s.median, decimals, s.least, decimals,
                             s.most);
    };
    table += Cells({Escape(plan->name), spread(plan->prefill, 0), spread(plan->decode, 1),
                    absl::StrFormat("%.0f%%", plan->decode_attention.median * 100),
                    FormatBytesShort(plan->measured_kv_bytes),
                    FormatBytesShort(plan->kv_bytes_at_context)});
  }
  return Section(
      "Speed and memory",
      absl::StrFormat("A prompt of %d tokens, then %d more one by one, alternating between "
                      "the plans on this machine: median, least and most of the "
                      "repetitions.",
                      r.speed_prompt_tokens, r.speed_decode_tokens),
      StrCat("<div class='scroll'>", table, "</table></div>"));
}

std::string TaskSection(const FidelityReport& r) {
  std::string body;
  if (r.tasks.empty()) {
    body = StrCat("<p>Absent: ", Escape(r.tasks_reason), "</p>");
  } else {
    svg::DotPlot plot{.x_title = "share of questions answered right (guessing: 0.25)"};
    svg::Series base{.name = "baseline", .color = 0};
    svg::Series plan{.name = "plan", .color = 1};
    std::string table =
        "<div class='scroll'><table>\n" + Cells({"task", "tokens", "questions", "baseline", "plan",
                                                 "change, points", "lost / gained", "McNemar p"},
                                                "th");
    const int worst = model::fidelity::WorstTask(r.tasks);
    for (size_t i = 0; i < r.tasks.size(); ++i) {
      const auto& task = r.tasks[i];
      const std::string length = task.tokens > 0 ? StrCat(task.tokens) : "all";
      if (task.tokens > 0) {
        plot.labels.push_back(StrCat(task.name, ", ", length));
        base.points.emplace_back(PointOf(task.base_accuracy));
        plan.points.emplace_back(PointOf(task.plan_accuracy));
      }
      const bool is_worst = static_cast<int>(i) == worst;
      table += Cells(
          {StrCat("<span title='", Escape(task.description), "'", is_worst ? " class='bad'" : "",
                  ">", Escape(task.name), is_worst ? " (worst)" : "", "</span>"),
           length, StrCat(task.questions),
           absl::StrFormat("%.0f%%", task.base_accuracy.value * 100),
           absl::StrFormat("%.0f%%", task.plan_accuracy.value * 100),
           WithInterval(task.accuracy_change, 3, 100),
           StrCat(task.only_base_right, " / ", task.only_plan_right),
           absl::StrFormat("%.2g", task.mcnemar_p)});
    }
    plot.series = {base, plan};
    body = Render(plot) + table + "</table></div>";
  }
  return Section(
      "Tasks",
      "Long-context tasks after RULER's definitions, the same questions to both. The right "
      "answer must be likelier than three of the same form. Intervals resample contexts; p "
      "is McNemar's exact test on the answers that changed.",
      body);
}

std::string SearchSection(const FidelityReport::Search& search) {
  std::string table =
      "<div class='scroll'><table>\n" +
      Cells({"plan", "keys read", "KL, searched", "same token", "KL, unseen text", "outcome"}, "th");
  for (const auto& rung : search.result.rungs) {
    const char* outcome = rung.holds_checked    ? "<b>chosen</b>"
                          : rung.checked        ? "failed on unseen text"
                          : rung.holds_searched ? "holds, dearer"
                                                : "misses";
    table +=
        Cells({Escape(rung.rung.description), absl::StrFormat("%.2f%%", rung.keys_share * 100),
               WithInterval(rung.searched.kl, 3),
               absl::StrFormat("%.2f%%", rung.searched.same_top.value * 100),
               rung.checked ? WithInterval(rung.checked->kl, 3) : "", outcome});
  }
  return Section(
      StrCat("Search for ", search.target),
      absl::StrFormat("Plans by cost, judged on %d windows; the cheapest that holds was "
                      "checked on %d others. All other sections of this page are about the "
                      "chosen plan on those others.",
                      search.search_windows, search.check_windows),
      table + "</table></div>");
}

std::string IdentitySection(const FidelityReport& r) {
  std::string table = "<table>\n";
  const auto add = [&table](const std::string& name, const std::string& value) {
    table += StrCat("<tr><td>", Escape(name), "</td><td style='text-align:left'><code>",
                    Escape(value), "</code></td></tr>\n");
  };
  add("model", StrCat(r.model, " (", r.family, ", ", r.weights_type, ")"));
  add("model digest", r.model_digest);
  add("baseline digest", r.baseline.digest);
  add("plan digest", r.plan.digest);
  add("plan", r.plan.text);
  for (const auto& file : r.data) {
    add(file.name, StrCat("sha256 ", file.sha256, ", ", file.tokens, " tokens used"));
  }
  add("KV cache", r.kv_dtype);
  add("version", StrCat(r.version, " (", r.commit, ", ", r.compiler, ")"));
  add("device", r.device);
  add("date", r.date);
  add("seed", StrCat(r.seed));
  add("command", r.command);
  return StrCat("<h2>Identity</h2>\n<div class='card scroll'>", table, "</table></div>\n");
}

}  // namespace

std::string FidelityHtml(const FidelityReport& r) {
  std::string out = StrCat(
      "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
      "<meta name='viewport' content='width=device-width,initial-scale=1'>\n<title>Fidelity of ",
      Escape(r.plan.name), " on ", Escape(r.model), "</title>\n<style>", kPageStyle,
      svg::kPlotStyle, "</style></head>\n<body><main>\n<h1>Fidelity of ", Escape(r.plan.name),
      "</h1>\n<p class='sub'>", Escape(r.model), ", ", Escape(r.weights_type),
      ", against the checkpoint's own plan; ", r.windows, " windows of ", r.window_tokens,
      " tokens</p>\n<p class='verdict'>", Escape(FidelityVerdict(r)), "</p>\n");
  for (const std::string& note : r.notes) {
    StrAppend(&out, "<p class='note'>Note: ", Escape(note), "</p>\n");
  }
  out += Tiles(r) + PositionSection(r) + YardstickSection(r) + MassSection(r) + DensitySection(r) +
         TaskSection(r) + SpeedSection(r);
  if (r.search) out += SearchSection(*r.search);
  return StrCat(out, IdentitySection(r), "</main></body></html>\n");
}

}  // namespace longstride::cli

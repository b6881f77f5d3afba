#include "server/cli/svg_plots.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "config/base/strings.h"

namespace longstride::cli::svg {
namespace {

constexpr double kWidth = 720;
constexpr double kLeft = 64;
constexpr double kRight = 16;

struct Axis {
  double low = 0, high = 1;
  bool log = false;
  std::vector<double> ticks;

  // 0 at the low end, 1 at the high end.
  double At(double value) const {
    const double v = log ? std::log10(std::max(value, low)) : value;
    const double from = log ? std::log10(low) : low;
    const double to = log ? std::log10(high) : high;
    return to > from ? std::clamp((v - from) / (to - from), 0.0, 1.0) : 0.0;
  }
};

std::string Number(double value) {
  if (value == 0) return "0";
  const double size = std::abs(value);
  if (size < 1e-3 || size >= 1e6) return absl::StrFormat("%.3g", value);
  return absl::StrFormat("%.4g", value);
}

// Round steps of 1, 2 or 5 times a power of ten.
Axis LinearAxis(double low, double high) {
  if (!(high > low)) high = low + 1;
  const double raw = (high - low) / 5;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  const double step = power * (raw / power <= 1   ? 1
                               : raw / power <= 2 ? 2
                               : raw / power <= 5 ? 5
                                                  : 10);
  Axis axis{.low = std::floor(low / step + 1e-9) * step,
            .high = std::ceil(high / step - 1e-9) * step};
  for (double t = axis.low; t <= axis.high + step / 2; t += step) {
    axis.ticks.push_back(std::abs(t) < step / 1e6 ? 0 : t);
  }
  return axis;
}

Axis LogAxis(double low, double high) {
  Axis axis{.low = std::pow(10, std::floor(std::log10(low))),
            .high = std::pow(10, std::ceil(std::log10(high))),
            .log = true};
  if (axis.high <= axis.low) axis.high = axis.low * 10;
  for (double t = axis.low; t <= axis.high * 1.001; t *= 10) axis.ticks.push_back(t);
  return axis;
}

Axis AxisOf(const LinePlot& plot) {
  double low = HUGE_VAL, high = -HUGE_VAL;
  for (const Series& series : plot.series) {
    for (const auto& point : series.points) {
      if (!point) continue;
      for (const double v :
           {point->y, point->low.value_or(point->y), point->high.value_or(point->y)}) {
        if (plot.log_y && v <= 0) continue;
        low = std::min(low, v);
        high = std::max(high, v);
      }
    }
  }
  if (!(high >= low)) low = high = plot.log_y ? 1e-6 : 0;
  low = plot.y_min.value_or(low);
  high = plot.y_max.value_or(high);
  return plot.log_y ? LogAxis(low, high) : LinearAxis(low, high);
}

std::string Open(double width, double height, std::string_view label) {
  return absl::StrFormat("<svg class='plot' viewBox='0 0 %.0f %.0f' role='img' aria-label='%s'>\n",
                         width, height, Escape(label));
}

std::string TextAt(double x, double y, std::string_view text, const char* anchor = "middle",
                   const char* extra = "") {
  return absl::StrFormat("<text x='%.1f' y='%.1f' text-anchor='%s' %s>%s</text>\n", x, y, anchor,
                         extra, Escape(text));
}

std::string Line(double x1, double y1, double x2, double y2, const char* css) {
  return absl::StrFormat("<line class='%s' x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f'/>\n", css, x1,
                         y1, x2, y2);
}

std::string Tooltip(const std::string& series, const std::string& label, const Point& point) {
  std::string out = StrCat(series, ", ", label, ": ", Number(point.y));
  if (point.low) StrAppend(&out, " (", Number(*point.low), " to ", Number(*point.high), ")");
  return StrCat("<title>", Escape(out), "</title>");
}

std::string Legend(const std::vector<Series>& series, double x, double y) {
  std::string out;
  for (const Series& s : series) {
    out += absl::StrFormat("<circle class='s%d' cx='%.1f' cy='%.1f' r='4'/>\n", s.color, x, y - 4);
    out += TextAt(x + 9, y, s.name, "start");
    x += 28 + 6.4 * static_cast<double>(s.name.size());
  }
  return out;
}

}  // namespace

const char kPlotStyle[] = R"css(
.plot{width:100%;height:auto;font:12px system-ui,sans-serif}
.plot text{fill:var(--ink2,#555)}
.plot .grid{stroke:var(--grid,#ddd);stroke-width:1}
.plot .axis{stroke:var(--ink2,#555);stroke-width:1}
.plot .s0{stroke:var(--s0,#1f6feb);fill:var(--s0,#1f6feb)}
.plot .s1{stroke:var(--s1,#d1580b);fill:var(--s1,#d1580b)}
.plot .s2{stroke:var(--s2,#2a8a5c);fill:var(--s2,#2a8a5c)}
.plot .s3{stroke:var(--s3,#8250df);fill:var(--s3,#8250df)}
.plot path.s0,.plot path.s1,.plot path.s2,.plot path.s3{fill:none;stroke-width:2}
.plot .dashed{stroke-dasharray:6 5}
.plot .ci{stroke-width:2;opacity:.45}
.plot .cell{fill:var(--s0,#1f6feb);shape-rendering:crispEdges}
.plot .none{fill:var(--grid,#ddd)}
.plot .frame{fill:none;stroke:var(--grid,#ddd)}
)css";

std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string Render(const LinePlot& plot) {
  constexpr double kTop = 30, kHeight = 300, kBottom = 48;
  const double plot_width = kWidth - kLeft - kRight;
  const double plot_height = kHeight - kTop - kBottom;
  const Axis axis = AxisOf(plot);
  const double step = plot_width / static_cast<double>(std::max<size_t>(1, plot.labels.size()));
  const auto x_at = [&](size_t i) { return kLeft + step * (static_cast<double>(i) + 0.5); };
  const auto y_at = [&](double v) { return kTop + plot_height * (1 - axis.At(v)); };
  std::string out = Open(kWidth, kHeight, StrCat(plot.y_title, " by ", plot.x_title));
  out += Legend(plot.series, kLeft, 16);
  for (const double tick : axis.ticks) {
    out += Line(kLeft, y_at(tick), kWidth - kRight, y_at(tick), "grid");
    out += TextAt(kLeft - 6, y_at(tick) + 4, Number(tick), "end");
  }
  // A crowded axis names only every second, third … place.
  const size_t every = plot.labels.size() / 14 + 1;
  for (size_t i = 0; i < plot.labels.size(); i += every) {
    out += TextAt(x_at(i), kHeight - kBottom + 16, plot.labels[i]);
  }
  out += TextAt(kLeft + plot_width / 2, kHeight - 8, plot.x_title);
  out += TextAt(14, kTop + plot_height / 2, plot.y_title, "middle",
                absl::StrFormat("transform='rotate(-90 14 %.1f)'", kTop + plot_height / 2).c_str());
  for (const Series& series : plot.series) {
    std::string path;
    for (size_t i = 0; i < series.points.size(); ++i) {
      if (!series.points[i]) continue;
      absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : "L", x_at(i),
                            y_at(series.points[i]->y));
    }
    absl::StrAppendFormat(&out, "<path class='s%d%s' d='%s'><title>%s</title></path>\n",
                          series.color, series.reference ? " dashed" : "", path,
                          Escape(series.name));
    if (series.reference) continue;
    for (size_t i = 0; i < series.points.size(); ++i) {
      if (!series.points[i]) continue;
      const Point& p = *series.points[i];
      if (p.low) {
        out += Line(x_at(i), y_at(*p.low), x_at(i), y_at(*p.high),
                    absl::StrFormat("ci s%d", series.color).c_str());
      }
      absl::StrAppendFormat(&out, "<circle class='s%d' cx='%.1f' cy='%.1f' r='4'>%s</circle>\n",
                            series.color, x_at(i), y_at(p.y),
                            Tooltip(series.name, plot.labels[i], p));
    }
  }
  return out + "</svg>\n";
}

std::string Render(const DotPlot& plot) {
  constexpr double kTop = 30, kRow = 24, kBottom = 40, kLabels = 230;
  const double height = kTop + kRow * static_cast<double>(plot.labels.size()) + kBottom;
  const double plot_width = kWidth - kLabels - kRight;
  const Axis axis = LinearAxis(plot.x_min, plot.x_max);
  const auto x_at = [&](double v) { return kLabels + plot_width * axis.At(v); };
  std::string out = Open(kWidth, height, plot.x_title);
  out += Legend(plot.series, kLabels, 16);
  for (const double tick : axis.ticks) {
    out += Line(x_at(tick), kTop, x_at(tick), height - kBottom, "grid");
    out += TextAt(x_at(tick), height - kBottom + 16, Number(tick));
  }
  out += TextAt(kLabels + plot_width / 2, height - 6, plot.x_title);
  for (size_t row = 0; row < plot.labels.size(); ++row) {
    const double middle = kTop + kRow * (static_cast<double>(row) + 0.5);
    out += TextAt(kLabels - 10, middle + 4, plot.labels[row], "end");
    for (size_t s = 0; s < plot.series.size(); ++s) {
      const Series& series = plot.series[s];
      if (row >= series.points.size() || !series.points[row]) continue;
      const Point& p = *series.points[row];
      // Series keep apart by a little, so that equal values stay visible.
      const double y =
          middle + (static_cast<double>(s) - (static_cast<double>(plot.series.size()) - 1) / 2) * 7;
      if (p.low) {
        out += Line(x_at(*p.low), y, x_at(*p.high), y,
                    absl::StrFormat("ci s%d", series.color).c_str());
      }
      absl::StrAppendFormat(&out, "<circle class='s%d' cx='%.1f' cy='%.1f' r='4'>%s</circle>\n",
                            series.color, x_at(p.y), y, Tooltip(series.name, plot.labels[row], p));
    }
  }
  return out + "</svg>\n";
}

std::string Render(const HeatMap& map) {
  constexpr double kTop = 8, kBottom = 44;
  size_t columns = 1;
  for (const auto& row : map.rows) columns = std::max(columns, row.size());
  const double cell_width =
      std::min(72.0, (kWidth - kLeft - kRight) / static_cast<double>(columns));
  const double cell_height =
      std::clamp(360.0 / static_cast<double>(std::max<size_t>(1, map.rows.size())), 6.0, 20.0);
  const double bottom = kTop + cell_height * static_cast<double>(map.rows.size());
  std::string out = Open(kWidth, bottom + kBottom, StrCat(map.y_title, " by ", map.x_title));
  const auto label_every = static_cast<size_t>(std::ceil(14 / cell_height));
  for (size_t r = 0; r < map.rows.size(); ++r) {
    const double y = kTop + cell_height * static_cast<double>(r);
    if (r % label_every == 0 && r < map.row_labels.size()) {
      out += TextAt(kLeft - 6, y + cell_height / 2 + 4, map.row_labels[r], "end");
    }
    for (size_t c = 0; c < map.rows[r].size(); ++c) {
      const auto& value = map.rows[r][c];
      const std::string title = r < map.titles.size() && c < map.titles[r].size()
                                    ? StrCat("<title>", Escape(map.titles[r][c]), "</title>")
                                    : "";
      const std::string css = value ? absl::StrFormat("class='cell' style='opacity:%.3f'",
                                                      0.06 + 0.94 * std::clamp(*value, 0.0, 1.0))
                                    : std::string("class='none'");
      absl::StrAppendFormat(
          &out, "<rect %s x='%.1f' y='%.1f' width='%.1f' height='%.1f'>%s</rect>\n", css,
          kLeft + cell_width * static_cast<double>(c), y, cell_width - 1, cell_height - 1, title);
    }
  }
  for (size_t c = 0; c < columns; c += columns / 16 + 1) {
    out +=
        TextAt(kLeft + cell_width * (static_cast<double>(c) + 0.5), bottom + 15, std::to_string(c));
  }
  out += TextAt(kLeft + cell_width * static_cast<double>(columns) / 2, bottom + 34, map.x_title);
  const double middle = (kTop + bottom) / 2;
  out += TextAt(14, middle, map.y_title, "middle",
                absl::StrFormat("transform='rotate(-90 14 %.1f)'", middle).c_str());
  return out + "</svg>\n";
}

std::string Document(const std::string& plot) {
  // Not every viewer of single files knows CSS variables: "var(--s0,#1f6feb)" becomes its fallback.
  std::string style;
  std::string_view rest = kPlotStyle;
  for (size_t at = rest.find("var("); at != std::string_view::npos; at = rest.find("var(")) {
    const size_t comma = rest.find(',', at);
    const size_t close = rest.find(')', comma);
    StrAppend(&style, rest.substr(0, at), rest.substr(comma + 1, close - comma - 1));
    rest.remove_prefix(close + 1);
  }
  StrAppend(&style, rest);
  std::string out = plot;
  const size_t open = out.find('>');
  out.insert(open + 1, StrCat("<style>", style, "</style>"));
  out.insert(4, " xmlns='http://www.w3.org/2000/svg'");
  return out;
}

}  // namespace longstride::cli::svg

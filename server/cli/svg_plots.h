// Plots as inline SVG: strings without scripts or external resources. Colours are CSS classes of
// the page they stand in (kPlotStyle), so that they follow a light or a dark page; every mark
// carries a <title> that browsers show on hovering.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longstride::cli::svg {

// CSS of all plots; goes into the page's <style>, or into a plot's own (Document).
extern const char kPlotStyle[];

// Text with &, <, > and quotes escaped, for HTML and SVG.
std::string Escape(std::string_view text);

struct Point {
  double y = 0;
  std::optional<double> low, high;  // interval
};

struct Series {
  std::string name;
  int color = 0;                             // 0 to 3: class of the series
  bool reference = false;                    // of a line plot: dashed, without marks
  std::vector<std::optional<Point>> points;  // one per label of the x axis
};

// Lines with intervals over named places of an x axis. `log_y`: powers of ten; values of 0 or below
// sit on the axis then.
struct LinePlot {
  std::string x_title, y_title;
  std::vector<std::string> labels;
  std::vector<Series> series;
  bool log_y = false;
  std::optional<double> y_min, y_max;  // default: from the values
};
std::string Render(const LinePlot& plot);

// Rows of dots on a common scale, one dot per series and row: compares few values of many things.
struct DotPlot {
  std::string x_title;
  std::vector<std::string> labels;  // of the rows
  std::vector<Series> series;       // points by row
  double x_min = 0, x_max = 1;
};
std::string Render(const DotPlot& plot);

// A grid of cells from 0 (pale) to 1 (full), row 0 at the top.
struct HeatMap {
  std::string x_title, y_title;
  std::vector<std::string> row_labels;
  std::vector<std::vector<std::optional<double>>> rows;
  std::vector<std::vector<std::string>> titles;  // shown on hovering; may be empty
};
std::string Render(const HeatMap& map);

// A plot as a file of its own.
std::string Document(const std::string& plot);

}  // namespace longstride::cli::svg

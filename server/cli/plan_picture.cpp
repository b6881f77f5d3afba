#include "server/cli/plan_picture.h"

#include <algorithm>
#include <map>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/cli/svg_plots.h"

namespace longstride::cli {
namespace {

constexpr int32_t kBlocks = 48;
constexpr int64_t kRowsPerBlock = 8;
constexpr double kPanel = 216;
constexpr double kGap = 24;
constexpr int kPanelsPerRow = 3;

struct Panel {
  std::string pattern;
  std::vector<float> shares;
  int64_t heads = 0;
};

// A layer, or one of the parts that its attention sums.
struct LayerRow {
  std::string label;
  std::vector<int> panels;  // [head]
};

struct Panels {
  std::vector<Panel> panels;
  std::vector<LayerRow> rows;
};

// Heads that read alike share a panel, even where their patterns are told apart by name.
Panels MakePanels(const model::SparsityPlan& plan, int64_t length, int32_t blocks) {
  Panels out;
  std::map<std::pair<int32_t, int32_t>, int> known;  // (pattern, head)
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const model::LayerPlan& layer = plan.layers[l];
    const size_t first_row = out.rows.size();
    for (int32_t part = 0; part < layer.parts; ++part) {
      const std::string of_part = layer.parts > 1 ? absl::StrFormat(".%d", part) : "";
      out.rows.push_back({absl::StrFormat("layer %d%s", l, of_part), {}});
    }
    for (const model::HeadSegment& segment : layer.segments) {
      std::vector<int>& row = out.rows[first_row + static_cast<size_t>(segment.part)].panels;
      const auto& pattern = *plan.patterns[static_cast<size_t>(segment.pattern)];
      for (int32_t h = segment.query.first; h < segment.query.first + segment.query.count; ++h) {
        const auto [at, added] = known.try_emplace({segment.pattern, h}, 0);
        if (added) {
          Panel panel{.pattern = pattern.Describe(),
                      .shares = VisibleShares(pattern, h, length, blocks, plan.causal)};
          const auto same = std::find_if(out.panels.begin(), out.panels.end(), [&](const Panel& p) {
            return p.pattern == panel.pattern && p.shares == panel.shares;
          });
          at->second = static_cast<int>(same - out.panels.begin());
          if (same == out.panels.end()) out.panels.push_back(std::move(panel));
        }
        ++out.panels[static_cast<size_t>(at->second)].heads;
        row.push_back(at->second);
      }
    }
  }
  return out;
}

std::string Letter(int panel) {
  std::string name(1, static_cast<char>('A' + panel % 26));
  if (panel >= 26) name += std::to_string(panel / 26);
  return name;
}

// One panel; neighbours of one shade become one rectangle.
std::string DrawPanel(const Panel& panel, int index, double left, double top, int32_t blocks,
                      int64_t length) {
  const double cell = kPanel / blocks;
  std::string out = absl::StrFormat(
      "<text x='%.1f' y='%.1f'>%s: %s</text>\n<text x='%.1f' y='%.1f'>%d %s</text>\n", left,
      top - 20, Letter(index), svg::Escape(panel.pattern), left, top - 6, panel.heads,
      panel.heads == 1 ? "head" : "heads");
  for (int32_t q = 0; q < blocks; ++q) {
    for (int32_t k = 0; k < blocks;) {
      const float share = panel.shares[static_cast<size_t>(q * blocks + k)];
      int32_t end = k + 1;
      while (end < blocks && panel.shares[static_cast<size_t>(q * blocks + end)] == share) ++end;
      if (share > 0) {
        absl::StrAppendFormat(
            &out,
            "<rect class='cell' style='opacity:%.2f' x='%.2f' y='%.2f' width='%.2f' "
            "height='%.2f'><title>queries %d to %d, keys %d to %d: %.1f%%</title></rect>\n",
            0.1 + 0.9 * static_cast<double>(share), left + k * cell, top + q * cell,
            (end - k) * cell, cell, q * length / blocks, (q + 1) * length / blocks - 1,
            k * length / blocks, end * length / blocks - 1, static_cast<double>(share) * 100);
      }
      k = end;
    }
  }
  return out +
         absl::StrFormat("<rect class='frame' x='%.1f' y='%.1f' width='%.1f' height='%.1f'/>\n",
                         left, top, kPanel, kPanel);
}

// Which panel each head of each layer has.
std::string DrawIndex(const Panels& panels, double top, double* height) {
  constexpr double kCellWidth = 26, kCellHeight = 15, kLeft = 64;
  std::string out;
  for (size_t r = 0; r < panels.rows.size(); ++r) {
    const double y = top + kCellHeight * static_cast<double>(r);
    absl::StrAppendFormat(&out, "<text x='%.1f' y='%.1f' text-anchor='end'>%s</text>\n", kLeft - 8,
                          y + 11, panels.rows[r].label);
    // Heads of one panel are one box with its letter.
    const std::vector<int>& row = panels.rows[r].panels;
    for (size_t h = 0; h < row.size();) {
      size_t end = h + 1;
      while (end < row.size() && row[end] == row[h]) ++end;
      const double width = kCellWidth * static_cast<double>(end - h) - 2;
      const double x = kLeft + kCellWidth * static_cast<double>(h);
      absl::StrAppendFormat(
          &out,
          "<rect class='s%d' fill-opacity='.3' x='%.1f' y='%.1f' width='%.1f' height='%.1f'>"
          "<title>heads %d to %d</title></rect>\n<text x='%.1f' y='%.1f' "
          "text-anchor='middle'>%s</text>\n",
          row[h] % 4, x, y, width, kCellHeight - 3, h, end - 1, x + width / 2, y + 10,
          Letter(row[h]));
      h = end;
    }
  }
  *height = kCellHeight * static_cast<double>(panels.rows.size());
  return out;
}

}  // namespace

std::vector<float> VisibleShares(const model::SparsePattern& pattern, int32_t head, int64_t length,
                                 int32_t blocks, bool causal) {
  std::vector<float> shares(static_cast<size_t>(blocks) * static_cast<size_t>(blocks));
  const auto begin_of = [&](int32_t block) { return block * length / blocks; };
  for (int32_t q = 0; q < blocks; ++q) {
    const int64_t begin = begin_of(q);
    const int64_t rows = begin_of(q + 1) - begin;
    const int64_t taken = std::min(rows, kRowsPerBlock);
    for (int32_t k = 0; k < (causal ? q + 1 : blocks) && taken > 0; ++k) {
      int64_t seen = 0;
      int64_t all = 0;
      for (int64_t r = 0; r < taken; ++r) {
        const int64_t i = begin + (2 * r + 1) * rows / (2 * taken);
        const int64_t end = causal ? std::min(begin_of(k + 1), i + 1) : begin_of(k + 1);
        for (int64_t j = begin_of(k); j < end; ++j) {
          ++all;
          seen += pattern.Visible(head, i, j) ? 1 : 0;
        }
      }
      if (all > 0) {
        shares[static_cast<size_t>(q * blocks + k)] =
            static_cast<float>(static_cast<double>(seen) / static_cast<double>(all));
      }
    }
  }
  return shares;
}

std::string PlanPicture(const model::SparsityPlan& plan, int64_t length) {
  const auto blocks = static_cast<int32_t>(std::min<int64_t>(kBlocks, length));
  const Panels panels = MakePanels(plan, length, blocks);
  constexpr double kTop = 96;
  const auto rows = (panels.panels.size() + kPanelsPerRow - 1) / kPanelsPerRow;
  std::string body;
  for (size_t p = 0; p < panels.panels.size(); ++p) {
    const double left = kGap + (kPanel + kGap) * static_cast<double>(p % kPanelsPerRow);
    const double top = kTop + (kPanel + 60) * static_cast<double>(p / kPanelsPerRow);
    body += DrawPanel(panels.panels[p], static_cast<int>(p), left, top, blocks, length);
  }
  const double index_top = kTop + (kPanel + 60) * static_cast<double>(rows) - 20;
  double index_height = 0;
  body += DrawIndex(panels, index_top, &index_height);
  const std::string head = absl::StrFormat(
      "<svg class='plot' viewBox='0 0 %.0f %.0f' role='img' aria-label='plan %s'>\n"
      "<text x='24' y='24' style='font-size:16px'>%s at %d tokens</text>\n"
      "<text x='24' y='42'>A row of a panel is a block of queries, a column a block of keys; full "
      "colour: all of it is read.</text>\n"
      "<text x='24' y='58'>Below: the panel of each layer's query heads, from head 0.</text>\n",
      kGap + (kPanel + kGap) * kPanelsPerRow, index_top + index_height + 20, svg::Escape(plan.name),
      svg::Escape(plan.name), length);
  return svg::Document(head + body + "</svg>\n");
}

}  // namespace longstride::cli

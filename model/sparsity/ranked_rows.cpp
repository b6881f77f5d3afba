#include "model/sparsity/ranked_rows.h"

#include <algorithm>

namespace longstride::model {

RankedRows::RankedRows(const PageRanking& ranking, bool generated_choose)
    : ranking_(ranking), generated_choose_(generated_choose) {
  ranking_.generated_alike = generated_choose;
}

bool RankedRows::Chooses(int64_t position, NumericsClass numerics) const {
  return position >= ranking_.single_rows_from &&
         (generated_choose_ || numerics == NumericsClass::kPrompt);
}

void RankedRows::Select(std::span<const QueryRun> runs, SelectionBuilder* out) const {
  out->list_count.clear();
  for (const QueryRun& run : runs) {
    // Rows that read everything share tiles, where they are a prompt's.
    const int64_t end = run.first_position + run.num_rows;
    const int64_t alone =
        run.numerics == NumericsClass::kGenerated
            ? run.first_position
            : std::clamp<int64_t>(ranking_.single_rows_from, run.first_position, end);
    QueryRun part = run;
    part.num_rows = static_cast<int32_t>(alone - run.first_position);
    out->MakeTiles({&part, 1});
    part.row_begin += part.num_rows;
    part.num_rows = static_cast<int32_t>(end - alone);
    part.first_position = alone;
    out->MakeTiles({&part, 1}, 1);
    for (size_t t = out->list_count.size(); t < out->tiles.size(); ++t) {
      const kernels::QueryTile& tile = out->tiles[t];
      const int64_t last = int64_t{tile.first_position} + tile.num_rows - 1;
      const int64_t entries = Chooses(tile.first_position, run.numerics)
                                  ? EntriesOf(tile.first_position)
                                  : last / entry_tokens() + 1;
      out->list_count.push_back(static_cast<int32_t>(entries));
    }
  }
  out->edges.push_back({});
}

double RankedRows::VisibleKeys(int64_t position) const {
  const int64_t entries = Chooses(position, NumericsClass::kPrompt) ? EntriesOf(position)
                                                                    : position / entry_tokens() + 1;
  return static_cast<double>((entries - 1) * entry_tokens() + position % entry_tokens() + 1);
}

double RankedRows::GeneratedVisibleKeys(int64_t position) const {
  return generated_choose_ ? VisibleKeys(position) : static_cast<double>(position + 1);
}

}  // namespace longstride::model

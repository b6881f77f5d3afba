#include "model/global_rows.h"

#include <algorithm>
#include <numeric>

namespace longstride::model {

int32_t GlobalTokens(const ModelSpec& spec) {
  const LayerSpec& layer = spec.layers.front();
  return layer.weights.global_wq.data == nullptr ? 0 : layer.attention.native.global_tokens;
}

void GlobalRows::SetRuns(const StepLayout& layout) {
  rows_.clear();
  runs_.clear();
  first_of_.assign(static_cast<size_t>(layout.num_sequences), 0);
  for (const QueryRun& run : layout.runs) {
    const int64_t count = std::min<int64_t>(run.num_rows, tokens_ - run.first_position);
    if (count <= 0) continue;
    const auto first = static_cast<int32_t>(rows_.size());
    first_of_[static_cast<size_t>(run.sequence)] = first;
    for (int32_t r = 0; r < count; ++r) rows_.push_back(run.row_begin + r);
    runs_.push_back(run);
    runs_.back().row_begin = first;
    runs_.back().num_rows = static_cast<int32_t>(count);
  }
  ascending_.resize(rows_.size());
  std::iota(ascending_.begin(), ascending_.end(), 0);
  Part(layout.runs, &local_runs_, &places_);
  Part(layout.wanted_runs, &local_wanted_runs_, &wanted_places_);
}

void GlobalRows::Part(const std::vector<QueryRun>& runs, std::vector<QueryRun>* local,
                      std::vector<Place>* places) const {
  local->clear();
  places->clear();
  for (QueryRun run : runs) {
    const auto count =
        static_cast<int32_t>(std::clamp<int64_t>(tokens_ - run.first_position, 0, run.num_rows));
    if (count > 0) {
      places->push_back({.from = first_of_[static_cast<size_t>(run.sequence)] +
                                 static_cast<int32_t>(run.first_position),
                         .to = run.row_begin,
                         .count = count});
    }
    if (count == run.num_rows) continue;
    run.row_begin += count;
    run.num_rows -= count;
    run.first_position += count;
    local->push_back(run);
  }
}

void GlobalRows::Select(const SparsityPlan& plan) {
  selections_.resize(plan.patterns.size());
  for (size_t p = 0; p < selections_.size(); ++p) {
    selections_[p].Clear();
    plan.patterns[p]->Select(runs_, &selections_[p]);
  }
}

}  // namespace longstride::model

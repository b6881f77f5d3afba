#include "server/engine/batch_builder.h"

#include <algorithm>

#include "config/base/check.h"

namespace longstride::engine {

void BuildModelInput(const SchedulerState& state, const std::vector<PlannedRun>& runs,
                     model::ModelInput* input) {
  input->num_sequences = static_cast<int32_t>(runs.size());
  input->runs.clear();
  input->token_ids.clear();
  std::vector<const Sequence*> sequences;
  sequences.reserve(runs.size());
  for (const PlannedRun& run : runs) {
    const auto it = state.sequences.find(run.id);
    LS_CHECK(it != state.sequences.end());
    const Sequence& s = *it->second;
    input->runs.push_back({.sequence = static_cast<int32_t>(sequences.size()),
                           .first_position = run.first_position,
                           .num_tokens = run.num_tokens,
                           .num_logits = run.num_logits,
                           .wants_hidden = s.wants_hidden,
                           .rope_variant = s.rope_variant,
                           .numerics = run.numerics});
    const auto begin = s.tokens.begin() + run.first_position;
    input->token_ids.insert(input->token_ids.end(), begin, begin + run.num_tokens);
    sequences.push_back(&s);
  }
  input->page_tables.resize(state.groups.size());
  for (size_t g = 0; g < state.groups.size(); ++g) {
    model::GroupPageTable& table = input->page_tables[g];
    size_t stride = 1;
    for (const Sequence* s : sequences) stride = std::max(stride, s->pages[g].size());
    table.stride = static_cast<int64_t>(stride);
    table.pages.resize(stride * sequences.size());
    auto out = table.pages.begin();
    for (const Sequence* s : sequences) {
      const auto row_end = std::copy(s->pages[g].begin(), s->pages[g].end(), out);
      out += static_cast<ptrdiff_t>(stride);
      std::fill(row_end, out, kernels::kNoPage);
    }
  }
}

}  // namespace longstride::engine

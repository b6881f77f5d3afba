#include "model/step_layout.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace longstride::model {
namespace {

using kernels::kPageTokens;

template <typename... T>
absl::Status Bad(const T&... parts) {
  return absl::InvalidArgumentError(StrCat("model input: ", parts...));
}

// Pages of a padded page table at least, so that short sequences do not change its size often.
constexpr int64_t kLeastStride = 16;

int64_t PagesOf(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

absl::Status CheckRuns(const ModelInput& input, const StepLimits& limits) {
  size_t max_variants = 1;
  for (const RopeSpec& rope : limits.spec->ropes) {
    max_variants = std::max(max_variants, rope.variants.size());
  }
  int64_t tokens = 0;
  int64_t logits = 0;
  int32_t previous = -1;
  for (const InputRun& run : input.runs) {
    if (run.sequence <= previous || run.sequence >= input.num_sequences) {
      return Bad("a run of sequence ", run.sequence, " after ", previous, " of ",
                 input.num_sequences, "; runs are ordered by sequence, one for each at most");
    }
    previous = run.sequence;
    const int64_t end = int64_t{run.first_position} + run.num_tokens;
    if (run.num_tokens < 1 || run.first_position < 0 || end > limits.plan->max_context) {
      return Bad("positions ", run.first_position, " to ", end, " of sequence ", run.sequence,
                 "; allowed are 1 or more tokens below ", limits.plan->max_context);
    }
    if (run.numerics == NumericsClass::kPrompt &&
        run.first_position % limits.plan->chunk_alignment != 0) {
      return Bad("a prompt's run begins at position ", run.first_position,
                 "; under this plan they begin at multiples of ", limits.plan->chunk_alignment);
    }
    if (run.num_logits < 0 || run.num_logits > run.num_tokens) {
      return Bad(run.num_logits, " logits of a run of ", run.num_tokens, " tokens");
    }
    if (run.rope_variant >= max_variants) {
      return Bad("rotary variant ", int{run.rope_variant}, "; the model has ", max_variants);
    }
    tokens += run.num_tokens;
    logits += run.num_logits;
  }
  if (logits > 0 && limits.spec->lm_head.data == nullptr) {
    return Bad("logits of an encoder, which has no output head");
  }
  if (tokens != static_cast<int64_t>(input.token_ids.size())) {
    return Bad(input.token_ids.size(), " token ids for runs of ", tokens);
  }
  if (tokens > limits.max_step_tokens) {
    return Bad(tokens, " tokens; a step takes at most ", limits.max_step_tokens);
  }
  if (logits > limits.max_logits_rows) {
    return Bad(logits, " rows of logits; a step gives at most ", limits.max_logits_rows);
  }
  int32_t chosen = -1;
  for (const TokenChoice& choice : input.choices) {
    if (choice.logits_row <= chosen || choice.logits_row >= logits) {
      return Bad("a choice from row ", choice.logits_row, " after ", chosen, " of ", logits,
                 " rows of logits; choices are ordered by row, one for each at most");
    }
    chosen = choice.logits_row;
  }
  for (const int32_t id : input.token_ids) {
    if (id < 0 || id >= limits.spec->vocab_size) {
      return Bad("token id ", id, "; allowed are 0 to ", limits.spec->vocab_size - 1);
    }
  }
  return absl::OkStatus();
}

// Every page that a query of the run may read, or that its tokens are written to, is there.
absl::Status CheckPages(const InputRun& run, const CacheGroup& group, const GroupPageTable& table,
                        int32_t num_pages) {
  const int64_t end = int64_t{run.first_position} + run.num_tokens;
  const int32_t* pages = table.pages.data() + run.sequence * table.stride;
  const int64_t dead_begin = group.retention.first_dead_page();
  const int64_t dead_end = group.retention.end_dead_page(run.first_position);
  for (int64_t p = 0; p < PagesOf(end); ++p) {
    if (p == dead_begin && dead_end > p) p = dead_end;
    if (pages[p] < 0 || pages[p] >= num_pages) {
      return Bad("logical page ", p, " of sequence ", run.sequence, " in group ", group.name,
                 " is ", pages[p], "; allowed are 0 to ", num_pages - 1);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTables(const ModelInput& input, const StepLimits& limits) {
  const std::vector<CacheGroup>& groups = limits.cache->groups();
  if (input.page_tables.size() != groups.size()) {
    return Bad(input.page_tables.size(), " page tables; there are ", groups.size(),
               " cache groups");
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    const GroupPageTable& table = input.page_tables[g];
    const auto size = static_cast<int64_t>(table.pages.size());
    if (table.stride < 0 ||
        (input.num_sequences > 0 && table.stride > size / input.num_sequences)) {
      return Bad("a page table of ", size, " entries for ", input.num_sequences, " rows of ",
                 table.stride);
    }
    for (const InputRun& run : input.runs) {
      const int64_t end = int64_t{run.first_position} + run.num_tokens;
      if (PagesOf(end) > table.stride) {
        return Bad("a page table row of ", table.stride, " entries for ", end, " tokens");
      }
      RETURN_IF_ERROR(
          CheckPages(run, groups[g], table, limits.cache->num_pages(static_cast<int32_t>(g))));
    }
  }
  return absl::OkStatus();
}

}  // namespace

int32_t PaddedRows(int32_t rows) {
  // Matrix products work on 8 rows or more at a time.
  if (rows <= 8) return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(rows)));
  const int32_t step = rows <= 32 ? 8 : rows <= 64 ? 16 : rows <= 256 ? 32 : 64;
  return (rows + step - 1) / step * step;
}

void StepLayout::Pad(const StepLimits& limits) {
  const int32_t most = std::min(limits.max_step_tokens, limits.max_logits_rows);
  const int32_t rows = std::max(num_rows, std::min(PaddedRows(num_rows), most));
  const auto size = static_cast<size_t>(rows);
  token_ids.resize(size, 0);
  positions.resize(size, 0);
  slots.resize(size, 0);
  for (std::vector<int32_t>& ids : page_ids) ids.resize(size, kernels::kNoPage);
  for (size_t g = 0; g < written_pages.size(); ++g) {
    // One page a row, where the group has summaries.
    if (written_pages[g].empty()) continue;
    written_pages[g].resize(size, kernels::kNoPage);
    written_counts[g].resize(size, 1);
  }
  kv_lens.resize(size, 0);
  generated.resize(size, 1);
  for (int32_t r = num_rows; r < rows; ++r) {
    wanted.push_back(r);
    logits_rows.push_back(r);
  }
  rope_spans.back().num_rows += rows - num_rows;
  padded_pages_.resize(page_tables.size());
  for (size_t g = 0; g < page_tables.size(); ++g) {
    kernels::PageTable& table = page_tables[g];
    const auto stride = static_cast<int64_t>(
        std::bit_ceil(static_cast<uint64_t>(std::max(table.stride, kLeastStride))));
    std::vector<int32_t>& pages = padded_pages_[g];
    pages.resize(static_cast<size_t>(stride * rows));
    for (int64_t s = 0; s < rows; ++s) {
      const auto to = pages.begin() + s * stride;
      std::fill_n(to, stride, kernels::kNoPage);
      if (s < num_sequences) std::copy_n(table.pages + s * table.stride, table.stride, to);
    }
    table = {.pages = pages.data(), .stride = stride, .num_sequences = rows};
  }
  num_rows = num_sequences = rows;
  padded = true;
}

void StepLayout::SetIdle(int32_t rows, int32_t sequences, NumericsClass numerics,
                         size_t num_groups, int32_t context) {
  const auto size = static_cast<size_t>(rows);
  num_rows = rows;
  num_sequences = sequences;
  padded = true;
  token_ids.assign(size, 0);
  positions.assign(size, 0);
  slots.assign(size, 0);
  page_ids.assign(num_groups, std::vector<int32_t>(size, kernels::kNoPage));
  written_pages.assign(num_groups, {});
  written_counts.assign(num_groups, {});
  kv_lens.assign(static_cast<size_t>(sequences), 0);
  generated.assign(static_cast<size_t>(sequences), numerics == NumericsClass::kGenerated);
  runs.clear();
  wanted_runs.clear();
  rope_spans = {{0, rows, 0}};
  wanted.resize(size);
  std::iota(wanted.begin(), wanted.end(), 0);
  logits_rows = wanted;
  hidden_rows.clear();
  keys_all_rows = keys_wanted_rows = 0;
  const auto stride = static_cast<int64_t>(
      std::bit_ceil(static_cast<uint64_t>(std::max(PagesOf(context), kLeastStride))));
  padded_pages_.assign(num_groups,
                       std::vector<int32_t>(static_cast<size_t>(stride * sequences),
                                            kernels::kNoPage));
  page_tables.clear();
  for (const std::vector<int32_t>& pages : padded_pages_) {
    page_tables.push_back({.pages = pages.data(), .stride = stride, .num_sequences = sequences});
  }
}

absl::Status StepLayout::Set(const ModelInput& input, const StepLimits& limits) {
  if (input.num_sequences < 0) return Bad(input.num_sequences, " sequences");
  RETURN_IF_ERROR(CheckRuns(input, limits));
  RETURN_IF_ERROR(CheckTables(input, limits));

  num_rows = static_cast<int32_t>(input.token_ids.size());
  num_sequences = input.num_sequences;
  padded = false;
  token_ids = input.token_ids;
  page_tables.clear();
  for (const GroupPageTable& table : input.page_tables) {
    page_tables.push_back({.pages = table.pages.data(),
                           .stride = table.stride,
                           .num_sequences = num_sequences});
  }
  decodes_only = num_rows > 0 && std::ssize(input.runs) == num_sequences;
  positions.clear();
  slots.clear();
  runs.clear();
  rope_spans.clear();
  wanted.clear();
  wanted_runs.clear();
  logits_rows.clear();
  hidden_rows.clear();
  keys_all_rows = keys_wanted_rows = 0;
  kv_lens.assign(static_cast<size_t>(input.num_sequences), 0);
  generated.assign(static_cast<size_t>(input.num_sequences), 0);
  page_ids.resize(input.page_tables.size());
  for (std::vector<int32_t>& ids : page_ids) ids.clear();
  written_pages.resize(page_ids.size());
  written_counts.resize(page_ids.size());
  for (std::vector<int32_t>& ids : written_pages) ids.clear();
  for (std::vector<int32_t>& counts : written_counts) counts.clear();

  for (const InputRun& run : input.runs) {
    const auto row_begin = static_cast<int32_t>(positions.size());
    const int32_t wanted_tokens = run.wants_hidden ? run.num_tokens : run.num_logits;
    const int32_t first_wanted = run.num_tokens - wanted_tokens;
    decodes_only = decodes_only && run.num_tokens == 1 && run.num_logits == 1 &&
                   !run.wants_hidden && run.numerics == NumericsClass::kGenerated;
    generated[static_cast<size_t>(run.sequence)] = run.numerics == NumericsClass::kGenerated;
    const int32_t kv_len = run.first_position + run.num_tokens;
    kv_lens[static_cast<size_t>(run.sequence)] = kv_len;
    runs.push_back(
        {run.sequence, row_begin, run.num_tokens, run.first_position, run.numerics, kv_len});
    if (wanted_tokens > 0) {
      wanted_runs.push_back({run.sequence, static_cast<int32_t>(wanted.size()), wanted_tokens,
                             int64_t{run.first_position} + first_wanted, run.numerics, kv_len});
    }
    if (!rope_spans.empty() && rope_spans.back().variant == run.rope_variant) {
      rope_spans.back().num_rows += run.num_tokens;
    } else {
      rope_spans.push_back({row_begin, run.num_tokens, run.rope_variant});
    }
    for (int32_t t = 0; t < run.num_tokens; ++t) {
      const int32_t position = run.first_position + t;
      const int32_t keys = limits.spec->causal ? position + 1 : kv_len;
      positions.push_back(position);
      slots.push_back(position % kPageTokens);
      keys_all_rows += keys;
      if (t < first_wanted) continue;
      const auto index = static_cast<int32_t>(wanted.size());
      if (t >= run.num_tokens - run.num_logits) logits_rows.push_back(index);
      if (run.wants_hidden) hidden_rows.push_back(index);
      wanted.push_back(row_begin + t);
      keys_wanted_rows += keys;
    }
    for (size_t g = 0; g < page_ids.size(); ++g) {
      const GroupPageTable& table = input.page_tables[g];
      const int32_t* pages = table.pages.data() + run.sequence * table.stride;
      for (int32_t t = 0; t < run.num_tokens; ++t) {
        page_ids[g].push_back(pages[(run.first_position + t) / kPageTokens]);
      }
      if (!limits.cache->groups()[g].summaries) continue;
      const int32_t end = run.first_position + run.num_tokens;
      for (int32_t p = run.first_position / kPageTokens; p * kPageTokens < end; ++p) {
        written_pages[g].push_back(pages[p]);
        written_counts[g].push_back(std::min(end - p * kPageTokens, kPageTokens));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::model

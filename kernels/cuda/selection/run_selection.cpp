#include "kernels/cuda/selection/run_selection.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/selection/selection.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int64_t kMaxScores = int64_t{16} << 20;  // of one launch: 64 MiB

}  // namespace

absl::Status RunSummarizePages(const PageSummaryParams& p, StepArrays& arrays,
                               DeviceContext& context) {
  PageSummaryParams d = p;
  ASSIGN_OR_RETURN(d.page_ids, arrays.OnDevice(p.page_ids, p.num_pages));
  ASSIGN_OR_RETURN(d.counts, arrays.OnDevice(p.counts, p.num_pages));
  return context.Check(LaunchSummarizePages(d, context.stream()), "SummarizePages");
}

bool AddsOneKeyToEach(const KvWriteParams& p, const PageSummaryParams& summaries) {
  if (p.k.shape[0] != summaries.num_pages || p.cache.dtype == KvDType::kQ8) return false;
  for (int32_t r = 0; r < summaries.num_pages; ++r) {
    if (summaries.page_ids[r] != p.page_ids[r]) return false;
    if (p.page_ids[r] != kNoPage && summaries.counts[r] != p.slots[r] + 1) return false;
  }
  return true;
}

absl::Status RunAddKeys(const KvWriteParams& p, StepArrays& arrays, DeviceContext& context) {
  KvWriteParams d = p;
  ASSIGN_OR_RETURN(d.page_ids, arrays.OnDevice(p.page_ids, p.k.shape[0]));
  ASSIGN_OR_RETURN(d.slots, arrays.OnDevice(p.slots, p.k.shape[0]));
  return context.Check(LaunchAddKeys(d, context.stream()), "KvWrite");
}

absl::Status RunSelectPages(const SelectPagesParams& p, StepArrays& arrays,
                            DeviceContext& context) {
  const int64_t heads = p.q.shape[1];
  const int64_t list_heads = p.list_heads == ListHeads::kPerKvHead ? p.cache.num_heads : heads;
  SelectLaunch launch{.max_pages = p.max_candidates, .one_row = true};
  for (int32_t t = 0; t < p.num_tiles; ++t) {
    launch.max_pages = std::max(launch.max_pages, CandidatePages(p.tiles[t]));
    launch.one_row = launch.one_row && p.tiles[t].num_rows == 1;
  }
  if (p.num_tiles == 0) return absl::OkStatus();
  SelectPagesParams d = p;
  ASSIGN_OR_RETURN(d.tiles, arrays.OnDevice(p.tiles, p.num_tiles));
  ASSIGN_OR_RETURN(d.counts, arrays.OnDevice(p.counts, p.num_tiles));
  ASSIGN_OR_RETURN(d.list_begin, arrays.OnDevice(p.list_begin, list_heads * p.num_tiles));
  ASSIGN_OR_RETURN(d.page_table.pages,
                   arrays.OnDevice(p.page_table.pages,
                                   p.page_table.num_sequences * p.page_table.stride));
  if (!UsesSummaries(p.score)) return SelectByShares(p, d, arrays, context);
  const bool compressed = p.score == PageScore::kCompressedKeys;
  const int64_t scores_of_page = list_heads + (compressed ? heads * kPageSegments : 0);
  const auto at_once = static_cast<int32_t>(std::clamp<int64_t>(
      kMaxScores / (scores_of_page * launch.max_pages), 1, std::min(p.num_tiles, 32768)));
  for (int32_t t = 0; t < p.num_tiles; t += at_once) {
    launch.first_tile = t;
    launch.num_tiles = std::min(at_once, p.num_tiles - t);
    Scratch scratch(context);
    ASSIGN_OR_RETURN(launch.scores,
                     scratch.Take<float>(list_heads * launch.num_tiles * launch.max_pages));
    if (compressed) {
      ASSIGN_OR_RETURN(launch.products, scratch.Take<float>(launch.num_tiles * heads *
                                                            launch.max_pages * kPageSegments));
      ASSIGN_OR_RETURN(launch.norms, scratch.Take<float>(launch.num_tiles * heads * 2));
    } else if (!launch.one_row) {
      ASSIGN_OR_RETURN(launch.pooled, scratch.Take<float>(launch.num_tiles * heads *
                                                          int64_t{p.cache.head_dim}));
    }
    RETURN_IF_ERROR(
        context.Check(LaunchSelectPages(d, launch, context.stream()), "SelectPages"));
  }
  return absl::OkStatus();
}

absl::Status RunSelectTokens(const SelectTokensParams& p, StepArrays& arrays,
                             DeviceContext& context) {
  if (p.num_tiles == 0) return absl::OkStatus();
  const PageTable& table = p.page_table;
  std::vector<int64_t> needed(static_cast<size_t>(table.num_sequences), 0);  // pages
  for (int32_t t = 0; t < p.num_tiles; ++t) {
    if (p.counts[t] == 0 || p.counts[t] == CandidateTokens(p.tiles[t])) continue;
    int64_t& pages = needed[static_cast<size_t>(p.tiles[t].sequence)];
    pages = std::max(pages, CandidatePages(p.tiles[t]));
  }
  for (int64_t sequence = 0; sequence < table.num_sequences; ++sequence) {
    for (int64_t page = 0; page < needed[static_cast<size_t>(sequence)]; ++page) {
      const int32_t id = table.pages[sequence * table.stride + page];
      if (id >= 0 && id < p.cache.num_pages) continue;
      return absl::InternalError(StrCat("SelectTokens: logical page ", page,
                                        " is a candidate but its sequence does not hold it"));
    }
  }
  SelectTokensParams d = p;
  ASSIGN_OR_RETURN(d.tiles, arrays.OnDevice(p.tiles, p.num_tiles));
  ASSIGN_OR_RETURN(d.counts, arrays.OnDevice(p.counts, p.num_tiles));
  ASSIGN_OR_RETURN(d.list_begin, arrays.OnDevice(p.list_begin, p.num_tiles));
  ASSIGN_OR_RETURN(d.page_table.pages,
                   arrays.OnDevice(table.pages, table.num_sequences * table.stride));
  // By the page table's width, not by lengths: launches of repeated steps are recorded.
  TokenLaunch launch{.max_tokens = table.stride * kPageTokens};
  const auto at_once = static_cast<int32_t>(
      std::clamp<int64_t>(kMaxScores / launch.max_tokens, 1, std::min(p.num_tiles, 32768)));
  Scratch scratch(context);
  ASSIGN_OR_RETURN(launch.scores, scratch.Take<float>(at_once * launch.max_tokens));
  for (int32_t t = 0; t < p.num_tiles; t += at_once) {
    launch.first_tile = t;
    launch.num_tiles = std::min(at_once, p.num_tiles - t);
    RETURN_IF_ERROR(context.Check(LaunchSelectTokens(d, launch, context.stream()), "SelectTokens"));
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cuda

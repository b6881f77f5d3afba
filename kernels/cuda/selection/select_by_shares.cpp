// SelectPages by shares of attention: what the host knows from positions alone, scratch, launches.
#include <algorithm>
#include <vector>

#include "kernels/cuda/attention/convert.h"
#include "kernels/cuda/selection/page_shares.h"
#include "kernels/cuda/selection/run_selection.h"
#include "kernels/take_pages.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int64_t kMaxPageValues = int64_t{32} << 20;  // of one launch: 128 MiB

// Runs of probes that follow each other in a sequence fill blocks of rows together, which read keys once.
// Probes of one row take part in none.
std::vector<RowBlock> FindRowBlocks(const std::vector<QueryTile>& probes, int32_t group,
                                    int32_t groups) {
  std::vector<RowBlock> blocks;
  const int32_t pairs_of_block = kBlockRows / groups;
  for (size_t begin = 0; begin < probes.size();) {
    size_t end = begin + 1;
    if (probes[begin].num_rows > 1) {
      while (end < probes.size() && probes[end].num_rows > 1 &&
             probes[end].sequence == probes[begin].sequence &&
             probes[end].first_position ==
                 probes[end - 1].first_position + probes[end - 1].num_rows) {
        ++end;
      }
      const auto pairs = static_cast<int32_t>(end - begin) * group;
      for (int32_t at = 0; at < pairs; at += pairs_of_block) {
        blocks.push_back({.first_probe = static_cast<int32_t>(begin) + at / group,
                          .first_head = at % group,
                          .num_pairs = std::min(pairs_of_block, pairs - at)});
      }
    }
    begin = end;
  }
  return blocks;
}

// Tensor cores take what their copies can; a function of the layer's shape alone.
bool TakesHalf(const SelectPagesParams& p) {
  return (p.cache.dtype == KvDType::kF16 || p.cache.dtype == KvDType::kBF16) &&
         p.cache.head_dim % 8 == 0 && (p.q.strides[0] | p.q.strides[1]) % 4 == 0 &&
         (p.cache.page_stride | p.cache.head_stride) % 16 == 0;
}

class ShareSelection {
 public:
  // `device`: p with its arrays in device memory.
  ShareSelection(const SelectPagesParams& p, const SelectPagesParams& device, StepArrays& arrays,
                 DeviceContext& context)
      : p_(p),
        device_(device),
        arrays_(arrays),
        context_(context),
        heads_(static_cast<int32_t>(p.q.shape[1])),
        group_(heads_ / p.cache.num_heads),
        list_heads_(p.list_heads == ListHeads::kPerKvHead ? p.cache.num_heads : heads_) {
    launch_.heads_per_list = heads_ / list_heads_;
  }

  absl::Status Antidiagonal() {
    launch_.fold = p_.stride;
    launch_.groups = 1;
    for (int32_t t = 0; t < p_.num_tiles; ++t) {
      const int32_t rows = p_.tiles[t].num_rows;
      if (rows == 1) continue;
      if (rows > kBlockRows) {
        return absl::InternalError(StrCat("SelectPages: expected tiles of up to ", kBlockRows,
                                          " rows, got ", rows));
      }
      launch_.groups = std::max(launch_.groups, (rows + p_.stride - 1) / p_.stride);
    }
    Scratch whole(context_);
    const bool scores = p_.mass < 1.0f && HasRows();
    if (scores) RETURN_IF_ERROR(ConvertQueries(whole));
    const int64_t of_tile = int64_t{heads_} * launch_.groups * MostPages(p_.tiles, p_.num_tiles);
    const auto at_once = static_cast<int32_t>(std::clamp<int64_t>(
        scores ? kMaxPageValues / of_tile : 32768, 1, std::min(p_.num_tiles, 32768)));
    for (int32_t t = 0; t < p_.num_tiles; t += at_once) {
      const std::vector<QueryTile> tiles(p_.tiles + t,
                                         p_.tiles + std::min(p_.num_tiles, t + at_once));
      Scratch scratch(context_);
      uint32_t* shares = nullptr;
      launch_.probes = device_.tiles + t;
      if (scores) {
        RETURN_IF_ERROR(ScorePages(tiles, scratch));
        ASSIGN_OR_RETURN(shares, scratch.Take<uint32_t>(launch_.num_probes * int64_t{list_heads_} *
                                                        launch_.max_pages));
      }
      launch_.num_probes = static_cast<int32_t>(tiles.size());
      RETURN_IF_ERROR(Check(LaunchTakeByShares(device_, launch_, t, shares, context_.stream())));
    }
    return absl::OkStatus();
  }

  absl::Status Pooled() {
    Scratch whole(context_);
    PooledLaunch l{.heads_per_list = launch_.heads_per_list};
    const bool scores = p_.mass < 1.0f && HasRows();
    if (scores) {
      ASSIGN_OR_RETURN(l.pages, PageMeansOf(whole));
    }
    l.shares_pitch = l.pages.max_pages;
    slot_of_.resize(static_cast<size_t>(p_.num_tiles), -1);
    const int64_t of_tile = scores ? list_heads_ * l.pages.max_pages : 1;
    const auto at_once = static_cast<int32_t>(
        std::clamp<int64_t>(kMaxPageValues / of_tile, 1, std::min(p_.num_tiles, 32768)));
    for (int32_t t = 0; t < p_.num_tiles; t += at_once) {
      Scratch scratch(context_);
      const int32_t count = std::min(at_once, p_.num_tiles - t);
      l.tiles = device_.tiles + t;
      const std::vector<int32_t> slots(slot_of_.begin() + t, slot_of_.begin() + t + count);
      RETURN_IF_ERROR(ShareOut(slots, scores, scratch, &l));
      RETURN_IF_ERROR(Check(LaunchTakePooled(device_, l, t, context_.stream())));
    }
    return absl::OkStatus();
  }

  absl::Status VerticalSlashes() {
    const std::vector<ProbedTiles> probed = FindProbedTiles(p_);
    launch_.groups = kProbeRows;
    Scratch whole(context_);
    if (HasRows()) RETURN_IF_ERROR(ConvertQueries(whole));
    if (HasRows() && p_.divergence > 0) {
      ASSIGN_OR_RETURN(page_means_, PageMeansOf(whole));
    }
    for (size_t begin = 0; begin < probed.size();) {
      std::vector<QueryTile> probes;
      std::vector<int32_t> probe_of, slots;  // slots: of the probes' sequences
      int64_t pages = 0;
      size_t end = begin;
      for (; end < probed.size() && probe_of.size() < 32768; ++end) {
        const ProbedTiles& s = probed[end];
        const int32_t rows = s.end_row - s.first_row;
        const bool alone = p_.tiles[s.begin].num_rows == 1;
        if (!alone) {
          const int64_t most = std::max(pages, s.last_position / kPageTokens + 1);
          if (!probes.empty() &&
              static_cast<int64_t>(probes.size() + 1) * ValuesOfProbe(most) > kMaxPageValues) {
            break;
          }
          pages = most;
          probes.push_back({p_.tiles[s.begin].sequence, s.first_row, rows,
                            static_cast<int32_t>(s.last_position) - rows + 1});
          if (p_.divergence > 0) slots.push_back(slot_of_[static_cast<size_t>(s.begin)]);
        }
        probe_of.insert(probe_of.end(), static_cast<size_t>(s.end - s.begin),
                        alone ? -1 : static_cast<int32_t>(probes.size()) - 1);
      }
      RETURN_IF_ERROR(OfProbes(probes, slots, probe_of, probed[begin].begin));
      begin = end;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Check(cudaError_t error) { return context_.Check(error, "SelectPages"); }

  bool HasRows() const {
    return std::any_of(p_.tiles, p_.tiles + p_.num_tiles,
                       [](const QueryTile& t) { return t.num_rows > 1; });
  }
  static int64_t MostPages(const QueryTile* tiles, int32_t count) {
    int64_t most = 1;
    for (int32_t t = 0; t < count; ++t) {
      if (tiles[t].num_rows > 1) most = std::max(most, CandidatePages(tiles[t]));
    }
    return most;
  }
  int64_t ValuesOfProbe(int64_t pages) const {
    const int64_t lists = p_.mass > 0 ? 2 * kPageTokens : 0;
    return pages * (heads_ * (kProbeRows + kPageTokens + kDiagonalSlots) + list_heads_ * lists);
  }

  absl::Status ConvertQueries(Scratch& scratch) {
    if (!TakesHalf(p_)) return absl::OkStatus();
    ASSIGN_OR_RETURN(uint16_t* q, scratch.Take<uint16_t>(p_.q.num_elements()));
    const DType type = p_.cache.dtype == KvDType::kF16 ? DType::kF16 : DType::kBF16;
    launch_.half_q = q;
    return Check(LaunchToHalf(p_.q, TensorView::Contiguous(q, type, p_.q.shape, 3, Device::kCuda),
                              context_.stream()));
  }

  // page_logs and row_logs of `probes`, which lie at launch_.probes on the device.
  absl::Status ScorePages(const std::vector<QueryTile>& probes, Scratch& scratch) {
    const std::vector<RowBlock> blocks = FindRowBlocks(probes, group_, launch_.groups);
    launch_.num_probes = static_cast<int32_t>(probes.size());
    launch_.max_pages = MostPages(probes.data(), launch_.num_probes);
    launch_.num_blocks = static_cast<int32_t>(blocks.size());
    if (!blocks.empty()) {
      ASSIGN_OR_RETURN(launch_.blocks, arrays_.Copy(blocks.data(), launch_.num_blocks));
    }
    const int64_t rows = int64_t{launch_.num_probes} * heads_ * launch_.groups;
    ASSIGN_OR_RETURN(launch_.page_logs, scratch.Take<float>(rows * launch_.max_pages));
    ASSIGN_OR_RETURN(launch_.row_logs, scratch.Take<float>(rows));
    return Check(LaunchPageLogs(device_, launch_, context_.stream()));
  }

  // Also slot_of_. One of a call's tiles has rows.
  absl::StatusOr<PageMeans> PageMeansOf(Scratch& scratch) {
    const std::vector<PooledSequence> sequences = FindPooledSequences(p_, &slot_of_);
    std::vector<int32_t> ids, ends;
    PageMeans out;
    for (const PooledSequence& s : sequences) {
      ids.push_back(s.sequence);
      ends.push_back(static_cast<int32_t>(s.end));
      out.max_pages = std::max(out.max_pages, (s.end + kPageTokens - 1) / kPageTokens);
    }
    out.num_slots = static_cast<int32_t>(ids.size());
    ASSIGN_OR_RETURN(out.sequences, arrays_.Copy(ids.data(), out.num_slots));
    ASSIGN_OR_RETURN(out.ends, arrays_.Copy(ends.data(), out.num_slots));
    const int64_t rows = out.num_slots * out.max_pages * p_.cache.num_heads;
    ASSIGN_OR_RETURN(out.means, scratch.Take<float>(rows * p_.cache.head_dim));
    ASSIGN_OR_RETURN(out.cosines, scratch.Take<float>(rows));
    RETURN_IF_ERROR(Check(LaunchPageMeans(device_, out, context_.stream())));
    return out;
  }

  // Sets the rest of *l for tiles of these slots; without `scores` no more than what names them.
  absl::Status ShareOut(const std::vector<int32_t>& slots, bool scores, Scratch& scratch,
                        PooledLaunch* l) {
    l->num_tiles = static_cast<int32_t>(slots.size());
    ASSIGN_OR_RETURN(l->slot_of, arrays_.Copy(slots.data(), l->num_tiles));
    if (!scores) return absl::OkStatus();
    const int64_t rows = int64_t{l->num_tiles} * heads_;
    ASSIGN_OR_RETURN(l->means, scratch.Take<float>(rows * p_.cache.head_dim));
    ASSIGN_OR_RETURN(l->cosines, scratch.Take<float>(rows));
    ASSIGN_OR_RETURN(l->shares,
                     scratch.Take<float>(int64_t{l->num_tiles} * list_heads_ * l->shares_pitch));
    return Check(LaunchPooledShares(device_, *l, context_.stream()));
  }

  absl::Status OfProbes(const std::vector<QueryTile>& probes, const std::vector<int32_t>& slots,
                        const std::vector<int32_t>& probe_of, int32_t first_tile) {
    Scratch scratch(context_);
    VerticalSlashLaunch v;
    if (!probes.empty()) {
      ASSIGN_OR_RETURN(launch_.probes,
                       arrays_.Copy(probes.data(), static_cast<int64_t>(probes.size())));
      RETURN_IF_ERROR(ScorePages(probes, scratch));
      const int64_t pages = launch_.max_pages * launch_.num_probes;
      ASSIGN_OR_RETURN(v.columns, scratch.Take<float>(pages * heads_ * kPageTokens));
      ASSIGN_OR_RETURN(v.diagonals, scratch.Take<float>(pages * heads_ * kDiagonalSlots));
      if (p_.mass > 0) {
        ASSIGN_OR_RETURN(v.weights, scratch.Take<float>(pages * list_heads_ * 2 * kPageTokens));
      }
      ASSIGN_OR_RETURN(v.heaviest, scratch.Take<float>(pages * list_heads_ * 2));
      ASSIGN_OR_RETURN(v.chosen, scratch.Take<uint8_t>(pages * list_heads_ * 2));
      if (p_.divergence > 0)
        RETURN_IF_ERROR(ShareByMeans(slots, probe_of, first_tile, scratch, &v));
      RETURN_IF_ERROR(
          Check(LaunchProbes(device_, launch_, v.columns, v.diagonals, context_.stream())));
      RETURN_IF_ERROR(Check(LaunchChooseVerticalSlash(device_, launch_, v, context_.stream())));
    }
    v.first_tile = first_tile;
    v.num_tiles = static_cast<int32_t>(probe_of.size());
    ASSIGN_OR_RETURN(v.probe_of, arrays_.Copy(probe_of.data(), v.num_tiles));
    return Check(LaunchTakeVerticalSlash(device_, launch_, v, context_.stream()));
  }

  // What decides on query-aware lists, and makes them. The pitch of shares is that of launch_.
  absl::Status ShareByMeans(const std::vector<int32_t>& slots, const std::vector<int32_t>& probe_of,
                            int32_t first_tile, Scratch& scratch, VerticalSlashLaunch* v) {
    PooledLaunch l{.pages = page_means_, .heads_per_list = launch_.heads_per_list};
    l.shares_pitch = launch_.max_pages;
    l.tiles = launch_.probes;
    RETURN_IF_ERROR(ShareOut(slots, true, scratch, &l));
    v->probe_shares = l.shares;
    l.tiles = device_.tiles + first_tile;
    RETURN_IF_ERROR(
        ShareOut({slot_of_.begin() + first_tile,
                  slot_of_.begin() + first_tile + static_cast<int64_t>(probe_of.size())},
                 true, scratch, &l));
    v->tile_shares = l.shares;
    ASSIGN_OR_RETURN(v->query_aware,
                     scratch.Take<uint8_t>(static_cast<int64_t>(slots.size()) * list_heads_));
    return absl::OkStatus();
  }

  const SelectPagesParams& p_;
  const SelectPagesParams& device_;
  StepArrays& arrays_;
  DeviceContext& context_;
  const int32_t heads_, group_, list_heads_;
  ShareLaunch launch_;
  PageMeans page_means_;
  std::vector<int32_t> slot_of_;  // [num_tiles]
};

}  // namespace

absl::Status SelectByShares(const SelectPagesParams& p, const SelectPagesParams& device,
                            StepArrays& arrays, DeviceContext& context) {
  ShareSelection selection(p, device, arrays, context);
  if (p.score == PageScore::kPooled) return selection.Pooled();
  return p.score == PageScore::kAntidiagonal ? selection.Antidiagonal()
                                             : selection.VerticalSlashes();
}

}  // namespace longstride::kernels::cuda

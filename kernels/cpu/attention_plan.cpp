#include "kernels/cpu/attention_plan.h"

#include <algorithm>

#include "kernels/cpu/key_walker.h"

namespace longstride::kernels::cpu {
namespace {

// Fills a unit's segments and cost from the entries that its rows may see.
void Estimate(const AttentionParams& p, const std::vector<AttentionPlan::Row>& rows,
              AttentionPlan::Unit* unit) {
  const KvSelection& s = p.selection;
  const EdgeRule& edge = s.edges[unit->list_head];
  const int64_t kv_len = p.kv_lens[unit->sequence];
  int64_t low = INT64_MAX, high = -1, sink_low = INT64_MAX, sink_high = -1;
  for (int32_t r = 0; r < unit->num_rows; ++r) {
    const VisibleRange range = RangeOf(edge, rows[unit->first_row + r].position, kv_len);
    low = std::min(low, range.low);
    high = std::max(high, range.high);
    sink_low = std::min(sink_low, range.sink_low);
    sink_high = std::max(sink_high, range.sink_high);
  }
  const int32_t* entries = s.entries + unit->list_begin;
  int64_t first = -1, last = -1, keys = 0;
  for (int32_t n = 0; n < unit->list_count; ++n) {
    if (entries[n] < 0) continue;
    const int64_t begin = int64_t{entries[n]} * s.entry_tokens;
    const int64_t end = begin + s.entry_tokens - 1;
    const bool seen = (end >= low && begin <= high) || (end >= sink_low && begin <= sink_high);
    if (!seen) continue;
    if (first < 0) first = begin / kAttentionSegment;
    last = begin / kAttentionSegment;
    keys += s.entry_tokens;
  }
  unit->first_segment = std::max<int64_t>(first, 0);
  unit->num_segments = first < 0 ? 0 : last - first + 1;
  // Converting a key costs about as much as scoring it for six rows.
  unit->cost = keys * (unit->packed_rows() + 6);
}

}  // namespace

void AttentionPlan::AddUnits(const AttentionParams& p, Unit unit, int64_t first_row,
                             int64_t end_row) {
  const int64_t max_rows = std::max(1, kMaxPackedRows / unit.num_heads);
  for (int64_t r = first_row; r < end_row; r += max_rows) {
    unit.first_row = r;
    unit.num_rows = static_cast<int32_t>(std::min(max_rows, end_row - r));
    unit.list_count = 0;
    for (int64_t i = r; i < r + unit.num_rows; ++i) {
      unit.list_count = std::max(unit.list_count, rows[i].limit);
    }
    Estimate(p, rows, &unit);
    units.push_back(unit);
  }
}

void AttentionPlan::PlanListHead(const AttentionParams& p, int32_t list_head, int32_t first_head,
                                 int32_t num_heads) {
  const KvSelection& s = p.selection;
  const int64_t lists = int64_t{list_head} * s.num_tiles;
  listed_.clear();
  for (int32_t t = 0; t < s.num_tiles; ++t) {
    listed_.push_back({s.tiles[t].sequence, s.list_begin[lists + t], t});
  }
  // Rows that read prefixes of one token list (a residue class of the strided pattern) are computed
  // together: they share its keys.
  const bool tokens = s.entry_tokens == 1;
  if (tokens) {
    std::sort(listed_.begin(), listed_.end(), [&](const ListedTile& a, const ListedTile& b) {
      if (a.sequence != b.sequence) return a.sequence < b.sequence;
      if (a.list_begin != b.list_begin) return a.list_begin < b.list_begin;
      return a.tile < b.tile;
    });
  }
  for (size_t begin = 0; begin < listed_.size();) {
    const auto first_row = static_cast<int64_t>(rows.size());
    size_t end = begin;
    do {
      const QueryTile& tile = s.tiles[listed_[end].tile];
      for (int32_t r = 0; r < tile.num_rows; ++r) {
        rows.push_back(
            {tile.row_begin + r, tile.first_position + r, s.list_count[lists + listed_[end].tile]});
      }
      ++end;
    } while (tokens && end < listed_.size() && listed_[end].sequence == listed_[begin].sequence &&
             listed_[end].list_begin == listed_[begin].list_begin);
    Unit unit;
    unit.sequence = listed_[begin].sequence;
    unit.list_head = list_head;
    unit.first_head = first_head;
    unit.num_heads = num_heads;
    unit.list_begin = listed_[begin].list_begin;
    AddUnits(p, unit, first_row, static_cast<int64_t>(rows.size()));
    begin = end;
  }
}

void AttentionPlan::PlanTasks(const AttentionParams& p, int num_threads) {
  const int64_t padded_dim = (p.cache.head_dim + 15) / 16 * 16;
  int64_t total = 0;
  for (const Unit& unit : units) total += unit.cost;
  // A unit above this share of the work is cut by its segments.
  const int64_t share = std::max<int64_t>(1, total / (4 * int64_t{num_threads}));
  for (size_t u = 0; u < units.size(); ++u) {
    Unit& unit = units[u];
    const int64_t wanted = num_threads == 1 ? 1 : (unit.cost + share - 1) / share;
    const int64_t count = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, unit.num_segments));
    if (count > 1) {
      unit.partial = partial_floats;
      unit.counter = static_cast<int32_t>(pieces.size());
      pieces.push_back(static_cast<int32_t>(count));
      partial_floats += unit.num_segments * PartialFloats(unit.packed_rows(), padded_dim);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = unit.num_segments * i / count;
      const int64_t end = unit.num_segments * (i + 1) / count;
      tasks.push_back(
          {static_cast<int32_t>(u), unit.first_segment + begin, end - begin, unit.cost / count});
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.cost > b.cost; });
}

void AttentionPlan::Build(const AttentionParams& p, int num_threads) {
  rows.clear();
  units.clear();
  tasks.clear();
  pieces.clear();
  partial_floats = 0;
  const auto heads = static_cast<int32_t>(p.q.shape[1]);
  const int32_t group = heads / p.cache.num_heads;
  const bool per_q_head = p.selection.list_heads == ListHeads::kPerQHead;
  const int32_t step = per_q_head ? 1 : std::min(group, kMaxPackedRows);
  for (int32_t kv_head = 0; kv_head < p.cache.num_heads; ++kv_head) {
    for (int32_t h = kv_head * group; h < (kv_head + 1) * group; h += step) {
      const int32_t list_head = p.selection.list_heads == ListHeads::kShared ? 0
                                : per_q_head                                 ? h
                                                                             : kv_head;
      PlanListHead(p, list_head, h, std::min(step, (kv_head + 1) * group - h));
    }
  }
  PlanTasks(p, num_threads);
}

}  // namespace longstride::kernels::cpu

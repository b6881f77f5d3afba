#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/key_walker.h"
#include "kernels/reference/reference_backend.h"

namespace longstride::kernels::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The first thing that a thread found wrong; others stop at their next block.
class FirstError {
 public:
  bool failed() const { return state_.load(std::memory_order_relaxed) != 0; }
  void Set(const char* what, int64_t sequence, int64_t position, int64_t got) {
    int expected = 0;
    if (!state_.compare_exchange_strong(expected, 1)) return;
    what_ = what;
    sequence_ = sequence;
    position_ = position;
    got_ = got;
  }
  // After all threads have joined.
  absl::Status status() const {
    if (!failed()) return absl::OkStatus();
    return absl::InternalError(StrCat("Attention: sequence ", sequence_, ", position ", position_,
                                      ": ", what_, " ", got_));
  }

 private:
  std::atomic<int> state_{0};
  const char* what_ = "";
  int64_t sequence_ = 0, position_ = 0, got_ = 0;
};

// What a unit's rows have in common, from which most blocks are classified without looking at rows.
struct UnitRange {
  int64_t min_low = INT64_MAX, max_low = 0;
  int64_t min_high = INT64_MAX, max_high = -1;
  int64_t sink_high = -1;
  int32_t min_limit = INT32_MAX;
};

// One thread's working memory for one task.
struct Worker {
  AttentionTile tile;
  SoftmaxState segment;
  SoftmaxState total;
  VisibleRange* ranges;  // [rows]
  uint64_t* masks;       // [packed rows]
  float* keys;
  float* values;
  UnitRange common;
  KvRows k, v;
  float* q;
  KeyBlock block;
  int64_t keys_visible = 0;

  Worker(Carver& c, int64_t max_packed, int64_t dim, int64_t padded_dim) {
    tile.head_dim = static_cast<int32_t>(dim);
    tile.padded_dim = static_cast<int32_t>(padded_dim);
    tile.q = q = c.Take<float>(max_packed * dim);
    tile.scores = c.Take<float>(max_packed * kKeyBlock);
    for (SoftmaxState* state : {&segment, &total}) {
      state->max = c.Take<float>(max_packed);
      state->sum = c.Take<float>(max_packed);
      state->acc = c.Take<float>(max_packed * padded_dim);
    }
    ranges = c.Take<VisibleRange>(max_packed);
    masks = c.Take<uint64_t>(max_packed);
    tile.keys = keys = c.Take<float>(kKeyBlock * dim);
    tile.values = values = c.Take<float>(kKeyBlock * padded_dim);
  }
};

// One attention call: the tasks of a plan, each run by whichever thread takes it.
class AttentionRun {
 public:
  AttentionRun(const AttentionParams& p, const CpuKernels& kernels, AttentionPlan& plan,
               float* partials)
      : p_(p),
        kernels_(kernels),
        plan_(plan),
        partials_(partials),
        group_(static_cast<int32_t>(p.q.shape[1]) / p.cache.num_heads) {}

  void RunTask(const AttentionPlan::Task& task, Worker& w);
  absl::Status status() const { return error_.status(); }

 private:
  using Unit = AttentionPlan::Unit;

  void Prepare(const Unit& unit, Worker& w) const;
  void RunBlock(const Unit& unit, Worker& w);
  uint64_t FillMasks(const Unit& unit, Worker& w) const;
  bool LocateRows(const Unit& unit, const void* base, uint64_t wanted, const Worker& w,
                  KvRows* rows);
  const int32_t* Pages(const Unit& unit) const {
    return p_.page_table.pages + unit.sequence * p_.page_table.stride;
  }
  // The unit's head in a logical page of K or V; null where the sequence holds no such page.
  const char* HeadPage(const Unit& unit, const void* base, int64_t logical) const {
    const int64_t page = Pages(unit)[logical];
    if (page < 0 || page >= p_.cache.num_pages) return nullptr;
    return static_cast<const char*>(base) + page * p_.cache.page_stride +
           unit.first_head / group_ * p_.cache.head_stride;
  }
  void Finish(const Unit& unit, Worker& w) const;
  void WriteRow(const Unit& unit, int32_t packed, const Worker& w) const;
  SoftmaxState Partial(const Unit& unit, int64_t segment, const Worker& w) const;

  static void Clear(int32_t rows, int64_t padded_dim, const SoftmaxState& s) {
    std::fill_n(s.max, rows, kMinusInfinity);
    std::fill_n(s.sum, rows, 0.0f);
    std::fill_n(s.acc, rows * padded_dim, 0.0f);
  }

  const AttentionParams& p_;
  const CpuKernels& kernels_;
  AttentionPlan& plan_;
  float* const partials_;
  const int32_t group_;
  FirstError error_;
};

void AttentionRun::Prepare(const Unit& unit, Worker& w) const {
  const int64_t dim = p_.cache.head_dim;
  w.tile.rows = unit.packed_rows();
  w.tile.scale = p_.scale;
  w.tile.softcap = p_.softcap;
  w.common = UnitRange();
  for (int32_t r = 0; r < unit.num_rows; ++r) {
    const AttentionPlan::Row& row = plan_.rows[unit.first_row + r];
    for (int32_t h = 0; h < unit.num_heads; ++h) {
      const float* q =
          p_.q.ptr<float>() + row.row * p_.q.strides[0] + (unit.first_head + h) * p_.q.strides[1];
      std::memcpy(w.q + (r * unit.num_heads + h) * dim, q,
                  dim * sizeof(float));
    }
    const VisibleRange range =
        RangeOf(p_.selection.edges[unit.list_head], row.position, p_.kv_lens[unit.sequence]);
    w.ranges[r] = range;
    w.common.min_low = std::min(w.common.min_low, range.low);
    w.common.max_low = std::max(w.common.max_low, range.low);
    w.common.min_high = std::min(w.common.min_high, range.high);
    w.common.max_high = std::max(w.common.max_high, range.high);
    w.common.sink_high = std::max(w.common.sink_high, range.sink_high);
    w.common.min_limit = std::min(w.common.min_limit, row.limit);
  }
}

// Masks of all packed rows for the current block; returns their union. All ones for every row
// (then w.tile.masks is null) is recognised without looking at rows.
uint64_t AttentionRun::FillMasks(const Unit& unit, Worker& w) const {
  const KeyBlock& b = w.block;
  const UnitRange& c = w.common;
  const int64_t first = b.tokens ? b.positions[0] : b.base;
  const int64_t last = b.tokens ? b.positions[b.count - 1] : b.base + kKeyBlock - 1;
  w.tile.masks = nullptr;
  if (first > std::max(c.max_high, c.sink_high)) return 0;
  if (last < c.min_low && first > c.sink_high) return 0;
  const bool whole = b.tokens ? b.count == kKeyBlock && b.ranks[kKeyBlock - 1] < c.min_limit
                              : b.exists == ~uint64_t{0};
  if (whole && first >= c.max_low && last <= c.min_high) {
    w.keys_visible += int64_t{kKeyBlock} * w.tile.rows;
    return ~uint64_t{0};
  }
  uint64_t any = 0;
  for (int32_t r = 0; r < unit.num_rows; ++r) {
    const uint64_t mask = VisibleKeys(b, w.ranges[r], plan_.rows[unit.first_row + r].limit);
    any |= mask;
    w.keys_visible += int64_t{__builtin_popcountll(mask)} * unit.num_heads;
    std::fill_n(w.masks + r * unit.num_heads, unit.num_heads, mask);
  }
  w.tile.masks = w.masks;
  return any;
}

// Points `rows` at the K (V) rows of the keys in `wanted`; the others read as zeros.
bool AttentionRun::LocateRows(const Unit& unit, const void* base, uint64_t wanted, const Worker& w,
                              KvRows* rows) {
  const PagedKv& cache = p_.cache;
  const int64_t dim = cache.head_dim;
  const bool q8 = cache.dtype == KvDType::kQ8;
  const int64_t row_bytes = q8 ? dim : KvHeadPageBytes(cache.dtype, cache.head_dim) / kPageTokens;
  rows->dtype = cache.dtype;
  rows->head_dim = cache.head_dim;
  rows->panels = 0;
  rows->next = nullptr;
  rows->next_bytes = 0;
  for (int k = 0; k < kKeyBlock; ++k) {
    rows->rows[k] = nullptr;
    rows->scales[k] = 0.0f;
    if (((wanted >> k) & 1) == 0) continue;
    rows->panels |= 1u << (k / kKeyPanel);
    const int64_t position = w.block.tokens ? w.block.positions[k] : w.block.base + k;
    const char* start = HeadPage(unit, base, position / cache.page_entries);
    if (start == nullptr) {
      const int64_t page = Pages(unit)[position / cache.page_entries];
      error_.Set("the page of a visible key is", unit.sequence, position, page);
      return false;
    }
    const int64_t slot = position % cache.page_entries;
    rows->rows[k] = start + slot * row_bytes;
    if (cache.dtype == KvDType::kFp8) rows->scales[k] = base == cache.k ? 1.0f : cache.v_scale;
    if (q8) std::memcpy(&rows->scales[k], start + kPageTokens * dim + slot * 4, 4);
  }
  return true;
}

void AttentionRun::RunBlock(const Unit& unit, Worker& w) {
  const uint64_t any = FillMasks(unit, w);
  if (any == 0 || !LocateRows(unit, p_.cache.k, any, w, &w.k)) return;
  LocateRows(unit, p_.cache.v, any, w, &w.v);
  if (w.tile.rows > kernels_.few_rows) {
    kernels_.load_keys(w.k, w.keys);
    kernels_.load_values(w.v, w.values);
    kernels_.attend_block(w.tile);
    return;
  }
  // Decoding waits for memory: fetch V while scoring K, and the next page's K while adding V.
  if (!w.block.tokens) {
    const int64_t page = w.block.base / kPageTokens;
    const int64_t bytes = KvHeadPageBytes(p_.cache.dtype, p_.cache.head_dim);
    w.k.next = HeadPage(unit, p_.cache.v, page);
    w.k.next_bytes = bytes;
    if ((page + 1) * kPageTokens <= w.common.max_high) {
      w.v.next = HeadPage(unit, p_.cache.k, page + 1);
      w.v.next_bytes = w.v.next == nullptr ? 0 : bytes;
    }
  }
  kernels_.attend_few(w.tile, w.k, w.v);
}

SoftmaxState AttentionRun::Partial(const Unit& unit, int64_t segment, const Worker& w) const {
  const int64_t rows = unit.packed_rows();
  const int64_t floats = AttentionPlan::PartialFloats(rows, w.tile.padded_dim);
  float* base = partials_ + unit.partial + (segment - unit.first_segment) * floats;
  return {base, base + rows, base + floats - rows * w.tile.padded_dim};
}

void AttentionRun::RunTask(const AttentionPlan::Task& task, Worker& w) {
  const Unit& unit = plan_.units[task.unit];
  const bool cut = unit.partial >= 0;
  const int64_t padded = w.tile.padded_dim;
  Prepare(unit, w);
  if (cut) {
    for (int64_t i = 0; i < task.num_segments; ++i) {
      Clear(unit.packed_rows(), padded, Partial(unit, task.first_segment + i, w));
    }
  } else {
    Clear(unit.packed_rows(), padded, w.total);
  }
  const auto close = [&](int64_t segment) {
    if (segment >= 0 && !cut) {
      kernels_.merge_states(w.tile.rows, w.tile.padded_dim, w.segment, w.total);
    }
  };
  int64_t open = -1;
  KeyWalker walker(p_.selection.entries + unit.list_begin, unit.list_count,
                   p_.selection.entry_tokens);
  while (!error_.failed() && walker.Next(&w.block)) {
    if (w.block.segment < task.first_segment) continue;
    if (w.block.segment >= task.first_segment + task.num_segments) break;
    if (w.block.segment != open) {
      close(open);
      open = w.block.segment;
      w.tile.state = cut ? Partial(unit, open, w) : w.segment;
      if (!cut) Clear(unit.packed_rows(), padded, w.segment);
    }
    RunBlock(unit, w);
  }
  close(open);
  if (walker.bad_order())
    error_.Set("entries must ascend; list", unit.sequence, 0, unit.list_begin);
  if (!cut) return Finish(unit, w);
  // Whoever ends last merges the segments, always in ascending order.
  std::atomic_ref<int32_t> left(plan_.pieces[unit.counter]);
  if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  Clear(unit.packed_rows(), padded, w.total);
  for (int64_t i = 0; i < unit.num_segments; ++i) {
    kernels_.merge_states(w.tile.rows, w.tile.padded_dim, Partial(unit, unit.first_segment + i, w),
                          w.total);
  }
  Finish(unit, w);
}

void AttentionRun::Finish(const Unit& unit, Worker& w) const {
  for (int32_t i = 0; i < unit.packed_rows(); ++i) WriteRow(unit, i, w);
}

void AttentionRun::WriteRow(const Unit& unit, int32_t packed, const Worker& w) const {
  const int64_t row = plan_.rows[unit.first_row + packed / unit.num_heads].row;
  const int32_t head = unit.first_head + packed % unit.num_heads;
  const float max = w.total.max[packed];
  const float sum = w.total.sum[packed];
  float factor = 0.0f;
  if (max != kMinusInfinity) {
    const float sink = p_.sinks == nullptr ? kMinusInfinity : p_.sinks[head];
    if (sink > max) {
      const float shrink = std::exp(max - sink);
      factor = shrink / (sum * shrink + 1.0f);
    } else {
      factor = 1.0f / (sum + std::exp(sink - max));
    }
  }
  const float* acc = w.total.acc + int64_t{packed} * w.tile.padded_dim;
  float* out = p_.out.ptr<float>() + row * p_.out.strides[0] + head * p_.out.strides[1];
  for (int64_t d = 0; d < p_.cache.head_dim; ++d) out[d] = acc[d] * factor;
  if (p_.lse != nullptr) {
    p_.lse[row * p_.q.shape[1] + head] =
        max == kMinusInfinity ? kMinusInfinity : max + std::log(sum);
  }
}

}  // namespace

absl::Status CpuBackend::DoAttention(const AttentionParams& p) {
  AttentionPlan& plan = *attention_plan_;
  plan.Build(p, pool_.num_threads());
  int64_t max_packed = 1;
  for (const AttentionPlan::Unit& unit : plan.units) {
    max_packed = std::max<int64_t>(max_packed, unit.packed_rows());
  }
  const int64_t dim = p.cache.head_dim;
  const int64_t padded_dim = (dim + 15) / 16 * 16;
  auto* partials = static_cast<float*>(
      attention_partials_.Get(plan.partial_floats * static_cast<int64_t>(sizeof(float))));
  Carver measure(nullptr);
  Worker(measure, max_packed, dim, padded_dim);
  AttentionRun run(p, kernels_, plan, partials);
  std::atomic<int64_t> keys_visible{0}, keys_read{0};
  pool_.ParallelFor(static_cast<int64_t>(plan.tasks.size()), [&](int64_t i, int thread) {
    Carver carver(thread_scratch_[thread].Get(measure.used()));
    Worker worker(carver, max_packed, dim, padded_dim);
    run.RunTask(plan.tasks[i], worker);
    keys_visible.fetch_add(worker.keys_visible, std::memory_order_relaxed);
    keys_read.fetch_add(worker.tile.keys_read, std::memory_order_relaxed);
  });
  RETURN_IF_ERROR(run.status());
  if (p.counters != nullptr) {
    p.counters->keys_visible += keys_visible.load();
    p.counters->keys_read += keys_read.load();
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::DoMergeAttention(const MergeAttentionParams& p) {
  const int64_t heads = p.out.shape[1];
  ForRows(p.out.shape[0], p.num_parts * heads * p.out.shape[2], [&](int64_t r) {
    for (int64_t h = 0; h < heads; ++h) MergeAttentionRow(p, r, h);
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoGateAttention(const GateAttentionParams& p) {
  const int64_t heads = p.out.shape[1];
  ForRows(p.out.shape[0], p.num_parts * heads * p.out.shape[2], [&](int64_t r) {
    for (int64_t h = 0; h < heads; ++h) GateAttentionRow(p, r, h);
  });
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

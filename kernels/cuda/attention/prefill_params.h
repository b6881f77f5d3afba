// What the prefill plan and the prefill kernels share. Internal to this folder.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/attention.h"

namespace longstride::kernels::cuda {

inline constexpr int kTileRows = 128;  // rows of a work unit, packed or plain

// The fast kernel sums long lists in segments of so many pages, each by itself, and merges them in
// ascending order. So a few units of long lists (a short chunk at the end of a long prompt) can be
// shared by all multiprocessors, and a row's bits are the same where they are not.
inline constexpr int32_t kSegmentPages = 512;
// Of more units, a block takes whole ones, and the end of the last ones costs little.
inline constexpr int32_t kMostSharedUnits = 384;
inline constexpr int kMathThreads = 256;  // of a block

// Start of a prefill scratch area (ScratchLayout has the rest). A unit is
// tile * units_per_tile + index.
struct PrefillPlan {
  AttentionStatus status = {};
  uint32_t next_unit = 0;  // taken by persistent blocks, reset by the last of them
  uint32_t blocks_done = 0;
  uint32_t num_units = 0;
  uint32_t num_items = 0;  // of a shared plan
  uint32_t reserved[11] = {};
};

// How a tile of the selection falls apart into work units.
struct UnitShape {
  int32_t units_per_tile = 0;
  int32_t units_per_kv_head = 0;  // of one tile
  int32_t box_heads = 1;          // query heads side by side in a unit
  int32_t box_rows = kTileRows;   // positions in a unit; box_heads * box_rows == kTileRows
};

inline UnitShape MakeUnitShape(const AttentionParams& p, PrefillLayout layout) {
  const int32_t heads = static_cast<int32_t>(p.q.shape[1]);
  const int32_t group = heads / p.cache.num_heads;
  UnitShape s;
  if (layout == PrefillLayout::kPlain) {
    s.units_per_kv_head = group;
  } else {
    s.box_heads = group;
    s.box_rows = kTileRows / group;
    s.units_per_kv_head = (p.selection.query_tile + s.box_rows - 1) / s.box_rows;
  }
  s.units_per_tile = s.units_per_kv_head * p.cache.num_heads;
  return s;
}

struct ScratchLayout {
  int64_t units = 0;
  int32_t most_segments = 1;  // of a list
  bool shared = false;        // blocks take items: segments of units
  // Byte offsets. Of the units, longest first, those of one KV head (or of as many as the L2 cache
  // holds) together; of the items, unit | segment << 24, a unit's in ascending order; for every unit
  // and math warp, of how many segments are merged, 0 between launches; for every shared unit, or
  // else every block, of what a thread's segments came to so far: two maxima, two sums and
  // head_dim / 2 values, each [kMathThreads].
  int64_t order = 0, items = 0, marks = 0, parts = 0;
  int64_t bytes = 0;
};

constexpr int64_t PartFloats(int32_t head_dim) { return (4 + head_dim / 2) * kMathThreads; }

inline ScratchLayout MakeScratchLayout(const AttentionParams& p, PrefillLayout layout) {
  ScratchLayout s;
  s.units = int64_t{p.selection.num_tiles} * MakeUnitShape(p, layout).units_per_tile;
  // A list of 128-position entries may name one page more than there are.
  s.most_segments =
      static_cast<int32_t>((p.page_table.stride + 1 + kSegmentPages - 1) / kSegmentPages);
  s.most_segments = std::clamp(s.most_segments, 1, 255);
  s.shared = s.most_segments > 1 && s.units <= kMostSharedUnits;
  s.order = sizeof(PrefillPlan);
  s.items = s.order + s.units * 4;
  s.marks = s.items + (s.shared ? s.units * s.most_segments * 4 : 0);
  s.parts = (s.marks + (s.shared ? s.units * (kMathThreads / 32) * 4 : 0) + 127) / 128 * 128;
  // As much for few units as for many: the largest step's memory is enough for all.
  s.bytes = s.most_segments == 1 ? s.parts
                                 : s.parts + kMostSharedUnits * PartFloats(p.cache.head_dim) * 4;
  return s;
}

}  // namespace longstride::kernels::cuda

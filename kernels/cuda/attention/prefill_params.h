// What the prefill plan and the prefill kernel share. Internal to this folder.
#pragma once

#include "kernels/cuda/attention/attention.h"

namespace longstride::kernels::cuda {

inline constexpr int kTileRows = 128;  // rows of a work unit, packed or plain

// Start of a prefill scratch area; `order` follows: the work units, longest first, those of one KV
// head (or of as many as the L2 cache holds) together. A unit is tile * units_per_tile + index.
struct PrefillPlan {
  AttentionStatus status = {};
  uint32_t next_unit = 0;  // taken by persistent blocks, reset by the last of them
  uint32_t blocks_done = 0;
  uint32_t num_units = 0;
  uint32_t reserved[12] = {};
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

}  // namespace longstride::kernels::cuda

// What the decode plan, kernel and merge share. Internal to this folder.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/latent.h"

namespace longstride::kernels::cuda {

inline constexpr int kDecodeRows = 16;   // rows of a tensor-core tile
inline constexpr int kMaxBlocks = 1024;  // persistent blocks at most

// Pages of one part of a list. It depends on the list's own length alone, so that a sequence's
// results do not depend on its company; a part has at most 32 pages, a lane each.
struct PartRule {
  // Parts have 16 pages, 32 in lists of more than `many`. Lists of `least` + 1 to `few`, a few per
  // cent of a long context, have parts of 8: there are enough of these for one sequence to fill a
  // chip, and lists short enough that many come at a time stay whole.
  int32_t least = 32, few = 127, many = 512;
  __host__ __device__ constexpr int32_t Pages(int32_t list_pages) const {
    return list_pages > many ? 32 : list_pages > least && list_pages <= few ? 8 : 16;
  }
  __host__ __device__ constexpr int32_t Count(int32_t list_pages) const {
    return (list_pages + Pages(list_pages) - 1) / Pages(list_pages);
  }
  // The most parts of any list of up to that many pages.
  constexpr int32_t MaxCount(int32_t list_pages) const {
    return std::max(
        {Count(list_pages), Count(std::min(list_pages, few)), Count(std::min(list_pages, many))});
  }
};
// Latents are bound by arithmetic: one sequence of 64K fills a chip with parts of 16 pages.
inline constexpr PartRule kLatentParts = {.least = 0, .few = 0, .many = 2048};

// One part of one list: what a thread block does at a time.
struct DecodeUnit {
  int64_t list_at;  // of the part's first page, counted in pages from the start of `entries`
  int32_t num_pages;
  int32_t sequence;
  int32_t row_begin;
  int32_t num_rows;
  int32_t first_position;
  int32_t kv_len;
  int32_t kv_head;
  int32_t head;  // first query head
  int32_t list_head;
  int32_t reserved;
};

struct DecodeHeader {
  AttentionStatus status = {};
  int32_t num_units = 0;
  int32_t reserved[14] = {};
};

// How a scratch area is laid out. An item is one list of one tile: (tile, KV head), or (tile, query
// head) where lists are per query head.
struct DecodeLayout {
  int32_t items = 0;
  int32_t item_heads = 0;      // items per tile
  int32_t heads_per_item = 0;  // query heads
  int32_t rows = 0;            // packed rows per item at most
  int32_t max_units = 0;
  bool shared_lists = false;  // one list for all items of a tile
  PartRule parts;
  // Distance of a list's consecutive parts in the order of units.
  __host__ __device__ int32_t part_stride() const { return shared_lists ? item_heads : 1; }
  int64_t first_at = 0, units_at = 0, norms_at = 0, parts_at = 0, bytes = 0;
};

inline DecodeLayout LayoutOf(const AttentionParams& p, int32_t max_list_pages) {
  const auto heads = static_cast<int32_t>(p.q.shape[1]);
  DecodeLayout l;
  l.shared_lists = p.selection.list_heads == ListHeads::kShared;
  l.item_heads = p.selection.list_heads == ListHeads::kPerQHead ? heads : p.cache.num_heads;
  l.heads_per_item = heads / l.item_heads;
  l.items = p.selection.num_tiles * l.item_heads;
  l.rows = l.heads_per_item * p.selection.query_tile;
  if (IsLatent(p)) l.parts = kLatentParts;
  l.max_units = l.items * l.parts.MaxCount(std::max(1, max_list_pages));
  // Blocks of the fast kernel read a unit each before they know how many there are.
  if (!IsLatent(p)) l.max_units = std::max(l.max_units, kMaxBlocks);
  const auto aligned = [](int64_t n) { return (n + 255) / 256 * 256; };
  l.first_at = sizeof(DecodeHeader);
  l.units_at = aligned(l.first_at + (static_cast<int64_t>(l.items) + 1) * 4);
  const int64_t rows = static_cast<int64_t>(l.max_units) * l.rows;
  l.norms_at = aligned(l.units_at + static_cast<int64_t>(l.max_units) * sizeof(DecodeUnit));
  l.parts_at = aligned(l.norms_at + rows * 8);
  l.bytes = l.parts_at + rows * p.cache.head_dim * 4;
  return l;
}

// Pointers into a scratch area.
struct DecodeScratch {
  DecodeHeader* header;
  int32_t* first;     // [items + 1]: units of the items before
  DecodeUnit* units;  // [num_units]
  float2* norms;      // [unit, row]: maximum (base-2 logarithm) and sum
  float* parts;       // [unit, row, head_dim]: sums of exp2(score - maximum) * v
  DecodeScratch(const DecodeLayout& l, void* base)
      : header(static_cast<DecodeHeader*>(base)),
        first(At<int32_t>(base, l.first_at)),
        units(At<DecodeUnit>(base, l.units_at)),
        norms(At<float2>(base, l.norms_at)),
        parts(At<float>(base, l.parts_at)) {}

 private:
  template <typename T>
  static T* At(void* base, int64_t offset) {
    return reinterpret_cast<T*>(static_cast<char*>(base) + offset);
  }
};

}  // namespace longstride::kernels::cuda

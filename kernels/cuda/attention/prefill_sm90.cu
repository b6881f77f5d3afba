// Attention over lists of KV pages for Hopper: many query rows per list.
//
// A block has one producer warp and two math warpgroups of 64 rows each. The producer takes work
// units (128 rows of one sequence) from a shared counter, walks the unit's list, resolves page ids,
// and brings Q once and K, V page by page into ring buffers by bulk tensor copies. A math warpgroup
// computes S = QK' of the next tile, then O += PV of the current one, and its softmax runs while
// its own second product and the other warpgroup's products occupy the tensor cores (the two take
// turns by named barriers; FlashAttention-3, arXiv 2407.08608, describes the schedule). Tiles that
// need no mask skip the mask code; which do is decided by the producer, per tile.
//
// A list of more than kSegmentPages is summed segment by segment (prefill_params.h): what the math
// threads hold after one waits in device memory, in the L2 cache as a rule, for the next, which
// another block may have taken.
//
// Where the cache is e4m3 the producer brings codes into a ring of their own, and converters, a
// fourth warpgroup or (heads of 256 channels) the producer's other three warps, turn them into
// halves, exactly, in the rings that the math warpgroups read.
#include <algorithm>

#include "kernels/cuda/attention/edges.cuh"
#include "kernels/cuda/attention/fp8_sizes.h"
#include "kernels/cuda/attention/fragments.cuh"
#include "kernels/cuda/attention/mma.h"
#include "kernels/cuda/attention/prefill_params.h"
#include "kernels/cuda/attention/tensor_maps.h"
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/pipeline.cuh"
#include "kernels/cuda/device/wgmma.cuh"

namespace longstride::kernels::cuda {
namespace {

constexpr int kMathGroups = 2;
constexpr int kPanelColumns = 64;
constexpr int kPanelRowBytes = 128;
constexpr int kPagePanelBytes = kPageTokens * kPanelRowBytes;
// Named barriers: 0 is __syncthreads.
constexpr int kTurnBarrier = 1;   // + warpgroup: its turn on the tensor cores
constexpr int kGroupBarrier = 3;  // + warpgroup: among its own threads
constexpr int kConverterBarrier = 5;

// Registers: producer + 2 * math is the 504 that three warpgroups start with; with a converters'
// warpgroup it is the 512 that four do. E: the cache's element, uint8_t for e4m3.
template <typename E, int kHeadDim>
struct TileShape;
template <typename E>
struct TileShape<E, 64> {
  static constexpr int kPages = 2, kKeySlots = 4, kValueSlots = 4;
  static constexpr int kProducerRegisters = 40, kMathRegisters = 232;
};
template <typename E>
struct TileShape<E, 128> {
  static constexpr int kPages = 2, kKeySlots = 3, kValueSlots = 3;
  static constexpr int kProducerRegisters = 40, kMathRegisters = 232;
};
// Too many accumulators to hold the queries in registers as well.
template <typename E>
struct TileShape<E, 256> {
  static constexpr int kPages = 1, kKeySlots = 2, kValueSlots = 2;
  static constexpr int kProducerRegisters = 24, kMathRegisters = 240;
};
template <>
struct TileShape<uint8_t, 64> {
  static constexpr int kPages = 2, kKeySlots = 3, kValueSlots = 3, kCodeSlots = 4;
  static constexpr int kProducerRegisters = 40, kMathRegisters = 208, kConverterRegisters = 56;
};
template <>
struct TileShape<uint8_t, 128> {
  static constexpr int kPages = 2, kKeySlots = 2, kValueSlots = 2, kCodeSlots = 4;
  static constexpr int kProducerRegisters = 40, kMathRegisters = 208, kConverterRegisters = 56;
};
template <>
struct TileShape<uint8_t, 256> {
  static constexpr int kPages = 1, kKeySlots = 2, kValueSlots = 2, kCodeSlots = 2;
  static constexpr int kProducerRegisters = 40, kMathRegisters = 232;
};

// Registers of a warpgroup of converters; 0: the warps beside the producer convert.
template <typename Shape>
constexpr int ConverterRegisters() {
  if constexpr (requires { Shape::kConverterRegisters; }) return Shape::kConverterRegisters;
  return 0;
}
template <typename Shape>
constexpr int kConverterRegisters = ConverterRegisters<Shape>();
template <typename Shape>
constexpr int kConverterWarps = kConverterRegisters<Shape> != 0 ? 4 : 3;
template <typename Shape>
constexpr int kThreads = 128 * (1 + kMathGroups + (kConverterRegisters<Shape> != 0 ? 1 : 0));

// One work unit as the math warpgroups see it.
struct Unit {
  int32_t stop;       // no more units
  int32_t row_begin;  // row of q and out
  int32_t rows;       // positions
  int32_t first_position;
  int32_t first_head;
  int32_t kv_len;
  // In one word, for math threads have no register to spare: segment | segments << 8 | part << 16,
  // where a list of several segments keeps its sums.
  uint32_t segment;
  EdgeRule edge;
};

// One tile of keys: where its pages lie and what has to be done with them.
struct alignas(16) KeyTile {
  int32_t base[2];  // absolute position of each page's first key, kAbsent for none
  int32_t flags;    // kNeedsMask, kEndOfList
  int32_t tails;    // 8 bits a page: keys that exist in a last page, 0 if it is full, kNoKeys
};
constexpr int32_t kNeedsMask = 1;
constexpr int32_t kEndOfList = 2;
constexpr int32_t kNoMoreLists = 4;  // to the converter, as is
constexpr int32_t kValues = 8;       // a tile's values, not its keys
constexpr int32_t kNoKeys = 0xff;  // nothing was copied

// The ring of codes between the producer and the converter. Keys are a tile ahead of values, as the
// products are: K0, K1, V0, K2, V1 and so on.
template <typename E, int kHeadDim>
struct CodeRing {};
template <int kHeadDim>
struct CodeRing<uint8_t, kHeadDim> {
  using Shape = TileShape<uint8_t, kHeadDim>;
  static constexpr int kTileBytes = Shape::kPages * kPageTokens * kHeadDim;
  alignas(1024) uint8_t codes[Shape::kCodeSlots][kTileBytes];
  KeyTile tile[Shape::kCodeSlots];
  uint64_t full[Shape::kCodeSlots], empty[Shape::kCodeSlots];
};

template <typename E, int kHeadDim>
struct SharedStorage {
  using Shape = TileShape<E, kHeadDim>;
  static constexpr int kQueryBytes = kTileRows * kHeadDim * 2;
  static constexpr int kTileBytes = Shape::kPages * kPageTokens * kHeadDim * 2;
  alignas(1024) uint8_t q[kQueryBytes];
  alignas(1024) uint8_t k[Shape::kKeySlots][kTileBytes];
  alignas(1024) uint8_t v[Shape::kValueSlots][kTileBytes];
  KeyTile key_tile[Shape::kKeySlots];
  Unit unit;
  uint64_t q_full, q_empty;
  uint64_t k_full[Shape::kKeySlots], k_empty[Shape::kKeySlots];
  uint64_t v_full[Shape::kValueSlots], v_empty[Shape::kValueSlots];
  CodeRing<E, kHeadDim> ring;
};

struct KernelParams {
  CUtensorMap q_map, k_map, v_map;
  PrefillPlan* plan;
  const uint32_t* order;  // of units, or of items where these are shared
  bool shared;
  int32_t most_segments;
  uint32_t* marks;
  float* parts;
  const int32_t* pages;
  int64_t table_stride;
  const int32_t* kv_lens;
  KvSelection selection;
  UnitShape shape;
  int32_t num_pages;
  int32_t pages_per_entry_log2;
  int32_t box_heads_log2;
  int32_t num_heads;
  float scale;
  float softcap;
  float v_scale;
  const float* sinks;
  void* out;
  int64_t out_row_stride, out_head_stride;  // elements
  float* lse;
};

// --- producer ------------------------------------------------------------------------------------

template <typename Shape>
constexpr int CodeSlots() {
  if constexpr (requires { Shape::kCodeSlots; }) return Shape::kCodeSlots;
  return 1;
}

// Everything the producer needs to walk one unit's list.
struct ListWalk {
  const int32_t* entries;
  const int32_t* pages;  // the sequence's row of the page table
  int32_t begin, end;    // of the list's pages
  QuerySpan span;
  EdgeRule edge;
};

template <typename E, int kHeadDim>
class Producer {
 public:
  using Shape = TileShape<E, kHeadDim>;
  using Storage = SharedStorage<E, kHeadDim>;
  static constexpr int kPanels = kHeadDim / kPanelColumns;  // of queries

  __device__ Producer(const KernelParams& p, Storage& s)
      : p_(p), s_(s), lane_(static_cast<int>(threadIdx.x) & 31) {}

  __device__ void Run() {
    uint32_t index = blockIdx.x, next = 0, segment = 0;
    const uint32_t count = p_.shared ? p_.plan->num_items : p_.plan->num_units;
    while (index < count) {
      if (segment == 0 && lane_ == 0) next = gridDim.x + atomicAdd(&p_.plan->next_unit, 1u);
      segment = ProduceSegment(p_.order[index], segment);
      if (segment == 0) index = __shfl_sync(0xffffffffu, next, 0);
    }
    if (lane_ == 0) {
      BarrierWait(&s_.q_empty, q_.parity ^ 1);
      s_.unit.stop = 1;
      BarrierArrive(&s_.q_full);
      if constexpr (kIsCode<E>) PostEnd(kNoMoreLists);
      if (atomicAdd(&p_.plan->blocks_done, 1u) == gridDim.x - 1) {
        p_.plan->next_unit = 0;
        p_.plan->blocks_done = 0;
      }
    }
  }

 private:
  // A segment of a unit: the one that the item names, or, where blocks take whole units, `segment`.
  // Returns the one to go on with, 0 for the next item's first.
  __device__ uint32_t ProduceSegment(uint32_t item, uint32_t segment) {
    const KvSelection& sel = p_.selection;
    const uint32_t unit = p_.shared ? item & 0xffffff : item;
    const uint32_t tile_index = unit / p_.shape.units_per_tile;
    const int in_tile = static_cast<int>(unit % p_.shape.units_per_tile);
    const int kv_head = in_tile / p_.shape.units_per_kv_head;
    const int in_head = in_tile % p_.shape.units_per_kv_head;
    const QueryTile tile = sel.tiles[tile_index];
    const bool plain = p_.shape.box_heads == 1;
    const int first_row = plain ? 0 : in_head * p_.shape.box_rows;
    const int rows = max(0, min(tile.num_rows - first_row, p_.shape.box_rows));
    const int head = plain ? in_tile : kv_head * p_.shape.box_heads;
    const int list_head = sel.list_heads == ListHeads::kShared      ? 0
                          : sel.list_heads == ListHeads::kPerKvHead ? kv_head
                                                                    : in_tile;
    const int64_t list = static_cast<int64_t>(list_head) * sel.num_tiles + tile_index;
    ListWalk walk;
    walk.entries = sel.entries + sel.list_begin[list];
    walk.pages = p_.pages + tile.sequence * p_.table_stride;
    const int32_t num_pages = sel.list_count[list] << p_.pages_per_entry_log2;
    walk.span.kv_len = p_.kv_lens[tile.sequence];
    walk.span.first_position = tile.first_position + first_row;
    walk.span.last_position = walk.span.first_position + rows - 1;
    walk.edge = sel.edges[list_head];
    const uint32_t segments = SegmentsOf(walk.edge, num_pages, kSegmentPages, p_.most_segments);
    if (p_.shared) segment = item >> 24;
    walk.begin = static_cast<int32_t>(segment) * kSegmentPages;
    walk.end = segment == segments - 1 ? num_pages : walk.begin + kSegmentPages;
    if (rows == 0) walk.end = walk.begin;
    if (lane_ == 0) {
      BarrierWait(&s_.q_empty, q_.parity ^ 1);
      Unit& u = s_.unit;
      u.stop = 0;
      u.row_begin = tile.row_begin + first_row;
      u.rows = rows;
      u.first_position = walk.span.first_position;
      u.first_head = head;
      u.kv_len = walk.span.kv_len;
      u.segment = segment | segments << 8 | (p_.shared ? unit : blockIdx.x) << 16;
      u.edge = walk.edge;
      BarrierArriveExpect(&s_.q_full, Storage::kQueryBytes);
      const uint32_t to = SharedAddress(s_.q);
#pragma unroll
      for (int h = 0; h < kPanels; ++h) {
        TensorLoad3(&p_.q_map, &s_.q_full, to + h * kTileRows * kPanelRowBytes, h * kPanelColumns,
                    head, u.row_begin);
      }
    }
    q_.Advance();
    WalkList(walk, kv_head);
    return p_.shared || segment + 1 == segments ? 0 : segment + 1;
  }

  // One list position per lane: its logical page (times two, plus one if it needs a mask) and its
  // physical page, or -1 where there is nothing to read.
  struct Found {
    int32_t logical_and_mask = 0;
    int32_t physical = -1;
  };
  __device__ Found Find(const ListWalk& w, int32_t at) {
    Found f;
    const int32_t i = at + lane_;
    if (i >= w.end) return f;
    const int32_t entry = w.entries[i >> p_.pages_per_entry_log2];
    if (entry < 0) return f;
    const int64_t logical = (static_cast<int64_t>(entry) << p_.pages_per_entry_log2) +
                            (i & ((1 << p_.pages_per_entry_log2) - 1));
    const int64_t base = logical * kPageTokens;
    if (PageIsAhead(w.edge, w.span, base)) return f;
    const int32_t physical = w.pages[logical];
    if (physical < 0 || physical >= p_.num_pages) {
      p_.plan->status.status = 1;
      return f;
    }
    f.physical = physical;
    f.logical_and_mask = static_cast<int32_t>(logical * 2) +
                         (PageIsFull(w.edge, w.span, static_cast<int32_t>(base)) ? 0 : 1);
    return f;
  }

  // Tiles take the list's pages as they follow each other, wherever they lie. Where a window or a
  // chunk decides where the list begins, that depends on the rows that happen to be computed
  // together; there a tile is two pages of one aligned pair, so that a row's sums do not.
  __device__ void WalkList(const ListWalk& w, int kv_head) {
    const bool by_pair = Shape::kPages == 2 && (w.edge.window != 0 || w.edge.chunk != 0);
    int32_t page[2] = {0, 0}, logical[2] = {0, 0};
    uint32_t present = 0;  // bit i: page[i]
    int32_t pair = 0;
    bool any = false;
    Found now = Find(w, w.begin);
    for (int32_t at = w.begin; at < w.end; at += 32) {
      const Found next = Find(w, at + 32);
      for (uint32_t ready = __ballot_sync(0xffffffffu, now.physical >= 0); ready != 0;
           ready &= ready - 1) {
        const int from = __ffs(ready) - 1;
        const int32_t physical = __shfl_sync(0xffffffffu, now.physical, from);
        const int32_t found = __shfl_sync(0xffffffffu, now.logical_and_mask, from);
        if (by_pair && present != 0 && found >> 2 != pair) {
          LoadTile(w, kv_head, page, logical, present);
          present = 0;
        }
        pair = found >> 2;
        const bool second = by_pair ? (found & 2) != 0 : present != 0;
        if (second) {
          page[1] = physical;
          logical[1] = found;
        } else {
          page[0] = physical;
          logical[0] = found;
        }
        present |= second ? 2u : 1u;
        any = true;
        if (second || Shape::kPages == 1) {
          LoadTile(w, kv_head, page, logical, present);
          present = 0;
        }
      }
      now = next;
    }
    // A list without pages still gets one tile, of nothing.
    if (present != 0 || !any) LoadTile(w, kv_head, page, logical, present);
    if constexpr (kIsCode<E>) {
      if (lane_ == 0) {
        PostEnd(kEndOfList);
        PostValues(kv_head);
      }
    } else {
      if (lane_ == 0) {
        BarrierWait(&s_.k_empty[k_.slot], k_.parity ^ 1);
        s_.key_tile[k_.slot].flags = kEndOfList;
        BarrierArrive(&s_.k_full[k_.slot]);
      }
      k_.Advance();
    }
  }

  __device__ __forceinline__ void LoadTile(const ListWalk& w, int kv_head, const int32_t* page,
                                           const int32_t* logical, uint32_t present) {
    if (lane_ == 0) {
      KeyTile tile;
      tile.flags = present == (1u << Shape::kPages) - 1 ? 0 : kNeedsMask;
      tile.tails = 0;
      tile.base[0] = tile.base[1] = kAbsent;
#pragma unroll
      for (int i = 0; i < Shape::kPages; ++i) {
        if (!(present >> i & 1)) {
          tile.tails |= kNoKeys << (8 * i);
          continue;
        }
        const int32_t base = (logical[i] >> 1) * kPageTokens;
        tile.base[i] = base;
        tile.flags |= logical[i] & 1;
        if (w.span.kv_len - base < kPageTokens) tile.tails |= (w.span.kv_len - base) << (8 * i);
      }
      if constexpr (kIsCode<E>) {
        PostCodes(&p_.k_map, tile, kv_head, page, present);
        PostValues(kv_head);
        values_ = {{page[0], page[1]}, present, tile.tails, true};
      } else {
        BarrierWait(&s_.k_empty[k_.slot], k_.parity ^ 1);
        s_.key_tile[k_.slot] = tile;
        LoadPages(&p_.k_map, &s_.k_full[k_.slot], s_.k[k_.slot], kv_head, page, present);
        BarrierWait(&s_.v_empty[v_.slot], v_.parity ^ 1);
        LoadPages(&p_.v_map, &s_.v_full[v_.slot], s_.v[v_.slot], kv_head, page, present);
      }
    }
    k_.Advance();
    v_.Advance();
  }

  // The ring of codes is filled by lane 0, which alone keeps codes_ and values_.
  __device__ __forceinline__ void PostCodes(const CUtensorMap* map, const KeyTile& tile,
                                            int kv_head, const int32_t* page, uint32_t present) {
    BarrierWait(&s_.ring.empty[codes_.slot], codes_.parity ^ 1);
    s_.ring.tile[codes_.slot] = tile;
    LoadPages(map, &s_.ring.full[codes_.slot], s_.ring.codes[codes_.slot], kv_head, page, present);
    codes_.Advance();
  }
  // Those of the tile before.
  __device__ __forceinline__ void PostValues(int kv_head) {
    if (!values_.waiting) return;
    PostCodes(&p_.v_map, {.base = {}, .flags = kValues, .tails = values_.tails}, kv_head,
              values_.page, values_.present);
    values_.waiting = false;
  }
  __device__ __forceinline__ void PostEnd(int32_t flags) {
    BarrierWait(&s_.ring.empty[codes_.slot], codes_.parity ^ 1);
    s_.ring.tile[codes_.slot].flags = flags;
    BarrierArrive(&s_.ring.full[codes_.slot]);
    codes_.Advance();
  }

  // Pages that are not present are not copied: a box outside the tensor map reads as zeros, but its
  // addresses are translated all the same, and a cache is mapped only where it is in use.
  __device__ __forceinline__ void LoadPages(const CUtensorMap* map, uint64_t* full, uint8_t* to,
                                            int kv_head, const int32_t* page, uint32_t present) {
    constexpr int kRowBytes = PagePanelBytes(kHeadDim * sizeof(E));
    constexpr int kBytes = kPageTokens * kRowBytes, kColumns = kRowBytes / sizeof(E);
    constexpr int kCount = kHeadDim / kColumns;
    BarrierArriveExpect(full, static_cast<uint32_t>(__popc(present)) * (kCount * kBytes));
    const uint32_t address = SharedAddress(to);
#pragma unroll
    for (int i = 0; i < Shape::kPages; ++i) {
      if (!(present >> i & 1)) continue;
#pragma unroll
      for (int h = 0; h < kCount; ++h) {
        TensorLoad4(map, full, address + (h * Shape::kPages + i) * kBytes, h * kColumns, 0, kv_head,
                    page[i]);
      }
    }
  }

  const KernelParams& p_;
  Storage& s_;
  const int lane_;
  RingCursor<1> q_;
  RingCursor<Shape::kKeySlots> k_;
  RingCursor<Shape::kValueSlots> v_;
  RingCursor<CodeSlots<Shape>()> codes_;
  struct {
    int32_t page[2];
    uint32_t present;
    int32_t tails;
    bool waiting;
  } values_ = {};  // of the last tile whose keys were posted
};

// --- converter -----------------------------------------------------------------------------------

// The warps between the ring of codes and those of keys and values.
template <int kHeadDim>
class Converter {
 public:
  using Shape = TileShape<uint8_t, kHeadDim>;
  using Storage = SharedStorage<uint8_t, kHeadDim>;
  static constexpr int kWarps = kConverterWarps<Shape>;

  __device__ Converter(Storage& s)
      : s_(s),
        warp_(static_cast<int>(threadIdx.x) / 32 - (kConverterRegisters<Shape> != 0 ? 12 : 1)),
        lane_(static_cast<int>(threadIdx.x) & 31) {}

  __device__ void Run() {
    while (true) {
      BarrierWait(&s_.ring.full[codes_.slot], codes_.parity);
      const KeyTile tile = ReadThroughOneLane(&s_.ring.tile[codes_.slot]);
      if (tile.flags & kNoMoreLists) return;
      if (tile.flags & kValues) {
        BarrierWait(&s_.v_empty[v_.slot], v_.parity ^ 1);
        Convert(s_.v[v_.slot], tile.tails);
        Publish(&s_.v_full[v_.slot]);
        v_.Advance();
      } else {
        BarrierWait(&s_.k_empty[k_.slot], k_.parity ^ 1);
        if (Speaks()) s_.key_tile[k_.slot] = tile;
        if (!(tile.flags & kEndOfList)) Convert(s_.k[k_.slot], 0);
        Publish(&s_.k_full[k_.slot]);
        k_.Advance();
      }
    }
  }

 private:
  // A warp takes 8 rows at a time, in columns of 64 channels: lane l the codes of channels
  // [16 (l % 4), + 16) of a row. The two rows of 8 neighbouring lanes differ by 5: so neither their
  // reads of swizzled codes nor their writes of swizzled halves meet in a bank. All of a batch is
  // read before it is written: shared memory is busy with the products' operands, and slow to
  // answer.
  __device__ __forceinline__ void Convert(uint8_t* to, int32_t tails) {
    constexpr int kRows = Shape::kPages * kPageTokens, kPanels = kHeadDim / kPanelColumns;
    constexpr int kGroups = kRows / 8, kRounds = (kGroups + kWarps - 1) / kWarps;
    constexpr int kMost = (kConverterRegisters<Shape> != 0 ? 8 : 6) / kPanels;  // registers
    constexpr int kBatch = kRounds < kMost ? kRounds : kMost;
    constexpr int kCodeRowBytes = PagePanelBytes(kHeadDim), kChunks = kCodeRowBytes / 16;
    const uint8_t* from = s_.ring.codes[codes_.slot];
    const int chunk = lane_ & 3, row = (lane_ >> 3) * 2 ^ (lane_ >> 2 & 1) * 5;
#pragma unroll 1
    for (int first = warp_; first < kGroups; first += kBatch * kWarps) {
      uint4 codes[kBatch][kPanels];
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const int group = first + n * kWarps;
        if (kGroups % (kBatch * kWarps) != 0 && group >= kGroups) break;
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          const int column = panel * 4 + chunk;  // of 16 codes
          codes[n][panel] = *reinterpret_cast<const uint4*>(
              from + group * 8 * kCodeRowBytes + panel * 4 / kChunks * (kRows * kCodeRowBytes) +
              PanelOffset<kCodeRowBytes>(row, column % kChunks));
        }
        if (tails != 0 && !Exists(tails, group * 8 + row)) {
#pragma unroll
          for (int panel = 0; panel < kPanels; ++panel) codes[n][panel] = make_uint4(0, 0, 0, 0);
        }
      }
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const int group = first + n * kWarps;
        if (kGroups % (kBatch * kWarps) != 0 && group >= kGroups) break;
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          uint8_t* rows = to + panel * (kRows * kPanelRowBytes) + group * 8 * kPanelRowBytes;
          const uint4& c = codes[n][panel];
          Store(rows + PanelOffset<kPanelRowBytes>(row, chunk * 2), c.x, c.y);
          Store(rows + PanelOffset<kPanelRowBytes>(row, chunk * 2 + 1), c.z, c.w);
        }
      }
    }
  }
  // False for rows of values that must be zero: see ClearTails.
  __device__ __forceinline__ static bool Exists(int32_t tails, int row) {
    const int tail = tails >> (8 * (row / kPageTokens)) & 0xff;
    return tail == 0 || (tail != kNoKeys && row % kPageTokens < tail);
  }
  __device__ __forceinline__ static void Store(uint8_t* to, uint32_t first, uint32_t second) {
    uint32_t halves[4];
    HalvesOfE4m3(first, halves);
    HalvesOfE4m3(second, halves + 2);
    *reinterpret_cast<uint4*>(to) = make_uint4(halves[0], halves[1], halves[2], halves[3]);
  }

  // Gives the codes' slot back and the halves to the tensor cores: one thread reports these for
  // all, behind a barrier.
  __device__ __forceinline__ void Publish(uint64_t* full) {
    AsyncProxyFence();
    NamedBarrierSync(kConverterBarrier, kWarps * 32);
    if (lane_ == 0) BarrierArrive(&s_.ring.empty[codes_.slot]);
    if (Speaks()) BarrierArrive(full);
    codes_.Advance();
  }
  __device__ __forceinline__ bool Speaks() const { return warp_ == 0 && lane_ == 0; }

  Storage& s_;
  const int warp_, lane_;
  RingCursor<Shape::kKeySlots> k_;
  RingCursor<Shape::kValueSlots> v_;
  RingCursor<Shape::kCodeSlots> codes_;
};

// --- math ----------------------------------------------------------------------------------------

template <typename T, typename E, int kHeadDim>
class MathGroup {
 public:
  using Shape = TileShape<E, kHeadDim>;
  using Storage = SharedStorage<E, kHeadDim>;
  static constexpr int kKeys = Shape::kPages * kPageTokens;
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  // With converters of their own no more fit.
  static constexpr bool kQueriesInRegisters = kHeadDim <= (kIsCode<E> ? 64 : 128);
  static constexpr int64_t kPartFloats = PartFloats(kHeadDim);

  __device__ MathGroup(const KernelParams& p, Storage& s, int group)
      : p_(p),
        s_(s),
        group_(group),
        lane_(static_cast<int>(threadIdx.x) & 31),
        row_(group * 64 + (static_cast<int>(threadIdx.x) >> 5 & 3) * 16 + (lane_ >> 2)),
        factor_(p.softcap > 0.0f ? kLog2E : p.scale * kLog2E) {}

  __device__ void Run() {
    float o[kHeadDim / 2];
    float s[kKeys / 2];
    if (group_ == 1) NamedBarrierArrive(kTurnBarrier, 256);
    float top[2] = {NegativeInfinity(), NegativeInfinity()};  // running row maximum, unscaled
    float sum[2] = {0.0f, 0.0f};                              // this thread's part of the row sum
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) o[i] = 0.0f;
    Unit u = {}, next;  // no rows: nothing to store yet
    while (BeginUnit(&next, s)) {
      // Where registers allow, a unit is stored while the first scores of the next are computed.
      if constexpr (kQueriesInRegisters) Store(u, o, top, sum);
      u = next;
      top[0] = top[1] = NegativeInfinity();
      sum[0] = sum[1] = 0.0f;
      ComputeUnit(u, s, o, top, sum);
      // Here, where no product is under way: the compiler would serialize products around it.
      if ((u.segment >> 8 & 0xff) > 1) {
        FinishSegment(u, o, top, sum);
        u.rows = 0;
      }
      if constexpr (!kQueriesInRegisters) Store(u, o, top, sum);
    }
    if constexpr (kQueriesInRegisters) Store(u, o, top, sum);
  }

 private:
  // Waits for the next unit, takes its queries into registers and issues its first scores. False if
  // there is none.
  __device__ __forceinline__ bool BeginUnit(Unit* u, float (&s)[kKeys / 2]) {
    BarrierWait(&s_.q_full, q_.parity);
    *u = ReadThroughOneLane(&s_.unit);
    if (u->stop) return false;
    if constexpr (kQueriesInRegisters) {
      const int row = group_ * 64 + (static_cast<int>(threadIdx.x) >> 5 & 3) * 16 + (lane_ & 15);
      const uint32_t q = SharedAddress(s_.q) + row * kPanelRowBytes;
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) {
        const int chunk = step * 2 + (lane_ >> 4);
        LoadMatrix4(query_[step], q + (chunk >> 3) * kTileRows * kPanelRowBytes +
                                      (((chunk & 7) ^ (row & 7)) << 4));
      }
      __syncwarp();
      Release(&s_.q_empty);
      q_.Advance();
    }
    BarrierWait(&s_.k_full[k_.slot], k_.parity);
    IssueScores(s);
    return true;
  }

  __device__ __forceinline__ void ComputeUnit(const Unit& u, float (&s)[kKeys / 2],
                                              float (&o)[kHeadDim / 2], float (&top)[2],
                                              float (&sum)[2]) {
    uint32_t prob[kKeys / 4];
    float shrink[2];
    KeyTile tile = ReadThroughOneLane(&s_.key_tile[k_.slot]);
    WgmmaWait<0>();
    FenceRegisters(s);
    Release(&s_.k_empty[k_.slot]);
    k_.Advance();
    Softmax(u, tile, s, top, sum, shrink);
    PackProbabilities(s, prob);
    int accumulate = 0;
    int32_t tails = tile.tails;
    BarrierWait(&s_.k_full[k_.slot], k_.parity);
    tile = ReadThroughOneLane(&s_.key_tile[k_.slot]);
    while (!(tile.flags & kEndOfList)) {
      NamedBarrierSync(kTurnBarrier + group_, 256);
      IssueScores(s);
      BarrierWait(&s_.v_full[v_.slot], v_.parity);
      if (!kIsCode<E> && tails != 0) ClearTails(tails);
      IssueOutput(o, prob, accumulate);
      accumulate = 1;
      NamedBarrierArrive(kTurnBarrier + (group_ ^ 1), 256);
      WgmmaWait<1>();
      FenceRegisters(s);
      Release(&s_.k_empty[k_.slot]);
      k_.Advance();
      Softmax(u, tile, s, top, sum, shrink);
      FenceRegisters(s);
      tails = tile.tails;
      // This wait stands here, not at the loop's head, because it also keeps the assembler from
      // moving the next one above the softmax, which is to run during the second product.
      BarrierWait(&s_.k_full[k_.slot], k_.parity);
      tile = ReadThroughOneLane(&s_.key_tile[k_.slot]);
      WgmmaWait<0>();
      FenceRegisters(o);
      Release(&s_.v_empty[v_.slot]);
      v_.Advance();
      // Multiplying by 1 changes nothing: skip it where no row of the warp has a new maximum.
      if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; ++i) o[i] *= shrink[i >> 1 & 1];
      }
      PackProbabilities(s, prob);
    }
    Release(&s_.k_empty[k_.slot]);
    k_.Advance();
    if constexpr (!kQueriesInRegisters) {
      Release(&s_.q_empty);
      q_.Advance();
    }
    BarrierWait(&s_.v_full[v_.slot], v_.parity);
    if (!kIsCode<E> && tails != 0) ClearTails(tails);
    IssueOutput(o, prob, accumulate);
    WgmmaWait<0>();
    FenceRegisters(o);
    Release(&s_.v_empty[v_.slot]);
    v_.Advance();
  }

  // Every warp reports for itself that it is done with a slot.
  __device__ __forceinline__ void Release(uint64_t* bar) {
    if (lane_ == 0) BarrierArrive(bar);
  }

  __device__ __forceinline__ void IssueScores(float (&s)[kKeys / 2]) {
    const uint32_t k = SharedAddress(s_.k[k_.slot]);
    FenceRegisters(s);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const int panel = step / 4, inside = step % 4 * 32;
      const uint64_t keys = WgmmaDescriptor(k + panel * kKeys * kPanelRowBytes + inside, 16, 1024);
      if constexpr (kQueriesInRegisters) {
        Wgmma<T, kKeys>::RegisterSharedKMajor(s, query_[step], keys, step != 0);
      } else {
        const uint32_t q = SharedAddress(s_.q) + group_ * 64 * kPanelRowBytes;
        Wgmma<T, kKeys>::SharedShared(
            s, WgmmaDescriptor(q + panel * kTileRows * kPanelRowBytes + inside, 16, 1024), keys,
            step != 0);
      }
    }
    WgmmaCommit();
  }

  __device__ __forceinline__ void IssueOutput(float (&o)[kHeadDim / 2],
                                              const uint32_t (&prob)[kKeys / 4], int accumulate) {
    const uint32_t v = SharedAddress(s_.v[v_.slot]);
    FenceRegisters(o);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      Wgmma<T, kHeadDim>::RegisterShared(
          o, prob + step * 4,
          WgmmaDescriptor(v + step * 16 * kPanelRowBytes, kKeys * kPanelRowBytes, 1024),
          step != 0 || accumulate);
    }
    WgmmaCommit();
  }

  // Values beyond the sequence's length, or of a page that was not copied, may be anything, and
  // 0 * NaN is NaN: zero their rows. Both warpgroups do, each before its own product. (Of codes the
  // converter does.)
  __device__ __forceinline__ void ClearTails(int32_t tails) {
    uint8_t* v = s_.v[v_.slot];
#pragma unroll 1
    for (int i = 0; i < Shape::kPages; ++i) {
      const int tail = tails >> (8 * i) & 0xff;
      if (tail == 0) continue;
      const int exist = tail == kNoKeys ? 0 : tail;
      const int words = (kPageTokens - exist) * kPanelRowBytes / 16;
#pragma unroll 1
      for (int h = 0; h < kPanels; ++h) {
        uint4* to = reinterpret_cast<uint4*>(v + (h * Shape::kPages + i) * kPagePanelBytes +
                                             exist * kPanelRowBytes);
#pragma unroll 1
        for (int w = static_cast<int>(threadIdx.x) & 127; w < words; w += 128) {
          to[w] = make_uint4(0, 0, 0, 0);
        }
      }
    }
    AsyncProxyFence();
    NamedBarrierSync(kGroupBarrier + group_, 128);
  }

  __device__ __forceinline__ void Mask(const Unit& u, const KeyTile& tile, float (&s)[kKeys / 2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const VisibleRange range(u.edge, u.first_position + ((row_ + 8 * r) >> p_.box_heads_log2),
                               u.kv_len);
#pragma unroll
      for (int page = 0; page < Shape::kPages; ++page) {
        // Bit n * 8 + c is column n * 8 + c of this thread's pair.
        const uint64_t seen = range.PageBits(tile.base[page]) >> ((lane_ & 3) * 2);
        const uint32_t words[2] = {static_cast<uint32_t>(seen), static_cast<uint32_t>(seen >> 32)};
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& x = s[(page * 8 + n) * 4 + r * 2 + c];
            if (!(words[n / 4] & 1u << (n % 4 * 8 + c))) x = NegativeInfinity();
          }
        }
      }
    }
  }

  // Turns scores into exp2((s - row maximum) * factor), keeps maximum and sum, and says by how much
  // what was summed before must shrink.
  __device__ __forceinline__ void Softmax(const Unit& u, const KeyTile& tile, float (&s)[kKeys / 2],
                                          float (&top)[2], float (&sum)[2], float (&shrink)[2]) {
    if (p_.softcap > 0.0f) {
      const float inner = p_.scale / p_.softcap;
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) s[i] = p_.softcap * Tanh(s[i] * inner);
    }
    if (tile.flags & kNeedsMask) Mask(u, tile, s);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float best = s[r * 2];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        best = fmaxf(best, fmaxf(s[n * 4 + r * 2], s[n * 4 + r * 2 + 1]));
      }
      best = fmaxf(top[r], QuadMax(best));
      // Where nothing was visible yet, subtract 0 instead of -inf.
      const float subtract = best == NegativeInfinity() ? 0.0f : best * factor_;
      shrink[r] = Exp2(top[r] * factor_ - subtract);
      top[r] = best;
      float part = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = s[n * 4 + r * 2 + c];
          x = Exp2(fmaf(x, factor_, -subtract));
          part += x;
        }
      }
      sum[r] = sum[r] * shrink[r] + part;
    }
  }

  __device__ __forceinline__ void PackProbabilities(const float (&s)[kKeys / 2],
                                                    uint32_t (&prob)[kKeys / 4]) {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) prob[i] = Pack<T>(s[2 * i], s[2 * i + 1]);
  }

  __device__ __forceinline__ void Store(const Unit& u, const float (&o)[kHeadDim / 2],
                                        const float (&top)[2], const float (&sum)[2]) {
    StoreValues(u, top, sum, [&](int i) { return o[i]; });
  }
  __device__ __forceinline__ void FinishSegment(const Unit& u, const float (&o)[kHeadDim / 2],
                                                const float (&top)[2], const float (&sum)[2]) {
    if ((u.segment & 0xff) == 0) {
      KeepSegment(u.segment, top, sum, [&](int i) { return o[i]; });
    } else {
      MergeSegment(u, o, top, sum);
    }
  }

  // Where this thread's sums of a list of several segments lie.
  __device__ __forceinline__ float* PartOf(uint32_t segment) const {
    return p_.parts + (segment >> 16) * kPartFloats + (static_cast<int>(threadIdx.x) - 128);
  }
  __device__ __forceinline__ uint32_t* MarkOf(uint32_t segment) const {
    return p_.marks + (segment >> 16) * (kMathThreads / 32) + (threadIdx.x - 128) / 32;
  }
  template <typename Value>
  __device__ __forceinline__ void KeepSegment(uint32_t segment, const float (&top)[2],
                                              const float (&sum)[2], const Value& value) {
    float* part = PartOf(segment);
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) __stcg(part + (4 + i) * kMathThreads, value(i));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      __stcg(part + r * kMathThreads, top[r]);
      __stcg(part + (2 + r) * kMathThreads, sum[r]);
    }
    if (!p_.shared) return;
    __threadfence();
    __syncwarp();
    if (lane_ == 0) PostMark(MarkOf(segment), (segment & 0xff) + 1);
  }
  // Adds the segments before this one to it; the last one is stored.
  __device__ __forceinline__ void MergeSegment(const Unit& u, const float (&o)[kHeadDim / 2],
                                               const float (&top)[2], const float (&sum)[2]) {
    const bool last = (u.segment & 0xff) + 1 == (u.segment >> 8 & 0xff);
    const float* part = PartOf(u.segment);
    // Items are taken in order: whoever has the segment before runs already.
    if (p_.shared) {
      AwaitMark(MarkOf(u.segment), u.segment & 0xff);
      if (lane_ == 0 && last) *MarkOf(u.segment) = 0;  // for the next launch
    }
    float best[2], total[2], before[2], mine[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float top_before = __ldcg(part + r * kMathThreads);
      const float sum_before = __ldcg(part + (2 + r) * kMathThreads);
      best[r] = fmaxf(top_before, top[r]);
      // Exactly 1 for the larger one: a segment in which a row sees nothing changes nothing.
      before[r] = top_before == best[r] ? 1.0f : Exp2((top_before - best[r]) * factor_);
      mine[r] = top[r] == best[r] ? 1.0f : Exp2((top[r] - best[r]) * factor_);
      total[r] = fmaf(sum_before, before[r], sum[r] * mine[r]);
    }
    const auto merged = [&](int i) {
      const int r = i >> 1 & 1;
      return fmaf(__ldcg(part + (4 + i) * kMathThreads), before[r], o[i] * mine[r]);
    };
    if (last) {
      StoreValues(u, best, total, merged);
    } else {
      KeepSegment(u.segment, best, total, merged);
    }
  }
  __device__ __forceinline__ static void AwaitMark(const uint32_t* mark, uint32_t value) {
    // The vote tells the compiler that the warp stays together: it keeps what all lanes share in
    // uniform registers.
    uint32_t now;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(mark) : "memory");
    } while (!__all_sync(0xffffffffu, now == value));
  }
  __device__ __forceinline__ static void PostMark(uint32_t* mark, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(mark), "r"(value) : "memory");
  }

  // value(i): the sum that register i of a product's result stands for.
  template <typename Value>
  __device__ __forceinline__ void StoreValues(const Unit& u, const float (&top)[2],
                                              const float (&sum)[2], const Value& value) {
    const int t = lane_ & 3;
    float factor[2];
    int64_t row[2];
    int head[2];
    bool write[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int packed = row_ + 8 * r;
      const int position = packed >> p_.box_heads_log2;
      head[r] = u.first_head + (packed & (p_.shape.box_heads - 1));
      row[r] = static_cast<int64_t>(u.row_begin) + position;
      write[r] = position < u.rows;
      const float total = QuadSum(sum[r]);
      const float best = top[r] * factor_ * kLn2;  // natural-log scale
      const bool empty = !(total > 0.0f);
      factor[r] = empty ? 0.0f : 1.0f / total;
      if (write[r]) {
        if (p_.lse != nullptr && t == 0) {
          p_.lse[row[r] * p_.num_heads + head[r]] = empty ? NegativeInfinity() : best + logf(total);
        }
        if (p_.sinks != nullptr && !empty) {
          const float sink = p_.sinks[head[r]];
          const float most = fmaxf(best, sink);
          const float mine = __expf(best - most);
          factor[r] = mine / (total * mine + __expf(sink - most));
        }
        factor[r] *= p_.v_scale;
      }
    }
    T* out = static_cast<T*>(p_.out);
#pragma unroll
    for (int g = 0; g < kHeadDim / 32; ++g) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = (g * 4 + i) * 4 + r * 2;
          w[i] = Pack<T>(value(at) * factor[r], value(at + 1) * factor[r]);
        }
        QuadTranspose(w, t);
        if (write[r]) {
          T* to = out + row[r] * p_.out_row_stride + head[r] * p_.out_head_stride + g * 32 + t * 8;
          __stcs(reinterpret_cast<uint4*>(to), make_uint4(w[0], w[1], w[2], w[3]));
        }
      }
    }
  }

  const KernelParams& p_;
  Storage& s_;
  const int group_;
  const int lane_;
  const int row_;  // of the unit's 128 packed rows; the thread's other row is 8 further
  const float factor_;
  // This thread's fragments of the unit's queries.
  uint32_t query_[kQueriesInRegisters ? kHeadDim / 16 : 1][4];
  RingCursor<1> q_;
  RingCursor<Shape::kKeySlots> k_;
  RingCursor<Shape::kValueSlots> v_;
};

template <typename T, typename E, int kHeadDim>
__global__ void __launch_bounds__(kThreads<TileShape<E, kHeadDim>>, 1)
    PrefillKernel(const __grid_constant__ KernelParams p) {
  using Shape = TileShape<E, kHeadDim>;
  extern __shared__ __align__(1024) uint8_t shared[];
  auto& s = *reinterpret_cast<SharedStorage<E, kHeadDim>*>(shared);
  if (threadIdx.x == 0) {
    constexpr int kWarps = kMathGroups * 4;
    BarrierInit(&s.q_full, 1);
    BarrierInit(&s.q_empty, kWarps);
    for (int i = 0; i < Shape::kKeySlots; ++i) {
      BarrierInit(&s.k_full[i], 1);
      BarrierInit(&s.k_empty[i], kWarps);
    }
    for (int i = 0; i < Shape::kValueSlots; ++i) {
      BarrierInit(&s.v_full[i], 1);
      BarrierInit(&s.v_empty[i], kWarps);
    }
    if constexpr (kIsCode<E>) {
      for (int i = 0; i < Shape::kCodeSlots; ++i) {
        BarrierInit(&s.ring.full[i], 1);
        BarrierInit(&s.ring.empty[i], kConverterWarps<Shape>);
      }
    }
    BarrierInitFence();
    PrefetchTensorMap(&p.q_map);
    PrefetchTensorMap(&p.k_map);
    PrefetchTensorMap(&p.v_map);
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / 128;
  if (group == 0) {
    ReleaseRegisters<Shape::kProducerRegisters>();
    if (threadIdx.x < 32) {
      Producer<E, kHeadDim>(p, s).Run();
    } else if constexpr (kIsCode<E> && kConverterRegisters<Shape> == 0) {
      Converter<kHeadDim>(s).Run();
    }
  } else if (group <= kMathGroups) {
    ClaimRegisters<Shape::kMathRegisters>();
    MathGroup<T, E, kHeadDim>(p, s, group - 1).Run();
  } else if constexpr (kConverterRegisters<Shape> != 0) {
    ReleaseRegisters<kConverterRegisters<Shape>>();
    Converter<kHeadDim>(s).Run();
  }
}

int Log2(int n) {
  int log = 0;
  while ((1 << log) < n) ++log;
  return log;
}

template <typename T, typename E, int kHeadDim>
cudaError_t Launch(const KernelParams& params, cudaStream_t stream) {
  const auto kernel = PrefillKernel<T, E, kHeadDim>;
  constexpr int kBytes = sizeof(SharedStorage<E, kHeadDim>);
  static_assert(kBytes <= 227 * 1024);
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  // No more than there is room for sums of.
  kernel<<<std::min(processors, kMostSharedUnits), kThreads<TileShape<E, kHeadDim>>, kBytes,
           stream>>>(params);
  return cudaGetLastError();
}

template <int kHeadDim>
cudaError_t LaunchSize(KvDType dtype, const KernelParams& p, cudaStream_t stream) {
  if (dtype == KvDType::kBF16) return Launch<__nv_bfloat16, __nv_bfloat16, kHeadDim>(p, stream);
  if (dtype == KvDType::kF16) return Launch<__half, __half, kHeadDim>(p, stream);
  if constexpr (HasFastFp8(kHeadDim)) return Launch<__half, uint8_t, kHeadDim>(p, stream);
  return cudaErrorNotSupported;
}

}  // namespace

cudaError_t LaunchFastPrefill(const AttentionParams& a, PrefillLayout layout, void* scratch,
                              cudaStream_t stream) {
  if (a.selection.num_tiles == 0) return cudaSuccess;
  KernelParams p;
  p.shape = MakeUnitShape(a, layout);
  cudaError_t error = EncodeQueryMap(a.q, p.shape.box_heads, p.shape.box_rows, &p.q_map);
  if (error == cudaSuccess) error = EncodePageMap(a.cache, a.cache.k, PageReads::kShared, &p.k_map);
  if (error == cudaSuccess) error = EncodePageMap(a.cache, a.cache.v, PageReads::kShared, &p.v_map);
  if (error != cudaSuccess) return error;
  const ScratchLayout at = MakeScratchLayout(a, layout);
  char* base = static_cast<char*>(scratch);
  p.plan = static_cast<PrefillPlan*>(scratch);
  p.order = reinterpret_cast<const uint32_t*>(base + (at.shared ? at.items : at.order));
  p.shared = at.shared;
  p.most_segments = at.most_segments;
  p.marks = reinterpret_cast<uint32_t*>(base + at.marks);
  p.parts = reinterpret_cast<float*>(base + at.parts);
  p.pages = a.page_table.pages;
  p.table_stride = a.page_table.stride;
  p.kv_lens = a.kv_lens;
  p.selection = a.selection;
  p.num_pages = a.cache.num_pages;
  p.pages_per_entry_log2 = Log2(a.selection.entry_tokens / kPageTokens);
  p.box_heads_log2 = Log2(p.shape.box_heads);
  p.num_heads = static_cast<int32_t>(a.q.shape[1]);
  p.scale = a.scale;
  p.v_scale = a.cache.v_scale;
  p.softcap = a.softcap;
  p.sinks = a.sinks;
  p.out = a.out.data;
  p.out_row_stride = a.out.strides[0];
  p.out_head_stride = a.out.strides[1];
  p.lse = a.lse;
  switch (a.cache.head_dim) {
    case 64:
      return LaunchSize<64>(a.cache.dtype, p, stream);
    case 128:
      return LaunchSize<128>(a.cache.dtype, p, stream);
    case 256:
      return LaunchSize<256>(a.cache.dtype, p, stream);
  }
  return cudaErrorNotSupported;
}

}  // namespace longstride::kernels::cuda

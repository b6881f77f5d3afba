// Attention over lists of KV pages for Hopper: few query rows per list, bound by the reading of
// keys and values.
//
// Persistent blocks of one producer warp and four math warps. A unit is one part of one list; its
// query rows (all heads of the KV head) are packed into one 16-row tensor-core tile. The producer
// resolves page ids ahead of time and keeps a ring of pages (K and V of one head, 64 tokens) filled
// by bulk tensor copies. Each math warp takes 16 tokens of every page and keeps its own maximum,
// sum and output, so that nothing but the ring synchronises warps until the unit ends; then the
// four are merged in order and stored. A second kernel merges a list's parts in ascending order.
#include "kernels/cuda/attention/decode_params.h"
#include "kernels/cuda/attention/edges.cuh"
#include "kernels/cuda/attention/fp8_sizes.h"
#include "kernels/cuda/attention/fragments.cuh"
#include "kernels/cuda/attention/mma.h"
#include "kernels/cuda/attention/tensor_maps.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/pipeline.cuh"

namespace longstride::kernels::cuda {
namespace {

constexpr int kMathWarps = 4;
constexpr int kMathThreads = kMathWarps * 32;
constexpr int kThreads = kMathThreads + 32;
constexpr int kMathBarrier = 1;
constexpr int kMergeColumns = 64;
constexpr int kMaxSlots = 12;
constexpr int kQuerySlots = 2;
constexpr int kWarpTokens = kPageTokens / kMathWarps;
static_assert(kWarpTokens == 16);

struct KernelParams {
  CUtensorMap k_map, v_map;
  DecodeScratch scratch;
  DecodeLayout layout;
  const int32_t* entries;
  const EdgeRule* edges;
  const int32_t* pages;
  int64_t table_stride;
  int32_t num_pages;
  int32_t pages_per_entry_log2;
  int32_t slots;
  float scale, softcap;
  const void* q;
  int64_t q_row_stride, q_head_stride;  // elements
};

struct PageTask {
  int32_t base;
  int32_t needs_mask;
  int32_t exist;  // keys that exist in a last page, 0 if it is full
};

struct UnitTask {
  int32_t index;  // of the unit; -1: no more
  int32_t num_pages;
  int32_t num_rows;  // packed
  int32_t first_position;
  int32_t kv_len;
  EdgeRule edge;
};

// Fixed part of a block's shared memory; the ring, the queries and the merge area precede it.
struct Control {
  uint64_t k_full[kMaxSlots], v_full[kMaxSlots], empty[kMaxSlots];
  uint64_t q_full[kQuerySlots], q_empty[kQuerySlots];
  PageTask page[kMaxSlots];
  UnitTask unit[kQuerySlots];
  float2 norms[kMathWarps][kDecodeRows];
};

// E: the cache's element, 2 bytes, or uint8_t for e4m3.
template <typename E, int kHeadDim>
struct Sizes {
  static constexpr int kPanelRowBytes = PagePanelBytes(kHeadDim * sizeof(E));
  static constexpr int kPanelBytes = kPageTokens * kPanelRowBytes;
  static constexpr int kPanelColumns = kPanelRowBytes / sizeof(E);
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kHalfBytes = kPanels * kPanelBytes;  // K or V of one page
  static constexpr int kSlotBytes = 2 * kHalfBytes;
  static constexpr int kQueryRowBytes = kHeadDim * 2 + 16;  // padded against bank conflicts
  static int Shared(int slots, int rows) {
    return slots * kSlotBytes + kQuerySlots * kDecodeRows * kQueryRowBytes +
           kMathWarps * rows * kMergeColumns * 4 + static_cast<int>(sizeof(Control));
  }
};

template <typename E, int kHeadDim>
struct Areas {
  uint8_t* ring;
  uint8_t* queries;
  float* merge;
  Control* control;
  __device__ Areas(uint8_t* shared, int slots, int rows) {
    using S = Sizes<E, kHeadDim>;
    ring = shared;
    queries = ring + slots * S::kSlotBytes;
    merge = reinterpret_cast<float*>(queries + kQuerySlots * kDecodeRows * S::kQueryRowBytes);
    control = reinterpret_cast<Control*>(merge + kMathWarps * rows * kMergeColumns);
  }
};

// A ring position with a run-time number of slots.
struct Cursor {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// --- producer ------------------------------------------------------------------------------------

template <typename E, int kHeadDim>
class Producer {
 public:
  using S = Sizes<E, kHeadDim>;
  __device__ Producer(const KernelParams& p, const Areas<E, kHeadDim>& a)
      : p_(p), a_(a), lane_(static_cast<int>(threadIdx.x) & 31) {}

  // Three units are in hand at a time: the record of the one after next, the list entries and then
  // the page ids of the next, the pages of the current one. Each read is issued long before its
  // use.
  __device__ void Run() {
    const int32_t units = p_.scratch.header->num_units, step = static_cast<int32_t>(gridDim.x);
    int32_t index = static_cast<int32_t>(blockIdx.x);
    // Read before it is known to exist, to save a round trip; the area holds a unit per block.
    DecodeUnit now = p_.scratch.units[index], next = now, later;
    if (index + step < units) next = p_.scratch.units[index + step];
    Lookup found;
    if (index < units) {
      FindEntry(now, &found);
      FindPage(now, &found);
    }
    for (; index < units; index += step) {
      const Page page = Resolve(now, found);
      if (index + 2 * step < units) later = p_.scratch.units[index + 2 * step];
      const bool more = index + step < units;
      if (more) FindEntry(next, &found);
      SendUnit(now, index, page.physical);
      bool looked_up = false;
      for (uint32_t ready = __ballot_sync(0xffffffffu, page.physical >= 0); ready != 0;
           ready &= ready - 1) {
        SendPage(now, page, __ffs(ready) - 1);
        if (more && !looked_up) FindPage(next, &found);
        looked_up = true;
      }
      if (more && !looked_up) FindPage(next, &found);
      now = next;
      next = later;
    }
    if (lane_ == 0) {
      BarrierWait(&a_.control->q_empty[q_.slot], q_.parity ^ 1);
      a_.control->unit[q_.slot].index = -1;
      BarrierArrive(&a_.control->q_full[q_.slot]);
    }
  }

 private:
  // What was read for this lane's page of a unit.
  struct Lookup {
    int32_t entry = kNoEntry;
    int32_t physical = kNoPage;
    EdgeRule edge = {};
  };
  // This lane's page: physical id (-1: nothing to read), logical number * 2 + needs a mask.
  struct Page {
    int32_t physical = -1;
    int32_t logical_and_mask = 0;
  };

  __device__ __forceinline__ void FindEntry(const DecodeUnit& u, Lookup* found) const {
    found->edge = p_.edges[u.list_head];
    found->entry =
        lane_ < u.num_pages ? p_.entries[(u.list_at + lane_) >> p_.pages_per_entry_log2] : kNoEntry;
  }
  __device__ __forceinline__ int64_t Logical(const DecodeUnit& u, int32_t entry) const {
    return (static_cast<int64_t>(entry) << p_.pages_per_entry_log2) +
           ((u.list_at + lane_) & ((1 << p_.pages_per_entry_log2) - 1));
  }
  __device__ __forceinline__ void FindPage(const DecodeUnit& u, Lookup* found) const {
    if (found->entry < 0) return;
    const int64_t logical = Logical(u, found->entry);
    // Entries past the sequence's end have no place in the table.
    if (logical * kPageTokens < u.kv_len) {
      found->physical = p_.pages[u.sequence * p_.table_stride + logical];
    }
  }
  __device__ __forceinline__ Page Resolve(const DecodeUnit& u, const Lookup& found) {
    Page page;
    edge_ = found.edge;
    if (found.entry < 0) return page;
    const QuerySpan span = {u.first_position, u.first_position + u.num_rows - 1, u.kv_len};
    const int64_t logical = Logical(u, found.entry), base = logical * kPageTokens;
    if (PageIsAhead(edge_, span, base)) return page;
    if (found.physical < 0 || found.physical >= p_.num_pages) {
      p_.scratch.header->status.status = 1;
      return page;
    }
    page.physical = found.physical;
    page.logical_and_mask = static_cast<int32_t>(
        logical * 2 + (PageIsFull(edge_, span, static_cast<int32_t>(base)) ? 0 : 1));
    return page;
  }

  __device__ void SendUnit(const DecodeUnit& u, int32_t index, int32_t physical) {
    const int count = __popc(__ballot_sync(0xffffffffu, physical >= 0));
    const int rows = u.num_rows * p_.layout.heads_per_item;
    uint64_t* full = &a_.control->q_full[q_.slot];
    if (lane_ == 0) {
      BarrierWait(&a_.control->q_empty[q_.slot], q_.parity ^ 1);
      a_.control->unit[q_.slot] = {index, count, rows, u.first_position, u.kv_len, edge_};
      BarrierArriveExpect(full, rows * kHeadDim * 2);
    }
    __syncwarp();
    if (lane_ < rows) {
      const int row = lane_ / p_.layout.heads_per_item, head = lane_ % p_.layout.heads_per_item;
      const uint16_t* from = static_cast<const uint16_t*>(p_.q) +
                             (static_cast<int64_t>(u.row_begin) + row) * p_.q_row_stride +
                             (u.head + head) * p_.q_head_stride;
      BulkLoad(full,
               SharedAddress(a_.queries) + (q_.slot * kDecodeRows + lane_) * S::kQueryRowBytes,
               from, kHeadDim * 2);
    }
    q_.Advance(kQuerySlots);
  }

  __device__ __forceinline__ void SendPage(const DecodeUnit& u, const Page& mine, int from) {
    const int32_t page = __shfl_sync(0xffffffffu, mine.physical, from);
    const int32_t logical = __shfl_sync(0xffffffffu, mine.logical_and_mask, from);
    if (lane_ == 0) {
      Control& c = *a_.control;
      BarrierWait(&c.empty[ring_.slot], ring_.parity ^ 1);
      const int32_t base = (logical >> 1) * kPageTokens;
      const int32_t exist = u.kv_len - base;
      c.page[ring_.slot] = {base, logical & 1, exist < kPageTokens ? exist : 0};
      const uint32_t to = SharedAddress(a_.ring) + ring_.slot * S::kSlotBytes;
      SendHalf(&p_.k_map, &c.k_full[ring_.slot], to, u.kv_head, page);
      SendHalf(&p_.v_map, &c.v_full[ring_.slot], to + S::kHalfBytes, u.kv_head, page);
    }
    ring_.Advance(p_.slots);
  }

  __device__ __forceinline__ void SendHalf(const CUtensorMap* map, uint64_t* full, uint32_t to,
                                           int kv_head, int32_t page) {
    BarrierArriveExpect(full, S::kHalfBytes);
#pragma unroll
    for (int h = 0; h < S::kPanels; ++h) {
      TensorLoad4(map, full, to + h * S::kPanelBytes, h * S::kPanelColumns, 0, kv_head, page);
    }
  }

  const KernelParams& p_;
  const Areas<E, kHeadDim>& a_;
  const int lane_;
  Cursor ring_, q_;
  EdgeRule edge_ = {};  // of the unit resolved last
};

// --- math ----------------------------------------------------------------------------------------

template <typename T, typename E, int kHeadDim>
class MathWarp {
 public:
  using S = Sizes<E, kHeadDim>;
  __device__ MathWarp(const KernelParams& p, const Areas<E, kHeadDim>& a)
      : p_(p),
        a_(a),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) & 31),
        factor_(p.softcap > 0.0f ? kLog2E : p.scale * kLog2E) {}

  __device__ void Run() {
    while (true) {
      BarrierWait(&a_.control->q_full[q_.slot], q_.parity);
      const UnitTask u = ReadThroughOneLane(&a_.control->unit[q_.slot]);
      if (u.index < 0) break;
      LoadQueries();
      __syncwarp();
      if (lane_ == 0) BarrierArrive(&a_.control->q_empty[q_.slot]);
      q_.Advance(kQuerySlots);
#pragma unroll
      for (int i = 0; i < kHeadDim / 8; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) o_[i][c] = 0.0f;
      }
      top_[0] = top_[1] = NegativeInfinity();
      sum_[0] = sum_[1] = 0.0f;
      for (int32_t n = 0; n < u.num_pages; ++n) ComputePage(u);
      Store(u);
    }
  }

 private:
  __device__ __forceinline__ void LoadQueries() {
    const int first = q_.slot * kDecodeRows;
    if constexpr (!kIsCode<E>) {
      const uint32_t q = SharedAddress(a_.queries) + (first + (lane_ & 15)) * S::kQueryRowBytes +
                         (lane_ >> 4) * 16;
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; ++k) LoadMatrix4(query_[k], q + k * 32);
    } else {
      const uint8_t* q =
          a_.queries + (first + (lane_ >> 2)) * S::kQueryRowBytes + QueryChannel<E>(lane_, 0) * 2;
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const uint2 both =
              *reinterpret_cast<const uint2*>(q + r * 8 * S::kQueryRowBytes + k * 32);
          query_[k][r] = both.x;
          query_[k][2 + r] = both.y;
        }
      }
    }
  }

  // Address of 16 bytes of a swizzled page half: token row, chunk of 16 bytes.
  __device__ __forceinline__ static uint32_t Chunk(uint32_t half, int token, int chunk) {
    constexpr int kChunks = S::kPanelRowBytes / 16;
    return half + chunk / kChunks * S::kPanelBytes +
           PanelOffset<S::kPanelRowBytes>(token, chunk % kChunks);
  }

  __device__ __forceinline__ void ComputePage(const UnitTask& u) {
    Control& c = *a_.control;
    const uint32_t k = SharedAddress(a_.ring) + ring_.slot * S::kSlotBytes;
    const uint32_t v = k + S::kHalfBytes;
    BarrierWait(&c.k_full[ring_.slot], ring_.parity);
    const PageTask task = ReadThroughOneLane(&c.page[ring_.slot]);
    float s[2][4] = {};
    const auto key_at = [&](int n, int chunk) { return Chunk(k, warp_ * kWarpTokens + n, chunk); };
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; step += 2) {
      uint32_t b[2][4];
      LoadKeys<E>(key_at, lane_, step, b);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        Mma16x8x16<T>(s[0], query_[step + n], b[n]);
        Mma16x8x16<T>(s[1], query_[step + n], b[n] + 2);
      }
    }
    uint32_t prob[4];
    Softmax(u, task, s, prob);
    BarrierWait(&c.v_full[ring_.slot], ring_.parity);
    if (task.exist != 0) ClearTail(v, task.exist);
    const auto value_at = [&](int n, int chunk) {
      return Chunk(v, warp_ * kWarpTokens + n, chunk);
    };
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; n += 2) {
      uint32_t b[2][4];
      LoadValues<E>(value_at, lane_, n, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) Mma16x8x16<T>(o_[2 * n + i], prob, b[i / 2] + i % 2 * 2);
    }
    __syncwarp();
    if (lane_ == 0) BarrierArrive(&c.empty[ring_.slot]);
    ring_.Advance(p_.slots);
  }

  __device__ __forceinline__ void Softmax(const UnitTask& u, const PageTask& task, float (&s)[2][4],
                                          uint32_t (&prob)[4]) {
    if (p_.softcap > 0.0f) {
      const float inner = p_.scale / p_.softcap;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) s[n][c] = p_.softcap * Tanh(s[n][c] * inner);
      }
    }
    if (task.needs_mask) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = (lane_ >> 2) + 8 * r;
        const VisibleRange range(u.edge, u.first_position + row / p_.layout.heads_per_item,
                                 u.kv_len);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int32_t j = task.base + warp_ * kWarpTokens + n * 8 + (lane_ & 3) * 2 + c;
            if (!range.Sees(j)) s[n][r * 2 + c] = NegativeInfinity();
          }
        }
      }
    }
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float here =
          fmaxf(fmaxf(s[0][r * 2], s[0][r * 2 + 1]), fmaxf(s[1][r * 2], s[1][r * 2 + 1]));
      const float best = fmaxf(top_[r], QuadMax(here) * factor_);
      const float subtract = best == NegativeInfinity() ? 0.0f : best;
      shrink[r] = Exp2(top_[r] - subtract);
      top_[r] = best;
      float part = 0.0f;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = s[n][r * 2 + c];
          x = Exp2(fmaf(x, factor_, -subtract));
          part += x;
        }
        prob[n * 2 + r] = Pack<T>(s[n][r * 2], s[n][r * 2 + 1]);
      }
      sum_[r] = sum_[r] * shrink[r] + part;
    }
    // Multiplying by 1 changes nothing: skip it where no row of the warp has a new maximum.
    if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        o_[n][0] *= shrink[0];
        o_[n][1] *= shrink[0];
        o_[n][2] *= shrink[1];
        o_[n][3] *= shrink[1];
      }
    }
  }

  // Values beyond the sequence's length may be anything, and 0 * NaN is NaN: zero this warp's.
  __device__ __forceinline__ void ClearTail(uint32_t v, int32_t exist) {
    const int first = max(exist, warp_ * kWarpTokens), end = (warp_ + 1) * kWarpTokens;
    for (int token = first; token < end; ++token) {
      for (int chunk = lane_; chunk < kHeadDim * static_cast<int>(sizeof(E)) / 16; chunk += 32) {
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(Chunk(v, token, chunk)),
                     "r"(0)
                     : "memory");
      }
    }
    AsyncProxyFence();
    __syncwarp();
  }

  // Merges the four warps in order and stores the unit's maximum, sum and output.
  __device__ __forceinline__ void Store(const UnitTask& u) {
    Control& c = *a_.control;
    const int g = lane_ >> 2, t = lane_ & 3;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = QuadSum(sum_[r]);
      if (t == 0) c.norms[warp_][g + 8 * r] = make_float2(top_[r], total);
    }
    NamedBarrierSync(kMathBarrier, kMathThreads);
    float weight[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float best = NegativeInfinity();
#pragma unroll
      for (int w = 0; w < kMathWarps; ++w) best = fmaxf(best, c.norms[w][g + 8 * r].x);
      weight[r] = top_[r] == NegativeInfinity() ? 0.0f : Exp2(top_[r] - best);
    }
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t at = static_cast<int64_t>(u.index) * p_.layout.rows;
    if (thread < u.num_rows) {
      float best = NegativeInfinity(), sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kMathWarps; ++w) best = fmaxf(best, c.norms[w][thread].x);
#pragma unroll
      for (int w = 0; w < kMathWarps; ++w) {
        const float2 n = c.norms[w][thread];
        if (n.x != NegativeInfinity()) sum += n.y * Exp2(n.x - best);
      }
      p_.scratch.norms[at + thread] = make_float2(best, sum);
    }
    const int rows = p_.layout.rows;
#pragma unroll
    for (int panel = 0; panel < kHeadDim / kMergeColumns; ++panel) {
      float* mine = a_.merge + warp_ * rows * kMergeColumns;
#pragma unroll
      for (int n = 0; n < kMergeColumns / 16; ++n) {
        const float* o = o_[panel * 8 + n * 2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = g + 8 * r;
          if (row >= u.num_rows) continue;
          float* to = mine + row * kMergeColumns + n * 16;
          ForOutputPairs<E>(o, o + 4, lane_, r, [&](int c, float first, float second) {
            *reinterpret_cast<float2*>(to + c) = make_float2(first * weight[r], second * weight[r]);
          });
        }
      }
      NamedBarrierSync(kMathBarrier, kMathThreads);
      for (int e = thread; e < u.num_rows * (kMergeColumns / 4); e += kMathThreads) {
        const int row = e / (kMergeColumns / 4), column = e % (kMergeColumns / 4) * 4;
        float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < kMathWarps; ++w) {
          const float4 x = *reinterpret_cast<const float4*>(
              a_.merge + (w * rows + row) * kMergeColumns + column);
          total.x += x.x;
          total.y += x.y;
          total.z += x.z;
          total.w += x.w;
        }
        *reinterpret_cast<float4*>(p_.scratch.parts + (at + row) * kHeadDim +
                                   panel * kMergeColumns + column) = total;
      }
      NamedBarrierSync(kMathBarrier, kMathThreads);
    }
  }

  const KernelParams& p_;
  const Areas<E, kHeadDim>& a_;
  const int warp_, lane_;
  const float factor_;
  Cursor ring_, q_;
  uint32_t query_[kHeadDim / 16][4];
  float o_[kHeadDim / 8][4];
  float top_[2];  // base-2 logarithms
  float sum_[2];
};

template <typename T, typename E, int kHeadDim>
__global__ void __launch_bounds__(kThreads, kHeadDim <= 128 ? 2 : 1)
    DecodeKernel(const __grid_constant__ KernelParams p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const Areas<E, kHeadDim> areas(shared, p.slots, p.layout.rows);
  Control& c = *areas.control;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.slots; ++i) {
      BarrierInit(&c.k_full[i], 1);
      BarrierInit(&c.v_full[i], 1);
      BarrierInit(&c.empty[i], kMathWarps);
    }
    for (int i = 0; i < kQuerySlots; ++i) {
      BarrierInit(&c.q_full[i], 1);
      BarrierInit(&c.q_empty[i], kMathWarps);
    }
    BarrierInitFence();
    PrefetchTensorMap(&p.k_map);
    PrefetchTensorMap(&p.v_map);
  }
  __syncthreads();
  // Everything so far may run while the kernel before ends. The merge may start to launch; it waits
  // for this grid's end before it reads.
  WaitForPredecessors();
  LetDependentsStart();
  if (threadIdx.x >= kMathThreads) {
    Producer<E, kHeadDim>(p, areas).Run();
  } else {
    MathWarp<T, E, kHeadDim>(p, areas).Run();
  }
}

// --- merge ---------------------------------------------------------------------------------------

struct MergeParams {
  DecodeScratch scratch;
  DecodeLayout layout;
  const QueryTile* tiles;
  const float* sinks;
  void* out;
  int64_t out_row_stride, out_head_stride;  // elements
  float* lse;
  int32_t num_heads;
  float v_scale;
};

constexpr int kMergeWarps = 8;

__device__ __forceinline__ void Store2(float* to, float lo, float hi) {
  *reinterpret_cast<float2*>(to) = make_float2(lo, hi);
}
template <typename T>
__device__ __forceinline__ void Store2(T* to, float lo, float hi) {
  *reinterpret_cast<uint32_t*>(to) = Pack<T>(lo, hi);
}

// One block per (item, row). Each warp adds an eighth of the parts, in order; then the eighths.
template <typename Out, int kHeadDim>
__global__ void __launch_bounds__(kMergeWarps * 32) MergeKernel(const MergeParams p) {
  constexpr int kPerLane = kHeadDim / 32;
  __shared__ float totals[kMergeWarps][kHeadDim];
  __shared__ float2 norms[kMergeWarps];
  BeginOverlapped();
  const int item = static_cast<int>(blockIdx.x / p.layout.rows);
  const int row = static_cast<int>(blockIdx.x % p.layout.rows);
  const QueryTile tile = p.tiles[item / p.layout.item_heads];
  if (row >= tile.num_rows * p.layout.heads_per_item) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) & 31;
  const int before = p.scratch.first[item], count = p.scratch.first[item + 1] - before;
  const int item_head = item % p.layout.item_heads;
  const int first = p.layout.shared_lists ? before - item_head * count + item_head : before;
  const int64_t stride = static_cast<int64_t>(p.layout.part_stride()) * p.layout.rows;
  const float2* norm = p.scratch.norms + static_cast<int64_t>(first) * p.layout.rows + row;
  const float* part = p.scratch.parts +
                      (static_cast<int64_t>(first) * p.layout.rows + row) * kHeadDim +
                      lane * kPerLane;
  float total[kPerLane] = {};
  float best = NegativeInfinity(), sum = 0.0f;
  const int share = (count + kMergeWarps - 1) / kMergeWarps;
  const int end = min(count, (warp + 1) * share);
#pragma unroll 4
  for (int i = warp * share; i < end; ++i) {
    const float2 n = norm[i * stride];
    const float* from = part + i * stride * kHeadDim;
    const float most = fmaxf(best, n.x);
    const float subtract = most == NegativeInfinity() ? 0.0f : most;
    const float keep = Exp2(best - subtract), weight = Exp2(n.x - subtract);
    best = most;
    sum = fmaf(sum, keep, n.y * weight);
#pragma unroll
    for (int c = 0; c < kPerLane; ++c) total[c] = fmaf(total[c], keep, from[c] * weight);
  }
#pragma unroll
  for (int c = 0; c < kPerLane; ++c) totals[warp][lane * kPerLane + c] = total[c];
  if (lane == 0) norms[warp] = make_float2(best, sum);
  __syncthreads();
  float weights[kMergeWarps];
  best = NegativeInfinity();
#pragma unroll
  for (int w = 0; w < kMergeWarps; ++w) best = fmaxf(best, norms[w].x);
  const float subtract = best == NegativeInfinity() ? 0.0f : best;
  sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kMergeWarps; ++w) {
    weights[w] = Exp2(norms[w].x - subtract);
    sum = fmaf(norms[w].y, weights[w], sum);
  }
  const int head = item_head * p.layout.heads_per_item + row % p.layout.heads_per_item;
  const int64_t out_row = static_cast<int64_t>(tile.row_begin) + row / p.layout.heads_per_item;
  const bool empty = !(sum > 0.0f);
  const float natural = best * kLn2;
  if (p.lse != nullptr && threadIdx.x == 0) {
    p.lse[out_row * p.num_heads + head] = empty ? NegativeInfinity() : natural + logf(sum);
  }
  float factor = empty ? 0.0f : 1.0f / sum;
  if (p.sinks != nullptr && !empty) {
    const float sink = p.sinks[head], most = fmaxf(natural, sink);
    const float mine = __expf(natural - most);
    factor = mine / (sum * mine + __expf(sink - most));
  }
  factor *= p.v_scale;
  Out* out = static_cast<Out*>(p.out) + out_row * p.out_row_stride + head * p.out_head_stride;
  for (int pair = static_cast<int>(threadIdx.x); pair < kHeadDim / 2; pair += kMergeWarps * 32) {
    float lo = 0.0f, hi = 0.0f;
#pragma unroll
    for (int w = 0; w < kMergeWarps; ++w) {
      lo = fmaf(totals[w][pair * 2], weights[w], lo);
      hi = fmaf(totals[w][pair * 2 + 1], weights[w], hi);
    }
    Store2(out + pair * 2, lo * factor, hi * factor);
  }
}

template <typename T, typename E, int kHeadDim>
cudaError_t Launch(KernelParams p, const MergeParams& m, DType out, cudaStream_t stream) {
  using S = Sizes<E, kHeadDim>;
  constexpr int kBlocks = kHeadDim <= 128 ? 2 : 1;  // per multiprocessor
  int device = 0, processors = 0, per_processor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error =
      cudaDeviceGetAttribute(&per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (error != cudaSuccess) return error;
  const int budget = per_processor / kBlocks - 1024;  // 1 KB of each block is the system's
  p.slots = kMaxSlots;
  while (p.slots > 1 && S::Shared(p.slots, p.layout.rows) > budget) --p.slots;
  const int bytes = S::Shared(p.slots, p.layout.rows);
  const auto kernel = DecodeKernel<T, E, kHeadDim>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(std::min(processors * kBlocks, kMaxBlocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  error = cudaLaunchKernelEx(&config, kernel, p);
  if (error != cudaSuccess) return error;
  config.dynamicSmemBytes = 0;
  config.gridDim = dim3(static_cast<unsigned>(p.layout.items) * p.layout.rows);
  config.blockDim = dim3(kMergeWarps * 32);
  switch (out) {
    case DType::kF16:
      return cudaLaunchKernelEx(&config, MergeKernel<__half, kHeadDim>, m);
    case DType::kBF16:
      return cudaLaunchKernelEx(&config, MergeKernel<__nv_bfloat16, kHeadDim>, m);
    default:
      return cudaLaunchKernelEx(&config, MergeKernel<float, kHeadDim>, m);
  }
}

template <int kHeadDim>
cudaError_t LaunchSize(KvDType dtype, const KernelParams& p, const MergeParams& m, DType out,
                       cudaStream_t stream) {
  if (dtype == KvDType::kBF16) {
    return Launch<__nv_bfloat16, __nv_bfloat16, kHeadDim>(p, m, out, stream);
  }
  if (dtype == KvDType::kF16) return Launch<__half, __half, kHeadDim>(p, m, out, stream);
  if constexpr (HasFastFp8(kHeadDim)) return Launch<__half, uint8_t, kHeadDim>(p, m, out, stream);
  return cudaErrorNotSupported;
}

int Log2(int n) {
  int log = 0;
  while ((1 << log) < n) ++log;
  return log;
}

}  // namespace

cudaError_t LaunchFastDecode(const AttentionParams& a, int32_t max_list_pages, void* scratch,
                             cudaStream_t stream) {
  if (a.selection.num_tiles == 0) return cudaSuccess;
  const DecodeLayout layout = LayoutOf(a, max_list_pages);
  const DecodeScratch areas(layout, scratch);
  KernelParams p = {.k_map = {}, .v_map = {}, .scratch = areas, .layout = layout};
  cudaError_t error = EncodePageMap(a.cache, a.cache.k, PageReads::kOnce, &p.k_map);
  if (error == cudaSuccess) error = EncodePageMap(a.cache, a.cache.v, PageReads::kOnce, &p.v_map);
  if (error != cudaSuccess) return error;
  p.entries = a.selection.entries;
  p.edges = a.selection.edges;
  p.pages = a.page_table.pages;
  p.table_stride = a.page_table.stride;
  p.num_pages = a.cache.num_pages;
  p.pages_per_entry_log2 = Log2(a.selection.entry_tokens / kPageTokens);
  p.scale = a.scale;
  p.softcap = a.softcap;
  p.q = a.q.data;
  p.q_row_stride = a.q.strides[0];
  p.q_head_stride = a.q.strides[1];
  const MergeParams m = {areas,
                         layout,
                         a.selection.tiles,
                         a.sinks,
                         a.out.data,
                         a.out.strides[0],
                         a.out.strides[1],
                         a.lse,
                         static_cast<int32_t>(a.q.shape[1]),
                         a.cache.v_scale};
  switch (a.cache.head_dim) {
    case 64:
      return LaunchSize<64>(a.cache.dtype, p, m, a.out.dtype, stream);
    case 128:
      return LaunchSize<128>(a.cache.dtype, p, m, a.out.dtype, stream);
    case 256:
      return LaunchSize<256>(a.cache.dtype, p, m, a.out.dtype, stream);
  }
  return cudaErrorNotSupported;
}

}  // namespace longstride::kernels::cuda

// Attention over lists of KV pages on every chip from sm_80 on: many query rows per list
// (FlashAttention-2's shape, arXiv 2307.08691, over paged lists).
//
// A block takes one work unit of the prefill plan, 128 rows of one list, or half of it where the
// head is too large. Its threads resolve a batch of the list's pages, then walk them: a warp holds
// 16 or 32 rows, computes their scores against one page, and adds the page's values, while the next
// page is copied. Exponentials are taken between the products with values that precede theirs.
// Every page is a tile of its own, so that a row's bits depend on its own list and keys only: pages
// that none of its keys are in change nothing.
// Bound: the rate of the warp-level instruction, and shared-memory reads of keys and values, which
// 32 rows of a warp share.
#pragma once

#include "kernels/cuda/attention/mma.h"
#include "kernels/cuda/attention/mma_common.cuh"
#include "kernels/cuda/attention/prefill_params.h"

namespace longstride::kernels::cuda {

// E: the cache's element, uint8_t for e4m3.
template <typename E, int kHeadDim>
struct MmaPrefillShape {
  using Rows = HeadRows<kHeadDim* static_cast<int>(sizeof(E))>;
  using QueryRows = HeadRows<kHeadDim * 2>;
  static constexpr int kTiles = kHeadDim <= 128 ? 2 : 1;  // of 16 rows, for a warp
  static constexpr int kWarps = kHeadDim == 192 ? 8 : 4;
  static constexpr int kRows = kWarps * kTiles * 16, kThreads = kWarps * 32;
  // Two pages of keys and values where two blocks still fit a multiprocessor's shared memory, or
  // registers allow one block only.
  static constexpr int kSlots = kHeadDim <= 96 || kHeadDim == 192 ? 2 : 1;
  static constexpr bool kQueriesInRegisters = kHeadDim == 64 || kHeadDim == 192;
  // Queries in registers pass through the keys' and values' slots on their way.
  static constexpr int kQueryBytes = kQueriesInRegisters ? 0 : kRows * QueryRows::kRowBytes;
  static_assert(!kQueriesInRegisters ||
                kRows * QueryRows::kRowBytes <= 2 * kSlots * Rows::kPageBytes);
  static constexpr int kSharedBytes = 2 * kSlots * Rows::kPageBytes + kQueryBytes + kThreads * 8;
  static_assert(kSharedBytes <= 99 * 1024);  // what sm_86, sm_89 and sm_120 give a block
};

// What a block works on. It lies in shared memory: registers are for sums.
struct MmaPrefillUnit {
  int rows;       // positions
  int first_row;  // packed row that the block begins with
  int64_t row_begin;
  int first_head;
  const int32_t *entries, *pages;
  int32_t num_pages;
  QuerySpan span;
  EdgeRule edge;
  const char *k, *v;
};

template <typename T, typename E, int kHeadDim>
class MmaPrefill {
 public:
  using Shape = MmaPrefillShape<E, kHeadDim>;
  using Rows = typename Shape::Rows;
  using QueryRows = typename Shape::QueryRows;

  __device__ __forceinline__ MmaPrefill(const MmaPrefillParams& p, uint8_t* shared,
                                        MmaPrefillUnit& unit)
      : p_(p),
        u_(unit),
        keys_(SharedAddress(shared)),
        values_(keys_ + Shape::kSlots * Rows::kPageBytes),
        queries_(Shape::kQueriesInRegisters ? keys_ : values_ + Shape::kSlots * Rows::kPageBytes),
        list_(reinterpret_cast<Page*>(shared + 2 * Shape::kSlots * Rows::kPageBytes +
                                      Shape::kQueryBytes)),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ & 31),
        query_lane_(queries_ +
                    QueryRows::At(thread_ / 32 * Shape::kTiles * 16 + (lane_ & 15), lane_ >> 4)),
        factor_(p.softcap > 0.0f ? kLog2E : p.scale * kLog2E) {}

  __device__ __forceinline__ void Run() {
    if (thread_ == 0) OpenUnit();
    __syncthreads();
    if (u_.first_row >= u_.rows << p_.box_heads_log2) return;
    row_ = u_.first_row + thread_ / 32 * (Shape::kTiles * 16) + (lane_ >> 2);
    LoadQueries();
#pragma unroll
    for (int m = 0; m < Shape::kTiles; ++m) {
      top_[m][0] = top_[m][1] = NegativeInfinity();
      sum_[m][0] = sum_[m][1] = 0.0f;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o_[m][n][e] = 0.0f;
      }
    }
    for (int32_t at = 0; at < u_.num_pages; at += Shape::kThreads) WalkPages(FindPages(at));
    WaitCopies<0>();
    Store();
  }

 private:
  struct Page {
    int32_t physical;
    int32_t logical_and_mask;
  };

  __device__ __forceinline__ void OpenUnit() const {
    constexpr int kParts = kTileRows / Shape::kRows;
    const uint32_t unit = p_.order[blockIdx.x / kParts];
    const KvSelection& sel = p_.selection;
    const uint32_t tile_index = unit / p_.shape.units_per_tile;
    const int in_tile = static_cast<int>(unit % p_.shape.units_per_tile);
    const int kv_head = in_tile / p_.shape.units_per_kv_head;
    const QueryTile tile = sel.tiles[tile_index];
    const bool plain = p_.shape.box_heads == 1;
    const int skipped = plain ? 0 : in_tile % p_.shape.units_per_kv_head * p_.shape.box_rows;
    const int list_head = sel.list_heads == ListHeads::kShared      ? 0
                          : sel.list_heads == ListHeads::kPerKvHead ? kv_head
                                                                    : in_tile;
    const int64_t list = static_cast<int64_t>(list_head) * sel.num_tiles + tile_index;
    // All reads before the first use: they are on their way together.
    const int64_t begin = sel.list_begin[list];
    const int32_t count = sel.list_count[list];
    const EdgeRule edge = sel.edges[list_head];
    const int32_t kv_len = p_.kv_lens[tile.sequence];
    MmaPrefillUnit u;
    u.rows = max(0, min(tile.num_rows - skipped, p_.shape.box_rows));
    u.first_row = static_cast<int>(blockIdx.x) % kParts * Shape::kRows;
    u.row_begin = static_cast<int64_t>(tile.row_begin) + skipped;
    u.first_head = plain ? in_tile : kv_head * p_.shape.box_heads;
    u.entries = sel.entries + begin;
    u.pages = p_.pages + tile.sequence * p_.table_stride;
    u.num_pages = count << p_.pages_per_entry_log2;
    u.span.kv_len = kv_len;
    u.span.first_position = tile.first_position + skipped;
    u.span.last_position = u.span.first_position + u.rows - 1;
    u.edge = edge;
    u.k = static_cast<const char*>(p_.cache.k) + kv_head * p_.cache.head_stride;
    u.v = static_cast<const char*>(p_.cache.v) + kv_head * p_.cache.head_stride;
    u_ = u;
  }

  // Queries that stay in shared memory are there when the first page is.
  __device__ __forceinline__ void LoadQueries() {
    const T* q = static_cast<const T*>(p_.q);
    for (int i = thread_; i < Shape::kRows * QueryRows::kChunks; i += Shape::kThreads) {
      const int row = i / QueryRows::kChunks, chunk = i % QueryRows::kChunks;
      const int packed = u_.first_row + row, position = packed >> p_.box_heads_log2;
      const int head = u_.first_head + (packed & (p_.shape.box_heads - 1));
      const bool real = position < u_.rows;
      const T* from =
          q + (u_.row_begin + (real ? position : 0)) * p_.q_row_stride + head * p_.q_head_stride;
      const uint32_t to = queries_ + QueryRows::At(row, chunk);
      if constexpr (!kIsCode<E>) {
        CopyAsync16(to, from + chunk * 8, real ? 16 : 0);
      } else {
        // The order of channels that LoadKeys has: pair t of half h of 16 channels.
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          CopyAsync4(to + t * 4, from + chunk / 2 * 16 + QueryChannel<E>(t, chunk & 1),
                     real ? 4 : 0);
        }
      }
    }
    CommitCopies();
    if constexpr (Shape::kQueriesInRegisters) {
      WaitCopies<0>();
      __syncthreads();
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) {
        LoadQuery(query_lane_, step, query_[step]);
      }
    }
  }
  // `queries`: query_lane_.
  __device__ __forceinline__ void LoadQuery(uint32_t queries, int step,
                                            uint32_t (&a)[Shape::kTiles][4]) const {
#pragma unroll
    for (int m = 0; m < Shape::kTiles; ++m) {
      LoadMatrix4(a[m], QueryRows::Behind(queries, step * 2) + m * 16 * QueryRows::kRowBytes);
    }
  }

  // Puts those of a batch of list positions that must be read into shared memory, in order.
  __device__ __forceinline__ int FindPages(int32_t at) {
    __shared__ int32_t counts[Shape::kWarps];
    const Page page = Find(at + thread_);
    const uint32_t ready = __ballot_sync(0xffffffffu, page.physical >= 0);
    if (lane_ == 0) counts[thread_ / 32] = __popc(ready);
    __syncthreads();  // also: nobody reads the batch or the pages before any more
    int before = 0, total = 0;
#pragma unroll
    for (int w = 0; w < Shape::kWarps; ++w) {
      if (w == thread_ / 32) before = total;
      total += counts[w];
    }
    if (page.physical >= 0) list_[before + __popc(ready & ((1u << lane_) - 1))] = page;
    __syncthreads();
    return total;
  }
  __device__ __forceinline__ Page Find(int32_t i) const {
    Page page = {-1, 0};
    if (i >= u_.num_pages) return page;
    const int32_t entry = u_.entries[i >> p_.pages_per_entry_log2];
    if (entry < 0) return page;
    const int64_t logical = (static_cast<int64_t>(entry) << p_.pages_per_entry_log2) +
                            (i & ((1 << p_.pages_per_entry_log2) - 1));
    const int64_t base = logical * kPageTokens;
    if (PageIsAhead(u_.edge, u_.span, base)) return page;
    const int32_t physical = u_.pages[logical];
    if (physical < 0 || physical >= p_.cache.num_pages) {
      p_.plan->status.status = 1;
      return page;
    }
    const bool full = PageIsFull(u_.edge, u_.span, static_cast<int32_t>(base));
    return {physical, static_cast<int32_t>(logical * 2) + (full ? 0 : 1)};
  }

  __device__ __forceinline__ void WalkPages(int count) {
    if (count == 0) return;
    CopyPage(u_.k, 0, keys_);
    if constexpr (Shape::kSlots == 2) CopyPage(u_.v, 0, values_);
    for (int j = 0; j < count; ++j) {
      const int slot = Shape::kSlots == 2 ? j & 1 : 0;
      WaitCopies<0>();
      __syncthreads();  // this page is there, and nobody reads the one before any more
      if constexpr (Shape::kSlots == 2) {
        if (j + 1 < count) {
          CopyPage(u_.k, j + 1, keys_ + (slot ^ 1) * Rows::kPageBytes);
          CopyPage(u_.v, j + 1, values_ + (slot ^ 1) * Rows::kPageBytes);
        }
      } else {
        CopyPage(u_.v, j, values_);
      }
      float s[Shape::kTiles][8][4];
      Scores(keys_ + slot * Rows::kPageBytes, s);
      if constexpr (Shape::kSlots == 1) {
        WaitCopies<0>();
        __syncthreads();
        if (j + 1 < count) CopyPage(u_.k, j + 1, keys_);
      }
      Maxima(list_[j], s);
      Output(values_ + slot * Rows::kPageBytes, s);
    }
  }

  // Rows beyond the sequence's length may be anything, and 0 * NaN is NaN: they become zero.
  __device__ __forceinline__ void CopyPage(const char* head, int j, uint32_t to) const {
    const Page page = list_[j];
    const int exist = u_.span.kv_len - (page.logical_and_mask >> 1) * kPageTokens;
    const char* from = head + page.physical * p_.cache.page_stride + thread_ * 16;
    constexpr int kCount = kPageTokens * Rows::kChunks;
    if constexpr (kCount % Shape::kThreads == 0 && Rows::kSwizzled &&
                  Shape::kThreads % Rows::kChunks == 0) {
      // A thread's rows lie a power of two apart: its addresses differ by constants.
      constexpr int kStride = Shape::kThreads / Rows::kChunks;
      static_assert((kStride & (kStride - 1)) == 0);
      const int first = thread_ / Rows::kChunks;
      to += Rows::At(first, thread_ % Rows::kChunks);
#pragma unroll
      for (int n = 0; n < kCount / Shape::kThreads; ++n) {
        CopyAsync16(Rows::Behind(to, n * kStride & 7) + n * kStride * Rows::kRowBytes,
                    from + n * Shape::kThreads * 16, first + n * kStride < exist ? 16 : 0);
      }
    } else {
#pragma unroll
      for (int n = 0; n < (kCount + Shape::kThreads - 1) / Shape::kThreads; ++n) {
        const int i = n * Shape::kThreads + thread_;
        if (kCount % Shape::kThreads != 0 && i >= kCount) break;
        const int row = i / Rows::kChunks;
        CopyAsync16(to + Rows::At(row, i % Rows::kChunks), from + n * Shape::kThreads * 16,
                    row < exist ? 16 : 0);
      }
    }
    CommitCopies();
  }

  // Fragments of keys and values are read so many products before their own. A lane's part of their
  // addresses is computed once a page: steps and rows are constants away from it.
  static constexpr int kAhead = 2;

  __device__ __forceinline__ void Scores(uint32_t keys, float (&s)[Shape::kTiles][8][4]) {
    constexpr int kSteps = kHeadDim / 16, kProducts = kSteps * 4;
    const int r = lane_ & 7, i = lane_ >> 3;
    keys = Forgotten(
        keys + (kIsCode<E> ? Rows::At((i & 1) * 8 + r, 0) : Rows::At((i >> 1) * 8 + r, i & 1)));
    const uint32_t queries = Forgotten(query_lane_);
    uint32_t b[kAhead + 1][1][4];
    const auto load = [&](int product) {
      const int step = product / 4, n = product % 4;
      if (!Shape::kQueriesInRegisters && n == 0) LoadQuery(queries, step, query_[step & 1]);
      LoadKeys<E>(
          [&](int, int) {
            return Rows::Behind(keys, step * (kIsCode<E> ? 1 : 2)) + n * 16 * Rows::kRowBytes;
          },
          lane_, step, b[product % (kAhead + 1)]);
    };
#pragma unroll
    for (int product = 0; product < kAhead; ++product) load(product);
#pragma unroll
    for (int m = 0; m < Shape::kTiles; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = 0.0f;
      }
    }
#pragma unroll
    for (int product = 0; product < kProducts; ++product) {
      if (product + kAhead < kProducts) load(product + kAhead);
      const int step = product / 4, n = product % 4;
      const auto& a = query_[Shape::kQueriesInRegisters ? step : step & 1];
      const uint32_t* keys_of_16 = b[product % (kAhead + 1)][0];
#pragma unroll
      for (int m = 0; m < Shape::kTiles; ++m) {
        Mma16x8x16<T>(s[m][2 * n], a[m], keys_of_16);
        Mma16x8x16<T>(s[m][2 * n + 1], a[m], keys_of_16 + 2);
      }
    }
  }

  // Masks scores and brings the running maxima, and what was summed up so far, up to date.
  __device__ __forceinline__ void Maxima(const Page& page, float (&s)[Shape::kTiles][8][4]) {
#pragma unroll
    for (int m = 0; m < Shape::kTiles; ++m) {
      if (p_.softcap > 0.0f) SoftCap(p_.scale, p_.softcap, s[m]);
      if (page.logical_and_mask & 1) {
        Mask((page.logical_and_mask >> 1) * kPageTokens, row_ + m * 16, s[m]);
      }
      float maxima[2], shrink[2];
      RowMaxima(s[m], maxima);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        // No multiply-adds, which the compiler would make for some tiles: a row's bits do not
        // depend on its place.
        shrink[r] = RaiseMaximum(__fmul_rn(maxima[r], factor_), top_[m][r]);
        sum_[m][r] = __fmul_rn(sum_[m][r], shrink[r]);
      }
      Shrink(shrink, o_[m]);
    }
  }
  // Scores of one row pair and 16 keys become exponentials, and are added.
  __device__ __forceinline__ void Exponentials(int m, int n, float (&s)[Shape::kTiles][8][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float subtract = Subtracted(top_[m][r]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = s[m][n][r * 2 + c];
        x = Exp2(fmaf(x, factor_, -subtract));
        sum_[m][r] = __fadd_rn(sum_[m][r], x);
      }
    }
  }

  __device__ __forceinline__ void Mask(int32_t base, int row, float (&s)[8][4]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int position = u_.span.first_position + ((row + 8 * r) >> p_.box_heads_log2);
      const VisibleRange range(u_.edge, position, u_.span.kv_len);
      // Bit n * 8 + c is column n * 8 + c of this thread's pair.
      const uint64_t seen = range.PageBits(base) >> ((lane_ & 3) * 2);
      const uint32_t words[2] = {static_cast<uint32_t>(seen), static_cast<uint32_t>(seen >> 32)};
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (!(words[n / 4] & 1u << (n % 4 * 8 + c))) s[n][r * 2 + c] = NegativeInfinity();
        }
      }
    }
  }

  __device__ __forceinline__ void Output(uint32_t values, float (&s)[Shape::kTiles][8][4]) {
    constexpr int kGroups = kHeadDim / 16, kProducts = kGroups * 4;
    static_assert(kGroups >= 2 * Shape::kTiles);
    values = Forgotten(values + Rows::At(lane_ & 15, kIsCode<E> ? 0 : lane_ >> 4));
    uint32_t b[kAhead + 1][1][4];
    const auto load = [&](int product) {
      const int step = product / kGroups, n = product % kGroups;
      LoadValues<E>(
          [&](int, int) {
            return Rows::Behind(values, n * (kIsCode<E> ? 1 : 2)) + step * 16 * Rows::kRowBytes;
          },
          lane_, n, b[product % (kAhead + 1)]);
    };
#pragma unroll
    for (int product = 0; product < kAhead; ++product) load(product);
#pragma unroll
    for (int m = 0; m < Shape::kTiles; ++m) {
      Exponentials(m, 0, s);
      Exponentials(m, 1, s);
    }
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[Shape::kTiles][4];
#pragma unroll
      for (int m = 0; m < Shape::kTiles; ++m) {
        PackProbabilities<T>(s[m][2 * step], s[m][2 * step + 1], a[m]);
      }
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        const int product = step * kGroups + n;
        if (product + kAhead < kProducts) load(product + kAhead);
        const uint32_t* values_of_16 = b[product % (kAhead + 1)][0];
#pragma unroll
        for (int m = 0; m < Shape::kTiles; ++m) {
          Mma16x8x16<T>(o_[m][2 * n], a[m], values_of_16);
          Mma16x8x16<T>(o_[m][2 * n + 1], a[m], values_of_16 + 2);
        }
        // The next step's exponentials while these products run.
        if (step < 3 && n < 2 * Shape::kTiles) Exponentials(n / 2, 2 * (step + 1) + n % 2, s);
      }
    }
  }

  __device__ __forceinline__ void Store() const {
#pragma unroll
    for (int m = 0; m < Shape::kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int packed = row_ + m * 16 + 8 * r, position = packed >> p_.box_heads_log2;
        const int head = u_.first_head + (packed & (p_.shape.box_heads - 1));
        const float total = QuadSum(sum_[m][r]);
        if (position >= u_.rows) continue;
        const int64_t row = u_.row_begin + position;
        RowEnd end = EndRow(top_[m][r] * kLn2, total, p_.sinks, head);
        end.factor *= p_.cache.v_scale;
        if (p_.lse != nullptr && (lane_ & 3) == 0) p_.lse[row * p_.num_heads + head] = end.lse;
        T* out = static_cast<T*>(p_.out) + row * p_.out_row_stride + head * p_.out_head_stride;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; n += 2) {
          ForOutputPairs<E>(o_[m][n], o_[m][n + 1], lane_, r,
                            [&](int c, float first, float second) {
                              *reinterpret_cast<uint32_t*>(out + n * 8 + c) =
                                  Pack<T>(first * end.factor, second * end.factor);
                            });
        }
      }
    }
  }

  const MmaPrefillParams& p_;
  MmaPrefillUnit& u_;
  const uint32_t keys_, values_, queries_;  // shared memory
  Page* const list_;
  const int thread_, lane_;
  const uint32_t query_lane_;  // where this lane's matrix loads of queries begin
  const float factor_;
  int row_;  // packed row of the unit: this thread's first
  uint32_t query_[Shape::kQueriesInRegisters ? kHeadDim / 16 : 2][Shape::kTiles][4];
  float o_[Shape::kTiles][kHeadDim / 8][4];
  float top_[Shape::kTiles][2];  // base-2 logarithms
  float sum_[Shape::kTiles][2];  // this thread's part
};

template <typename T, typename E, int kHeadDim>
__global__ void __launch_bounds__(MmaPrefillShape<E, kHeadDim>::kThreads)
    MmaPrefillKernel(const __grid_constant__ MmaPrefillParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ MmaPrefillUnit unit;
  MmaPrefill<T, E, kHeadDim>(p, shared, unit).Run();
}

template <typename T, typename E, int kHeadDim>
cudaError_t LaunchMmaPrefillOf(const MmaPrefillParams& p, uint32_t units, cudaStream_t stream) {
  using Shape = MmaPrefillShape<E, kHeadDim>;
  const auto kernel = MmaPrefillKernel<T, E, kHeadDim>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<units * (kTileRows / Shape::kRows), Shape::kThreads, Shape::kSharedBytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

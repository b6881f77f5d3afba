// Attention over lists of KV pages on every chip from sm_80 on: many query rows per list
// (FlashAttention-2's shape, arXiv 2307.08691, over paged lists).
//
// A block takes one work unit of the prefill plan, 128 rows of one list, or half of it where the
// head is too large. Its threads resolve a batch of the list's pages, then walk them: a warp holds
// 16 rows, computes their scores against one page, and adds the page's values, while the next page
// is copied. Every page is a tile of its own, so that a row's bits depend on its own list and keys
// only: pages that none of its keys are in change nothing.
#pragma once

#include "kernels/cuda/attention/mma.h"
#include "kernels/cuda/attention/mma_common.cuh"
#include "kernels/cuda/attention/prefill_params.h"

namespace longstride::kernels::cuda {

template <int kHeadDim>
struct MmaPrefillShape {
  using Rows = HeadRows<kHeadDim>;
  // At 256 channels half the rows, and neither room for queries in registers nor for a second page.
  static constexpr bool kLarge = kHeadDim > 192;
  static constexpr int kWarps = kLarge ? 4 : 8;
  static constexpr int kRows = kWarps * 16, kThreads = kWarps * 32;
  static constexpr int kSlots = kLarge ? 1 : 2;
  static constexpr int kQueryBytes = kLarge ? kRows * Rows::kRowBytes : 0;
  // Queries pass through the keys' slots on their way to registers.
  static_assert(kLarge || kRows * Rows::kRowBytes == kSlots * Rows::kPageBytes);
  static constexpr int kSharedBytes = 2 * kSlots * Rows::kPageBytes + kQueryBytes + kThreads * 8;
  static_assert(kSharedBytes <= 99 * 1024);  // what sm_86, sm_89 and sm_120 give a block
};

template <typename T, int kHeadDim>
class MmaPrefill {
 public:
  using Shape = MmaPrefillShape<kHeadDim>;
  using Rows = HeadRows<kHeadDim>;

  __device__ __forceinline__ MmaPrefill(const MmaPrefillParams& p, uint8_t* shared)
      : p_(p),
        keys_(SharedAddress(shared)),
        values_(keys_ + Shape::kSlots * Rows::kPageBytes),
        queries_(Shape::kLarge ? values_ + Shape::kSlots * Rows::kPageBytes : keys_),
        list_(reinterpret_cast<Page*>(shared + 2 * Shape::kSlots * Rows::kPageBytes +
                                      Shape::kQueryBytes)),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ & 31),
        factor_(p.softcap > 0.0f ? kLog2E : p.scale * kLog2E) {}

  __device__ __forceinline__ void Run() {
    constexpr int kParts = kTileRows / Shape::kRows;
    OpenUnit(p_.order[blockIdx.x / kParts], static_cast<int>(blockIdx.x) % kParts * Shape::kRows);
    if (first_row_ >= rows_ << p_.box_heads_log2) return;
    LoadQueries();
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o_[n][e] = 0.0f;
    }
    for (int32_t at = 0; at < num_pages_; at += Shape::kThreads) WalkPages(FindPages(at));
    Store();
  }

 private:
  struct Page {
    int32_t physical;
    int32_t logical_and_mask;
  };

  __device__ __forceinline__ void OpenUnit(uint32_t unit, int first_row) {
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
    rows_ = max(0, min(tile.num_rows - skipped, p_.shape.box_rows));
    first_row_ = first_row;
    row_ = first_row + thread_ / 32 * 16 + (lane_ >> 2);
    row_begin_ = static_cast<int64_t>(tile.row_begin) + skipped;
    first_head_ = plain ? in_tile : kv_head * p_.shape.box_heads;
    entries_ = sel.entries + sel.list_begin[list];
    pages_ = p_.pages + tile.sequence * p_.table_stride;
    num_pages_ = rows_ > 0 ? sel.list_count[list] << p_.pages_per_entry_log2 : 0;
    span_.kv_len = p_.kv_lens[tile.sequence];
    span_.first_position = tile.first_position + skipped;
    span_.last_position = span_.first_position + rows_ - 1;
    edge_ = sel.edges[list_head];
    k_ = static_cast<const char*>(p_.cache.k) + kv_head * p_.cache.head_stride;
    v_ = static_cast<const char*>(p_.cache.v) + kv_head * p_.cache.head_stride;
  }

  __device__ __forceinline__ void LoadQueries() {
    const T* q = static_cast<const T*>(p_.q);
    for (int i = thread_; i < Shape::kRows * Rows::kChunks; i += Shape::kThreads) {
      const int row = i / Rows::kChunks, chunk = i % Rows::kChunks, packed = first_row_ + row;
      const int position = packed >> p_.box_heads_log2;
      const int head = first_head_ + (packed & (p_.shape.box_heads - 1));
      const bool real = position < rows_;
      CopyAsync16(queries_ + Rows::At(row, chunk),
                  q + (row_begin_ + (real ? position : 0)) * p_.q_row_stride +
                      head * p_.q_head_stride + chunk * 8,
                  real ? 16 : 0);
    }
    CommitCopies();
    WaitCopies<0>();
    __syncthreads();
    if constexpr (!Shape::kLarge) {
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) LoadQuery(step, query_[step]);
    }
  }
  __device__ __forceinline__ void LoadQuery(int step, uint32_t (&a)[4]) const {
    LoadMatrix4(a, queries_ + Rows::At(thread_ / 32 * 16 + (lane_ & 15), step * 2 + (lane_ >> 4)));
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
    if (i >= num_pages_) return page;
    const int32_t entry = entries_[i >> p_.pages_per_entry_log2];
    if (entry < 0) return page;
    const int64_t logical = (static_cast<int64_t>(entry) << p_.pages_per_entry_log2) +
                            (i & ((1 << p_.pages_per_entry_log2) - 1));
    const int64_t base = logical * kPageTokens;
    if (PageIsAhead(edge_, span_, base)) return page;
    const int32_t physical = pages_[logical];
    if (physical < 0 || physical >= p_.cache.num_pages) {
      p_.plan->status.status = 1;
      return page;
    }
    const bool full = PageIsFull(edge_, span_, static_cast<int32_t>(base));
    return {physical, static_cast<int32_t>(logical * 2) + (full ? 0 : 1)};
  }

  __device__ __forceinline__ void WalkPages(int count) {
    if (count == 0) return;
    CopyPage(k_, 0, keys_);
    if constexpr (Shape::kSlots == 2) CopyPage(v_, 0, values_);
    for (int j = 0; j < count; ++j) {
      const int slot = Shape::kSlots == 2 ? j & 1 : 0;
      WaitCopies<0>();
      __syncthreads();  // this page is there, and nobody reads the one before any more
      if constexpr (Shape::kSlots == 2) {
        if (j + 1 < count) {
          CopyPage(k_, j + 1, keys_ + (slot ^ 1) * Rows::kPageBytes);
          CopyPage(v_, j + 1, values_ + (slot ^ 1) * Rows::kPageBytes);
        }
      } else {
        CopyPage(v_, j, values_);
      }
      float s[8][4];
      Scores(keys_ + slot * Rows::kPageBytes, s);
      if constexpr (Shape::kSlots == 1) {
        WaitCopies<0>();
        __syncthreads();
        if (j + 1 < count) CopyPage(k_, j + 1, keys_);
      }
      Softmax(list_[j], s);
      Output(values_ + slot * Rows::kPageBytes, s);
    }
  }

  // Rows beyond the sequence's length may be anything, and 0 * NaN is NaN: they become zero.
  __device__ __forceinline__ void CopyPage(const char* head, int j, uint32_t to) const {
    const Page page = list_[j];
    const int exist = span_.kv_len - (page.logical_and_mask >> 1) * kPageTokens;
    const char* from = head + page.physical * p_.cache.page_stride;
    constexpr int kCount = kPageTokens * Rows::kChunks;
#pragma unroll
    for (int n = 0; n < (kCount + Shape::kThreads - 1) / Shape::kThreads; ++n) {
      const int i = n * Shape::kThreads + thread_;
      if (kCount % Shape::kThreads != 0 && i >= kCount) break;
      const int row = i / Rows::kChunks;
      CopyAsync16(to + Rows::At(row, i % Rows::kChunks), from + i * 16, row < exist ? 16 : 0);
    }
    CommitCopies();
  }

  __device__ __forceinline__ void Scores(uint32_t keys, float (&s)[8][4]) {
    const int r = lane_ & 7, i = lane_ >> 3;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      if constexpr (Shape::kLarge) LoadQuery(step, query_[0]);
      const uint32_t(&a)[4] = query_[Shape::kLarge ? 0 : step];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        LoadMatrix4(b, keys + Rows::At(n * 16 + (i >> 1) * 8 + r, step * 2 + (i & 1)));
        Mma16x8x16<T>(s[2 * n], a, b);
        Mma16x8x16<T>(s[2 * n + 1], a, b + 2);
      }
    }
  }

  __device__ __forceinline__ void Softmax(const Page& page, float (&s)[8][4]) {
    if (p_.softcap > 0.0f) SoftCap(p_.scale, p_.softcap, s);
    if (page.logical_and_mask & 1) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const VisibleRange range(
            edge_, span_.first_position + ((row_ + 8 * r) >> p_.box_heads_log2), span_.kv_len);
        // Bit n * 8 + c is column n * 8 + c of this thread's pair.
        const uint64_t seen =
            range.PageBits((page.logical_and_mask >> 1) * kPageTokens) >> ((lane_ & 3) * 2);
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
    float shrink[2];
    OnlineSoftmax(factor_, s, top_, sum_, shrink);
    Shrink(shrink, o_);
  }

  __device__ __forceinline__ void Output(uint32_t values, const float (&s)[8][4]) {
    const int r = lane_ & 7, i = lane_ >> 3;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[4];
      PackProbabilities<T>(s[2 * step], s[2 * step + 1], a);
#pragma unroll
      for (int n = 0; n < kHeadDim / 16; ++n) {
        uint32_t b[4];
        LoadMatrix4Transposed(b, values + Rows::At(step * 16 + (i & 1) * 8 + r, n * 2 + (i >> 1)));
        Mma16x8x16<T>(o_[2 * n], a, b);
        Mma16x8x16<T>(o_[2 * n + 1], a, b + 2);
      }
    }
  }

  __device__ __forceinline__ void Store() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int packed = row_ + 8 * r, position = packed >> p_.box_heads_log2;
      const int head = first_head_ + (packed & (p_.shape.box_heads - 1));
      const float total = QuadSum(sum_[r]);
      if (position >= rows_) continue;
      const int64_t row = row_begin_ + position;
      const RowEnd end = EndRow(top_[r] * kLn2, total, p_.sinks, head);
      if (p_.lse != nullptr && (lane_ & 3) == 0) p_.lse[row * p_.num_heads + head] = end.lse;
      T* out = static_cast<T*>(p_.out) + row * p_.out_row_stride + head * p_.out_head_stride +
               (lane_ & 3) * 2;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<uint32_t*>(out + n * 8) =
            Pack<T>(o_[n][r * 2] * end.factor, o_[n][r * 2 + 1] * end.factor);
      }
    }
  }

  const MmaPrefillParams& p_;
  const uint32_t keys_, values_, queries_;  // shared memory
  Page* const list_;
  const int thread_, lane_;
  const float factor_;
  int first_row_, row_;  // packed rows of the unit: the block's first, this thread's first
  int rows_;             // positions of the unit
  int64_t row_begin_;
  int first_head_;
  const int32_t *entries_, *pages_;
  int32_t num_pages_;
  QuerySpan span_;
  EdgeRule edge_;
  const char *k_, *v_;
  uint32_t query_[Shape::kLarge ? 1 : kHeadDim / 16][4];
  float o_[kHeadDim / 8][4];
  float top_[2] = {NegativeInfinity(), NegativeInfinity()};  // base-2 logarithms
  float sum_[2] = {0.0f, 0.0f};
};

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(MmaPrefillShape<kHeadDim>::kThreads)
    MmaPrefillKernel(const __grid_constant__ MmaPrefillParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  MmaPrefill<T, kHeadDim>(p, shared).Run();
}

template <typename T, int kHeadDim>
cudaError_t LaunchMmaPrefillOf(const MmaPrefillParams& p, uint32_t units, cudaStream_t stream) {
  using Shape = MmaPrefillShape<kHeadDim>;
  const auto kernel = MmaPrefillKernel<T, kHeadDim>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<units * (kTileRows / Shape::kRows), Shape::kThreads, Shape::kSharedBytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

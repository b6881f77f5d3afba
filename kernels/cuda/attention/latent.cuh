// Attention over lists of pages of latents, prompts and decoding alike.
//
// A block takes 64 packed rows (the query heads of a KV head side by side, positions behind them)
// and walks a list, or a part of one where decoding. A page is copied once and is keys (576
// channels) and values (512) at once. Warp (m, n) of 4 x 2 has rows 16 m to 16 m + 15: it scores
// keys 32 n to 32 n + 31 of the page, the two warps of the same rows exchange maxima and
// probabilities, and each adds up 256 of the 512 channels.
// Every page is a tile of its own, so that a row's bits depend on its own list and keys only.
// On Hopper the four warps of one n are a warpgroup, whose products read queries and latents from
// shared memory; elsewhere warps multiply (mma.sync).
// Bound: shared-memory reads.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/decode_params.h"
#include "kernels/cuda/attention/latent.h"
#include "kernels/cuda/attention/mma_common.cuh"
#include "kernels/cuda/attention/prefill_params.h"
#include "kernels/cuda/device/wgmma.cuh"

namespace longstride::kernels::cuda {
namespace latent {

inline constexpr int kRowWarps = 4, kColumnWarps = 2;
inline constexpr int kThreads = kRowWarps * kColumnWarps * 32;
inline constexpr int kRows = kRowWarps * 16;
inline constexpr int kKeyTiles = kPageTokens / kColumnWarps / 8;        // of 8 keys, for a warp
inline constexpr int kValueTiles = kLatentValueDim / kColumnWarps / 8;  // of 8 channels, for a warp
inline constexpr int kSteps = kLatentKeyDim / 16;
inline constexpr int kWeightSteps = kPageTokens / 16;
using Rows = HeadRows<kLatentKeyDim * 2>;
using WeightRows = HeadRows<kPageTokens * 2>;  // swizzled as warpgroup products have it
static_assert(kRows == kPageTokens);           // queries lie as a page does
inline constexpr int kWeightBytes = kRows * WeightRows::kRowBytes;

struct Page {
  int32_t physical;
  int32_t logical_and_mask;
};

// Shared memory: the queries, probabilities, then one or two pages.
inline constexpr int kFixedBytes = Rows::kPageBytes + kWeightBytes;
inline constexpr int kArrayBytes = 2048;  // for the kernel's own arrays
inline constexpr int kBatchPages = 128;   // of a list, resolved at a time

struct LatentParams {
  // One of the two plans: units of a prompt, or parts of the lists of single rows.
  const uint32_t* order;  // prompts; else null
  DecodeScratch parts;
  DecodeLayout layout;  // decoding
  UnitShape shape;      // prompts
  uint32_t* status;
  int32_t slots;  // of pages
  const int32_t* pages;
  int64_t table_stride;
  const int32_t* kv_lens;
  KvSelection selection;
  PagedKv cache;
  int32_t pages_per_entry_log2;
  int32_t num_heads;
  float scale, softcap;
  const float* sinks;
  const void* q;
  int64_t q_row_stride, q_head_stride;  // elements
  void* out;
  int64_t out_row_stride, out_head_stride;
  float* lse;
};

// What a block works on. It lies in shared memory: registers are for sums.
struct Unit {
  int rows;       // packed: positions times heads
  int heads;      // side by side
  int first_row;  // packed row that the block begins with
  int64_t row_begin;
  int first_head;
  int64_t list_at;  // of the first page, counted in pages from the start of `entries`
  int32_t num_pages;
  const int32_t* table;
  QuerySpan span;
  EdgeRule edge;
  const char* latents;
  int64_t part_row;  // decoding: of the first packed row among all parts' rows
};

template <typename T, bool kWarpgroups>
class Latent {
 public:
  __device__ __forceinline__ Latent(const LatentParams& p, uint8_t* shared, Unit& unit)
      : p_(p),
        u_(unit),
        queries_(SharedAddress(shared)),
        weights_(queries_ + Rows::kPageBytes),
        ring_(weights_ + kWeightBytes),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ & 31),
        row_warp_(thread_ / 32 % kRowWarps),
        column_warp_(thread_ / 32 / kRowWarps),
        factor_(p.softcap > 0.0f ? kLog2E : p.scale * kLog2E) {}

  __device__ __forceinline__ void Run() {
    const bool prompt = p_.order != nullptr;
    const int of_unit = ((prompt ? kTileRows : p_.layout.rows) + kRows - 1) / kRows;
    const int64_t blocks =
        static_cast<int64_t>(prompt ? gridDim.x / of_unit : p_.parts.header->num_units) * of_unit;
    for (int64_t i = blockIdx.x; i < blocks; i += gridDim.x) {
      if (thread_ == 0) {
        const auto unit = static_cast<uint32_t>(i / of_unit);
        u_ = prompt ? UnitOfPrompt(p_.order[unit]) : UnitOfPart(unit);
        u_.first_row = static_cast<int>(i % of_unit) * kRows;
      }
      __syncthreads();
      if (u_.first_row < u_.rows) Compute(prompt);
      __syncthreads();  // nobody reads the unit, the queries or the pages any more
    }
  }

 private:
  // Where 16 bytes of a row of queries or latents lie: for warpgroups in panels of 64 channels.
  static constexpr int kPanelBytes = kPageTokens * 128;
  __device__ __forceinline__ static uint32_t At(int row, int chunk) {
    if constexpr (!kWarpgroups) return Rows::At(row, chunk);
    return static_cast<uint32_t>(chunk / 8 * kPanelBytes) + WeightRows::At(row, chunk % 8);
  }

  __device__ __forceinline__ Unit UnitOfPrompt(uint32_t unit) const {
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
    const int positions = max(0, min(tile.num_rows - skipped, p_.shape.box_rows));
    Unit u;
    u.heads = p_.shape.box_heads;
    u.rows = positions * u.heads;
    u.row_begin = static_cast<int64_t>(tile.row_begin) + skipped;
    u.first_head = plain ? in_tile : kv_head * u.heads;
    u.list_at = sel.list_begin[list] << p_.pages_per_entry_log2;
    u.num_pages = max(0, sel.list_count[list]) << p_.pages_per_entry_log2;
    u.table = p_.pages + tile.sequence * p_.table_stride;
    u.span.kv_len = p_.kv_lens[tile.sequence];
    u.span.first_position = tile.first_position + skipped;
    u.span.last_position = u.span.first_position + positions - 1;
    u.edge = sel.edges[list_head];
    u.latents = Latents(kv_head);
    u.part_row = 0;
    return u;
  }
  __device__ __forceinline__ Unit UnitOfPart(uint32_t unit) const {
    const DecodeUnit part = p_.parts.units[unit];
    Unit u;
    u.heads = p_.layout.heads_per_item;
    u.rows = part.num_rows * u.heads;
    u.row_begin = part.row_begin;
    u.first_head = part.head;
    u.list_at = part.list_at;
    u.num_pages = part.num_pages;
    u.table = p_.pages + part.sequence * p_.table_stride;
    u.span = {part.first_position, part.first_position + part.num_rows - 1, part.kv_len};
    u.edge = p_.selection.edges[part.list_head];
    u.latents = Latents(part.kv_head);
    u.part_row = static_cast<int64_t>(unit) * p_.layout.rows;
    return u;
  }
  __device__ __forceinline__ const char* Latents(int kv_head) const {
    return static_cast<const char*>(p_.cache.k) + kv_head * p_.cache.head_stride;
  }

  __device__ __forceinline__ void Compute(bool prompt) {
    LoadQueries();
    row_ = u_.first_row + row_warp_ * 16 + (lane_ >> 2);
    top_[0] = top_[1] = NegativeInfinity();
    sum_[0] = sum_[1] = 0.0f;
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o_[n][e] = 0.0f;
    }
    for (int32_t at = 0; at < u_.num_pages; at += kBatchPages) WalkPages(FindPages(at));
    WaitCopies<0>();
    Store(prompt);
  }

  // They are there when the first page is.
  __device__ __forceinline__ void LoadQueries() const {
    for (int i = thread_; i < kRows * Rows::kChunks; i += kThreads) {
      const int row = i / Rows::kChunks, chunk = i % Rows::kChunks;
      const int packed = u_.first_row + row;
      const bool real = packed < u_.rows;
      const int position = real ? packed / u_.heads : 0, head = real ? packed % u_.heads : 0;
      const T* from = static_cast<const T*>(p_.q) + (u_.row_begin + position) * p_.q_row_stride +
                      (u_.first_head + head) * p_.q_head_stride;
      CopyAsync16(queries_ + At(row, chunk), from + chunk * 8, real ? 16 : 0);
    }
    CommitCopies();
  }

  // Puts those of a batch of list positions that must be read into shared memory, in order.
  __device__ __forceinline__ int FindPages(int32_t at) const {
    __shared__ int32_t counts[kBatchPages / 32];
    const int warp = thread_ / 32;
    const Page page = thread_ < kBatchPages ? Find(at + thread_) : Page{-1, 0};
    const uint32_t ready = __ballot_sync(0xffffffffu, page.physical >= 0);
    if (lane_ == 0 && thread_ < kBatchPages) counts[warp] = __popc(ready);
    __syncthreads();  // also: nobody reads the batch or the pages before any more
    int before = 0, total = 0;
#pragma unroll
    for (int w = 0; w < kBatchPages / 32; ++w) {
      if (w == warp) before = total;
      total += counts[w];
    }
    if (page.physical >= 0) List()[before + __popc(ready & ((1u << lane_) - 1))] = page;
    __syncthreads();
    return total;
  }
  __device__ __forceinline__ static Page* List() {
    __shared__ Page list[kBatchPages];
    return list;
  }
  __device__ __forceinline__ Page Find(int32_t i) const {
    Page page = {-1, 0};
    if (i >= u_.num_pages) return page;
    const int64_t at = u_.list_at + i;
    const int32_t entry = p_.selection.entries[at >> p_.pages_per_entry_log2];
    if (entry < 0) return page;
    const int64_t logical = (static_cast<int64_t>(entry) << p_.pages_per_entry_log2) +
                            (at & ((1 << p_.pages_per_entry_log2) - 1));
    const int64_t base = logical * kPageTokens;
    if (PageIsAhead(u_.edge, u_.span, base)) return page;
    const int32_t physical = u_.table[logical];
    if (physical < 0 || physical >= p_.cache.num_pages) {
      *p_.status = 1;
      return page;
    }
    const bool full = PageIsFull(u_.edge, u_.span, static_cast<int32_t>(base));
    return {physical, static_cast<int32_t>(logical * 2) + (full ? 0 : 1)};
  }

  __device__ __forceinline__ void WalkPages(int count) {
    if (count == 0) return;
    if constexpr (kWarpgroups) return WalkPagesByWarpgroups(count);
    const bool ahead = p_.slots > 1;
    if (ahead) CopyPage(0, 0);
    for (int j = 0; j < count; ++j) {
      const int slot = ahead ? j & 1 : 0;
      if (!ahead) {
        __syncthreads();  // nobody reads the page before any more
        CopyPage(j, 0);
      }
      WaitCopies<0>();
      __syncthreads();  // this page is there, and nobody reads the one before any more
      if (ahead && j + 1 < count) CopyPage(j + 1, slot ^ 1);
      const int lane = Forgotten(lane_);
      const uint32_t latents = ring_ + slot * Rows::kPageBytes;
      float s[kKeyTiles][4] = {};
      Scores(lane, latents, s);
      Softmax(List()[j], s);
      Output(lane, latents);
    }
  }

  __device__ __forceinline__ void WalkPagesByWarpgroups(int count) {
    float(&sums)[kValueTiles * 4] = reinterpret_cast<float(&)[kValueTiles * 4]>(o_);
    CopyPage(0, 0);
    for (int j = 0; j < count; ++j) {
      const uint32_t latents = ring_ + (j & 1) * Rows::kPageBytes;
      WaitCopies<0>();
      AsyncProxyFence();
      __syncthreads();  // this page is there, and nobody reads the one before any more
      if (j + 1 < count) CopyPage(j + 1, ~j & 1);
      float s[kKeyTiles][4];
      float(&scores)[kKeyTiles * 4] = reinterpret_cast<float(&)[kKeyTiles * 4]>(s);
      IssueScores(latents, scores);
      WgmmaWait<0>();
      FenceRegisters(scores);
      Softmax(List()[j], s);
      IssueOutput(latents, sums);
      WgmmaWait<0>();
      FenceRegisters(sums);
    }
  }

  // Rows beyond the sequence's length may be anything, and 0 * NaN is NaN: they become zero.
  __device__ __forceinline__ void CopyPage(int j, int slot) const {
    const Page page = List()[j];
    const int exist = u_.span.kv_len - (page.logical_and_mask >> 1) * kPageTokens;
    const char* from = u_.latents + page.physical * p_.cache.page_stride;
    const uint32_t to = ring_ + slot * Rows::kPageBytes;
    constexpr int kCount = kPageTokens * Rows::kChunks;
    static_assert(kCount % kThreads == 0);
#pragma unroll
    for (int n = 0; n < kCount / kThreads; ++n) {
      const int i = n * kThreads + thread_, row = i / Rows::kChunks;
      CopyAsync16(to + At(row, i % Rows::kChunks), from + i * 16, row < exist ? 16 : 0);
    }
    CommitCopies();
  }

  __device__ __forceinline__ void IssueScores(uint32_t latents, float (&s)[kKeyTiles * 4]) const {
    const uint32_t keys = latents + column_warp_ * (kKeyTiles * 8 * 128);
    FenceRegisters(s);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t at = step / 4 * kPanelBytes + step % 4 * 32;
      Wgmma<T, kKeyTiles * 8>::SharedShared(s, WgmmaDescriptor(queries_ + at, 16, 1024),
                                            WgmmaDescriptor(keys + at, 16, 1024), step != 0);
    }
    WgmmaCommit();
  }
  __device__ __forceinline__ void IssueOutput(uint32_t latents, float (&o)[kValueTiles * 4]) const {
    uint32_t a[kWeightSteps][4];
#pragma unroll
    for (int step = 0; step < kWeightSteps; ++step) LoadWeights(lane_, step, a[step]);
    const uint32_t values = latents + column_warp_ * (kValueTiles / 8 * kPanelBytes);
    FenceRegisters(o);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kWeightSteps; ++step) {
      Wgmma<T, kValueTiles * 8>::RegisterShared(
          o, a[step], WgmmaDescriptor(values + step * 16 * 128, kPanelBytes, 1024), 1);
    }
    WgmmaCommit();
  }
  __device__ __forceinline__ void LoadWeights(int lane, int step, uint32_t (&a)[4]) const {
    const int row = row_warp_ * 16 + (lane & 15);
    LoadMatrix4(a, weights_ + WeightRows::At(row, step * 2 + (lane >> 4)));
  }

  __device__ __forceinline__ void Scores(int lane, uint32_t latents, float (&s)[kKeyTiles][4]) {
    const int row = row_warp_ * 16 + (lane & 15), key = column_warp_ * kKeyTiles * 8;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[4];
      LoadMatrix4(a, queries_ + Rows::At(row, step * 2 + (lane >> 4)));
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 2) {
        uint32_t b[1][4];
        LoadKeys<T>([&](int k, int chunk) { return latents + Rows::At(key + n * 8 + k, chunk); },
                    lane, step, b);
        Mma16x8x16<T>(s[n], a, b[0]);
        Mma16x8x16<T>(s[n + 1], a, b[0] + 2);
      }
    }
  }

  __device__ __forceinline__ void Mask(int32_t base, float (&s)[kKeyTiles][4]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int position = u_.span.first_position + (row_ + 8 * r) / u_.heads;
      const VisibleRange range(u_.edge, position, u_.span.kv_len);
      // Bit n * 8 + c is column n * 8 + c of this thread's pair.
      const auto seen = static_cast<uint32_t>(range.PageBits(base) >>
                                              (column_warp_ * kKeyTiles * 8 + (lane_ & 3) * 2));
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (!(seen & 1u << (n * 8 + c))) s[n][r * 2 + c] = NegativeInfinity();
        }
      }
    }
  }

  // Scores become probabilities in shared memory, for both warps of these rows; sums shrink.
  __device__ __forceinline__ void Softmax(const Page& page, float (&s)[kKeyTiles][4]) {
    if (p_.softcap > 0.0f) SoftCap(p_.scale, p_.softcap, s);
    if (page.logical_and_mask & 1) Mask((page.logical_and_mask >> 1) * kPageTokens, s);
    float(&maxima)[kColumnWarps][kRows] = Exchanged();
    const int row = row_warp_ * 16 + (lane_ >> 2);
    float best[2], shrink[2];
    RowMaxima(s, best);
    if ((lane_ & 3) == 0) {
      maxima[column_warp_][row] = best[0];
      maxima[column_warp_][row + 8] = best[1];
    }
    SyncRows();
#pragma unroll
    for (int r = 0; r < 2; ++r) best[r] = fmaxf(best[r], maxima[column_warp_ ^ 1][row + 8 * r]);
    Exponentiate(factor_, best, s, top_, sum_, shrink);
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      const int chunk = column_warp_ * kKeyTiles + n;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        StoreShared(weights_ + WeightRows::At(row + 8 * r, chunk) + (lane_ & 3) * 4,
                    Pack<T>(s[n][r * 2], s[n][r * 2 + 1]));
      }
    }
    Shrink(shrink, o_);
    SyncRows();
  }
  // What the two warps of the same rows tell each other: maxima, in the end sums.
  __device__ __forceinline__ static float (&Exchanged())[kColumnWarps][kRows] {
    __shared__ float exchanged[kColumnWarps][kRows];
    return exchanged;
  }
  __device__ __forceinline__ void SyncRows() const {
    NamedBarrierSync(1 + row_warp_, kColumnWarps * 32);
  }
  __device__ __forceinline__ static void StoreShared(uint32_t to, uint32_t word) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(word) : "memory");
  }

  __device__ __forceinline__ void Output(int lane, uint32_t latents) {
    const int group = column_warp_ * kValueTiles / 2;
#pragma unroll
    for (int step = 0; step < kWeightSteps; ++step) {
      uint32_t a[4];
      LoadWeights(lane, step, a);
#pragma unroll
      for (int n = 0; n < kValueTiles; n += 2) {
        uint32_t b[1][4];
        LoadValues<T>(
            [&](int key, int chunk) { return latents + Rows::At(step * 16 + key, chunk); }, lane,
            group + n / 2, b);
        Mma16x8x16<T>(o_[n], a, b[0]);
        Mma16x8x16<T>(o_[n + 1], a, b[0] + 2);
      }
    }
  }

  __device__ __forceinline__ void Store(bool prompt) {
    float(&sums)[kColumnWarps][kRows] = Exchanged();
    const int row = row_warp_ * 16 + (lane_ >> 2);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum_[r] = QuadSum(sum_[r]);
      if ((lane_ & 3) == 0) sums[column_warp_][row + 8 * r] = sum_[r];
    }
    SyncRows();
    const bool writes_norm = column_warp_ == 0 && (lane_ & 3) == 0;
    const int channel = column_warp_ * kValueTiles * 8 + (lane_ & 3) * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int packed = row_ + 8 * r;
      if (packed >= u_.rows) continue;
      const float total = sums[0][row + 8 * r] + sums[1][row + 8 * r];
      if (!prompt) {
        const int64_t at = u_.part_row + packed;
        if (writes_norm) p_.parts.norms[at] = make_float2(top_[r], total);
        float* to = p_.parts.parts + at * kLatentKeyDim + channel;
#pragma unroll
        for (int n = 0; n < kValueTiles; ++n) {
          *reinterpret_cast<float2*>(to + n * 8) = make_float2(o_[n][r * 2], o_[n][r * 2 + 1]);
        }
        continue;
      }
      const int head = u_.first_head + packed % u_.heads;
      const int64_t out_row = u_.row_begin + packed / u_.heads;
      const RowEnd end = EndRow(top_[r] * kLn2, total, p_.sinks, head);
      if (writes_norm && p_.lse != nullptr) p_.lse[out_row * p_.num_heads + head] = end.lse;
      T* to = static_cast<T*>(p_.out) + out_row * p_.out_row_stride + head * p_.out_head_stride +
              channel;
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
        *reinterpret_cast<uint32_t*>(to + n * 8) =
            Pack<T>(o_[n][r * 2] * end.factor, o_[n][r * 2 + 1] * end.factor);
      }
      if (column_warp_ == 0) continue;
#pragma unroll
      for (int n = 0; n < (kLatentKeyDim - kLatentValueDim) / 8; ++n) {
        *reinterpret_cast<uint32_t*>(to + (kValueTiles + n) * 8) = 0u;
      }
    }
  }

  const LatentParams& p_;
  Unit& u_;
  const uint32_t queries_, weights_, ring_;  // shared memory
  const int thread_, lane_, row_warp_, column_warp_;
  const float factor_;
  int row_;  // packed row of the unit: this thread's first
  float o_[kValueTiles][4];
  float top_[2];  // base-2 logarithms
  float sum_[2];  // this thread's part
};

template <typename T, bool kWarpgroups>
__global__ void __launch_bounds__(kThreads, 1)
    LatentKernel(const __grid_constant__ LatentParams p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ Unit unit;
  Latent<T, kWarpgroups>(p, shared, unit).Run();
}

template <typename T, bool kWarpgroups>
cudaError_t LaunchOf(const LatentParams& p, int64_t blocks, cudaStream_t stream) {
  const int bytes = kFixedBytes + p.slots * Rows::kPageBytes;
  const auto kernel = LatentKernel<T, kWarpgroups>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(p);
  return cudaGetLastError();
}

// Hopper's kernels; cudaErrorNotSupported where the build has none for the cache's type.
cudaError_t LaunchFast(const LatentParams& p, int64_t blocks, cudaStream_t stream);
bool HasFast(KvDType dtype);

}  // namespace latent
}  // namespace longstride::kernels::cuda

// Attention over lists of KV pages on every chip from sm_80 on: few query rows per list, bound by
// the reading of keys and values.
//
// The parts, units and merge of decode_params.h. A block takes a unit at a time, whose query rows
// (all heads of the KV head) are one 16-row tensor-core tile. Each of its four warps takes 16 keys
// of every page, which it copies for itself into a ring of its own, so that nothing synchronises
// warps until the unit ends; then the four are merged in order and stored.
#pragma once

#include "kernels/cuda/attention/mma.h"
#include "kernels/cuda/attention/mma_common.cuh"

namespace longstride::kernels::cuda {

inline constexpr int kMmaDecodeWarps = 4;
inline constexpr int kMmaDecodeThreads = kMmaDecodeWarps * 32;
inline constexpr int kMmaDecodeTokens = kPageTokens / kMmaDecodeWarps;  // of a page, for one warp
static_assert(kMmaDecodeTokens == 16);

// T: what products take; E: the cache's element, T or uint8_t for e4m3.
template <typename T, typename E, int kHeadDim>
class MmaDecode {
 public:
  static constexpr int kHeadBytes = kHeadDim * sizeof(E);
  using Rows = HeadRows<kHeadBytes>;
  static constexpr int kHalfBytes = kMmaDecodeTokens * Rows::kRowBytes;  // keys of one warp
  static constexpr int kSlotBytes = 2 * kHalfBytes;
  // The merge of a unit uses the ring's first slots.
  static constexpr int kMergeBytes = kMmaDecodeWarps * kDecodeRows * kHeadDim * 4;

  __device__ __forceinline__ MmaDecode(const MmaDecodeParams& p, uint8_t* shared)
      : p_(p),
        merge_(reinterpret_cast<float*>(shared)),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) & 31),
        ring_(SharedAddress(shared) + warp_ * p.slots * kSlotBytes),
        factor_(p.softcap > 0.0f ? kLog2E : p.scale * kLog2E) {}

  __device__ __forceinline__ void Run() {
    const int32_t units = p_.scratch.header->num_units;
    for (int32_t i = static_cast<int32_t>(blockIdx.x); i < units;
         i += static_cast<int32_t>(gridDim.x)) {
      Compute(p_.scratch.units[i]);
      Store(i);
    }
  }

 private:
  __device__ __forceinline__ void Compute(const DecodeUnit& u) {
    num_rows_ = u.num_rows * p_.layout.heads_per_item;
    first_position_ = u.first_position;
    kv_len_ = u.kv_len;
    edge_ = p_.edges[u.list_head];
    k_ = static_cast<const char*>(p_.cache.k) + u.kv_head * p_.cache.head_stride;
    v_ = static_cast<const char*>(p_.cache.v) + u.kv_head * p_.cache.head_stride;
    FindPage(u);
    const uint32_t ready = __ballot_sync(0xffffffffu, physical_ >= 0);
    const int count = __popc(ready);
    uint32_t to_copy = ready, to_compute = ready;
    const int ahead = p_.slots - 1;
    for (int s = 0; s < ahead; ++s) CopyNext(&to_copy, s);
    LoadQueries(u);
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o_[n][e] = 0.0f;
    }
    top_[0] = top_[1] = NegativeInfinity();
    sum_[0] = sum_[1] = 0.0f;
    int slot = 0;
    for (int j = 0; j < count; ++j) {
      if (ahead == 0) {
        __syncwarp();
        CopyNext(&to_copy, 0);
        WaitCopies<0>();
      } else {
        WaitCopies(ahead - 1);
      }
      __syncwarp();  // all lanes' copies are there, and the slot before is free
      if (ahead > 0) CopyNext(&to_copy, slot == 0 ? ahead : slot - 1);
      ComputePage(ring_ + slot * kSlotBytes, Next(&to_compute, logical_and_mask_));
      if (++slot == p_.slots) slot = 0;
    }
  }

  // This lane's page: physical id (-1: nothing to read), logical number * 2 + needs a mask.
  __device__ __forceinline__ void FindPage(const DecodeUnit& u) {
    physical_ = -1;
    logical_and_mask_ = 0;
    if (lane_ >= u.num_pages) return;
    const int64_t at = u.list_at + lane_;
    const int32_t entry = p_.entries[at >> p_.pages_per_entry_log2];
    if (entry < 0) return;
    const int64_t logical = (static_cast<int64_t>(entry) << p_.pages_per_entry_log2) +
                            (at & ((1 << p_.pages_per_entry_log2) - 1));
    const int64_t base = logical * kPageTokens;
    const QuerySpan span = {u.first_position, u.first_position + u.num_rows - 1, u.kv_len};
    if (PageIsAhead(edge_, span, base)) return;
    const int32_t physical = p_.pages[u.sequence * p_.table_stride + logical];
    if (physical < 0 || physical >= p_.cache.num_pages) {
      p_.scratch.header->status.status = 1;
      return;
    }
    physical_ = physical;
    logical_and_mask_ = static_cast<int32_t>(
        logical * 2 + (PageIsFull(edge_, span, static_cast<int32_t>(base)) ? 0 : 1));
  }

  // `value` of the first lane of the set, which leaves it.
  __device__ __forceinline__ static int32_t Next(uint32_t* lanes, int32_t value) {
    const int from = __ffs(static_cast<int>(*lanes)) - 1;
    *lanes &= *lanes - 1;
    return __shfl_sync(0xffffffffu, value, from);
  }

  // Rows beyond the sequence's length may be anything, and 0 * NaN is NaN: they become zero.
  __device__ __forceinline__ void CopyNext(uint32_t* lanes, int slot) const {
    if (*lanes != 0) {
      uint32_t same = *lanes;
      const int32_t page = Next(&same, physical_);
      const int32_t logical = Next(lanes, logical_and_mask_) >> 1;
      const int64_t at = page * p_.cache.page_stride + warp_ * (kMmaDecodeTokens * kHeadBytes);
      const int exist = kv_len_ - logical * kPageTokens - warp_ * kMmaDecodeTokens;
      const uint32_t to = ring_ + slot * kSlotBytes;
      constexpr int kCount = kMmaDecodeTokens * Rows::kChunks;
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const char* from = (side == 0 ? k_ : v_) + at;
#pragma unroll
        for (int n = 0; n < (kCount + 31) / 32; ++n) {
          const int i = n * 32 + lane_, row = i / Rows::kChunks;
          if (kCount % 32 != 0 && i >= kCount) break;
          CopyAsync16(to + side * kHalfBytes + Rows::At(row, i % Rows::kChunks), from + i * 16,
                      row < exist ? 16 : 0);
        }
      }
    }
    CommitCopies();
  }

  // Fragments straight from device memory: a unit reads them once.
  __device__ __forceinline__ void LoadQueries(const DecodeUnit& u) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int packed = (lane_ >> 2) + 8 * r;
      const int row = packed / p_.layout.heads_per_item, head = packed % p_.layout.heads_per_item;
      const T* from = static_cast<const T*>(p_.q) +
                      (static_cast<int64_t>(u.row_begin) + row) * p_.q_row_stride +
                      (u.head + head) * p_.q_head_stride;
      const bool real = packed < num_rows_;
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          query_[step][half * 2 + r] = real ? *reinterpret_cast<const uint32_t*>(
                                                  from + step * 16 + QueryChannel<E>(lane_, half))
                                            : 0u;
        }
      }
    }
  }

  __device__ __forceinline__ void ComputePage(uint32_t keys, int32_t logical_and_mask) {
    const uint32_t values = keys + kHalfBytes;
    const auto key_at = [&](int n, int chunk) { return keys + Rows::At(n, chunk); };
    const auto value_at = [&](int n, int chunk) { return values + Rows::At(n, chunk); };
    // Of e4m3 one load of shared memory has two groups of 16 channels.
    constexpr int kGroups = kIsCode<E> && kHeadDim % 32 == 0 ? 2 : 1;
    float s[2][4] = {};
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; step += kGroups) {
      uint32_t b[kGroups][4];
      LoadKeys<E>(key_at, lane_, step, b);
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        Mma16x8x16<T>(s[0], query_[step + n], b[n]);
        Mma16x8x16<T>(s[1], query_[step + n], b[n] + 2);
      }
    }
    if (p_.softcap > 0.0f) SoftCap(p_.scale, p_.softcap, s);
    if (logical_and_mask & 1) Mask((logical_and_mask >> 1) * kPageTokens, s);
    float shrink[2];
    OnlineSoftmax(factor_, s, top_, sum_, shrink);
    Shrink(shrink, o_);
    uint32_t a[4];
    PackProbabilities<T>(s[0], s[1], a);
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; n += kGroups) {
      uint32_t b[kGroups][4];
      LoadValues<E>(value_at, lane_, n, b);
#pragma unroll
      for (int i = 0; i < 2 * kGroups; ++i) {
        Mma16x8x16<T>(o_[2 * n + i], a, b[i / 2] + i % 2 * 2);
      }
    }
  }

  __device__ __forceinline__ void Mask(int32_t base, float (&s)[2][4]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = (lane_ >> 2) + 8 * r;
      const VisibleRange range(edge_, first_position_ + row / p_.layout.heads_per_item, kv_len_);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int32_t j = base + warp_ * kMmaDecodeTokens + n * 8 + (lane_ & 3) * 2 + c;
          if (!range.Sees(j)) s[n][r * 2 + c] = NegativeInfinity();
        }
      }
    }
  }

  // Merges the four warps in order and stores the unit's maximum, sum and output.
  __device__ __forceinline__ void Store(int32_t unit) {
    __shared__ float2 norms[kMmaDecodeWarps][kDecodeRows];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = QuadSum(sum_[r]);
      if ((lane_ & 3) == 0) norms[warp_][(lane_ >> 2) + 8 * r] = make_float2(top_[r], total);
    }
    __syncthreads();  // and nobody reads the ring any more
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = (lane_ >> 2) + 8 * r;
      const float weight = Exp2(top_[r] - Subtract(norms, row));
      float* to = merge_ + (warp_ * kDecodeRows + row) * kHeadDim;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; n += 2) {
        ForOutputPairs<E>(o_[n], o_[n + 1], lane_, r, [&](int c, float first, float second) {
          *reinterpret_cast<float2*>(to + n * 8 + c) = make_float2(first * weight, second * weight);
        });
      }
    }
    __syncthreads();
    const int64_t at = static_cast<int64_t>(unit) * p_.layout.rows;
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < num_rows_) {
      const float subtract = Subtract(norms, thread);
      float sum = 0.0f, best = NegativeInfinity();
#pragma unroll
      for (int w = 0; w < kMmaDecodeWarps; ++w) {
        best = fmaxf(best, norms[w][thread].x);
        sum += norms[w][thread].y * Exp2(norms[w][thread].x - subtract);
      }
      p_.scratch.norms[at + thread] = make_float2(best, sum);
    }
    for (int e = thread * 4; e < num_rows_ * kHeadDim; e += kMmaDecodeThreads * 4) {
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < kMmaDecodeWarps; ++w) {
        const float4 x =
            *reinterpret_cast<const float4*>(merge_ + w * kDecodeRows * kHeadDim + e);
        total.x += x.x;
        total.y += x.y;
        total.z += x.z;
        total.w += x.w;
      }
      *reinterpret_cast<float4*>(p_.scratch.parts + at * kHeadDim + e) = total;
    }
    __syncthreads();  // the next unit's copies go where this one was merged
  }
  // The largest of the warps' maxima, 0 where nothing was visible.
  __device__ __forceinline__ static float Subtract(
      const float2 (&norms)[kMmaDecodeWarps][kDecodeRows], int row) {
    float best = NegativeInfinity();
#pragma unroll
    for (int w = 0; w < kMmaDecodeWarps; ++w) best = fmaxf(best, norms[w][row].x);
    return best == NegativeInfinity() ? 0.0f : best;
  }

  const MmaDecodeParams& p_;
  float* const merge_;
  const int warp_, lane_;
  const uint32_t ring_;
  const float factor_;
  int num_rows_;  // packed
  int32_t first_position_, kv_len_;
  EdgeRule edge_;
  const char *k_, *v_;
  int32_t physical_, logical_and_mask_;
  uint32_t query_[kHeadDim / 16][4];
  float o_[kHeadDim / 8][4];
  float top_[2];  // base-2 logarithms
  float sum_[2];
};

template <typename T, typename E, int kHeadDim>
__global__ void __launch_bounds__(kMmaDecodeThreads, 2)
    MmaDecodeKernel(const __grid_constant__ MmaDecodeParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  MmaDecode<T, E, kHeadDim>(p, shared).Run();
}

template <typename T, typename E, int kHeadDim>
cudaError_t LaunchMmaDecodeOf(MmaDecodeParams p, cudaStream_t stream) {
  constexpr int kSlotBytes = MmaDecode<T, E, kHeadDim>::kSlotBytes * kMmaDecodeWarps;
  constexpr int kMergeBytes = MmaDecode<T, E, kHeadDim>::kMergeBytes;
  constexpr int kSystemBytes = 2048;  // what the system and the kernel's own arrays take
  int device = 0, processors = 0, most = 0, per_processor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  error =
      cudaDeviceGetAttribute(&per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (error != cudaSuccess) return error;
  // Two blocks on a multiprocessor if both have room to copy ahead.
  const int half = per_processor / 2 - kSystemBytes;
  const int blocks = half >= 2 * kSlotBytes ? 2 : 1;
  const int budget = blocks == 2 ? half : most - kSystemBytes;
  p.slots = std::min(budget / kSlotBytes, kMaxPendingCopies + 2);
  if (p.slots < 1) return cudaErrorNotSupported;
  const int bytes = std::max(p.slots * kSlotBytes, kMergeBytes);
  const auto kernel = MmaDecodeKernel<T, E, kHeadDim>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(std::min({processors * blocks, p.layout.max_units, kMaxBlocks})),
           kMmaDecodeThreads, bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

// Computes Attention (op_params.h) for every shape of the contract.
// Inputs: q, out f32 [rows, heads, dim] with dim <= 640; cache f32, f16, bf16 or int8; any
// selection. Accumulation float32, softmax within 2e-6 of the reference. A block takes 16 query
// rows (positions times the heads that share a list) against chunks of 32 keys in shared memory, a
// warp four of the rows: lanes are keys for the scores and columns for the values. Keys are reduced
// in segments of kAttentionSegment absolute positions, merged in ascending order, by the block
// itself or, where there are few blocks, by a second kernel: the same bits. A chunk never spans two
// entries of 16 positions or more, so its keys depend on its position only. Bound: shared-memory
// reads, a quarter of the float32 rate. Arch: any.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/attention/float_attention.h"
#include "kernels/cuda/device/math.cuh"

namespace longstride::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kPackRows = 16;  // query rows of a block
constexpr int kWarpRows = kPackRows / kWarps;
constexpr int kChunk = 32;  // keys at a time

struct Params {
  const float* q;
  int64_t q_row, q_head;
  float* out;
  int64_t out_row, out_head;
  PagedKv cache;
  PageTable table;
  const int32_t* kv_lens;
  KvSelection selection;
  float scale, softcap;
  const float* sinks;
  float* lse;
  uint32_t* status;
  int32_t heads, group;
  int32_t item_heads;  // lists per tile, or KV heads where those share one
  int32_t item_width;  // query heads of an item
  int32_t packs;       // blocks per tile and item head
  int32_t slots;       // rows of a pack that are used at most
  int32_t segments;    // 0: a block walks them all
  float2* norms;       // [segment, item, slot]: maximum and sum
  float* sums;         // [segment, item, slot, dim]
};

// A query row of the block.
struct Row {
  int32_t position;
  int32_t head;
  int64_t row;
  bool valid;
};

struct Softmax {
  float top = 0, sum = 0;
};

// What a block works on.
struct Pack {
  QueryTile tile;
  int32_t item_head, kv_head, kv_len, first, count;  // packed rows [first, first + count)
  int64_t item;
  const int32_t* entries;
  int32_t num_entries;
  EdgeRule edge;
  bool empty;

  __device__ Pack(const Params& p) {
    const KvSelection& s = p.selection;
    const int32_t t = static_cast<int32_t>(blockIdx.x) / p.packs;
    tile = s.tiles[t];
    first = static_cast<int32_t>(blockIdx.x) % p.packs * kPackRows;
    count = min(kPackRows, tile.num_rows * p.item_width - first);
    empty = count <= 0;
    item_head = static_cast<int32_t>(blockIdx.y);
    kv_head = item_head * p.item_width / p.group;
    kv_len = p.kv_lens[tile.sequence];
    item = static_cast<int64_t>(blockIdx.x) * p.item_heads + item_head;
    const int32_t list_head = s.list_heads == ListHeads::kShared ? 0 : item_head;
    const int64_t list = static_cast<int64_t>(list_head) * s.num_tiles + t;
    entries = s.entries + s.list_begin[list];
    num_entries = s.list_count[list];
    edge = s.edges[list_head];
  }
  __device__ Row RowOf(const Params& p, int i) const {
    const int32_t packed = first + i;
    Row r;
    r.valid = i < count;
    r.position = tile.first_position + packed / p.item_width;
    r.head = item_head * p.item_width + packed % p.item_width;
    r.row = static_cast<int64_t>(tile.row_begin) + packed / p.item_width;
    return r;
  }
};

// Merges a later segment into what came before; every path calls this, so bits agree.
__device__ __forceinline__ float2 MergeWeights(Softmax& total, const Softmax& next) {
  const float top = fmaxf(total.top, next.top);
  if (top == NegativeInfinity()) return make_float2(1.0f, 0.0f);
  const float2 w = make_float2(expf(total.top - top), expf(next.top - top));
  total.sum = __fmaf_rn(next.sum, w.y, __fmul_rn(total.sum, w.x));
  total.top = top;
  return w;
}
__device__ __forceinline__ float Merge(float total, float next, float2 w) {
  return __fmaf_rn(next, w.y, __fmul_rn(total, w.x));
}

// What the sums of a row are multiplied with; writes the row's log-sum-exp.
__device__ float Finish(const Params& p, const Row& r, const Softmax& total, bool write_lse) {
  const bool nothing = !(total.sum > 0.0f);
  if (write_lse && p.lse != nullptr) {
    p.lse[r.row * p.heads + r.head] =
        nothing ? NegativeInfinity() : total.top + logf(total.sum);
  }
  if (nothing) return 0.0f;
  if (p.sinks == nullptr) return 1.0f / total.sum;
  const float sink = p.sinks[r.head];
  const float most = fmaxf(total.top, sink);
  const float mine = expf(total.top - most);
  return mine / (total.sum * mine + expf(sink - most));
}

__device__ __forceinline__ float4 LoadFour(KvDType dtype, const char* row, int c, float scale) {
  switch (dtype) {
    case KvDType::kF32:
      return *reinterpret_cast<const float4*>(row + 4 * c);
    case KvDType::kF16: {
      const uint2 w = *reinterpret_cast<const uint2*>(row + 2 * c);
      const float2 a = __half22float2(reinterpret_cast<const __half2&>(w.x));
      const float2 b = __half22float2(reinterpret_cast<const __half2&>(w.y));
      return make_float4(a.x, a.y, b.x, b.y);
    }
    case KvDType::kBF16: {
      const uint2 w = *reinterpret_cast<const uint2*>(row + 2 * c);
      return make_float4(__uint_as_float(w.x << 16), __uint_as_float(w.x & 0xffff0000u),
                         __uint_as_float(w.y << 16), __uint_as_float(w.y & 0xffff0000u));
    }
    case KvDType::kFp8: {
      const uchar4 w = *reinterpret_cast<const uchar4*>(row + c);
      return make_float4(FromE4m3(w.x) * scale, FromE4m3(w.y) * scale, FromE4m3(w.z) * scale,
                         FromE4m3(w.w) * scale);
    }
    case KvDType::kQ8: {
      const char4 w = *reinterpret_cast<const char4*>(row + c);
      return make_float4(w.x * scale, w.y * scale, w.z * scale, w.w * scale);
    }
  }
  return make_float4(0, 0, 0, 0);
}
__device__ __forceinline__ float LoadOne(KvDType dtype, const char* row, int c, float scale) {
  switch (dtype) {
    case KvDType::kF32:
      return reinterpret_cast<const float*>(row)[c];
    case KvDType::kF16:
      return __half2float(reinterpret_cast<const __half*>(row)[c]);
    case KvDType::kBF16:
      return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row)[c]);
    case KvDType::kFp8:
      return FromE4m3(reinterpret_cast<const uint8_t*>(row)[c]) * scale;
    case KvDType::kQ8:
      return static_cast<float>(reinterpret_cast<const int8_t*>(row)[c]) * scale;
  }
  return 0.0f;
}

__device__ __forceinline__ int64_t RowBytesOf(KvDType dtype, int32_t dim) {
  return dtype == KvDType::kF32                            ? 4 * dim
         : dtype == KvDType::kQ8 || dtype == KvDType::kFp8 ? dim
                                                           : 2 * dim;
}

// A key of a chunk; every warp knows all of them, a lane each.
struct Key {
  int32_t position;  // or -1
  int32_t page;
};

template <int kVec>
class Block {
 public:
  static constexpr int kColumns = kVec * 128;
  static constexpr int kStride = kColumns + 4;  // floats; rows 16 bytes apart in the banks
  static constexpr int kSharedBytes =
      ((kPackRows + 2 * kChunk) * kStride + kWarps * kChunk * kWarpRows) * 4;

  __device__ Block(const Params& p, const Pack& pack, float* shared)
      : p_(p),
        pack_(pack),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        q_(shared),
        k_(q_ + kPackRows * kStride),
        v_(k_ + kChunk * kStride),
        weights_(v_ + kChunk * kStride + warp_ * kChunk * kWarpRows),
        first_(pack.RowOf(p, 0).position),
        last_(pack.RowOf(p, pack.count - 1).position) {
    for (int i = 0; i < kPackRows; ++i) {
      const Row r = pack.RowOf(p, i);
      const float* from = p.q + r.row * p.q_row + r.head * p.q_head;
      for (int c = static_cast<int>(threadIdx.x); c < kColumns; c += kThreads) {
        q_[i * kStride + c] = r.valid && c < p.cache.head_dim ? from[c] : 0.0f;
      }
    }
    for (int i = 0; i < kWarpRows; ++i) rows_[i] = pack.RowOf(p, warp_ * kWarpRows + i);
    ClearSegment();
  }

  // Keys of the list's entries from `at` that lie in the segment; returns the first entry behind.
  __device__ int32_t WalkSegment(int32_t at, int64_t segment_end) {
    const KvSelection& s = p_.selection;
    if (s.entry_tokens == 1) {
      while (at < pack_.num_entries) {
        const int32_t entry = at + lane_ < pack_.num_entries ? pack_.entries[at + lane_] : kNoEntry;
        const unsigned behind = __ballot_sync(0xffffffffu, entry >= segment_end);
        const int taken = behind == 0 ? kChunk : __ffs(static_cast<int>(behind)) - 1;
        if (taken > 0) Chunk(lane_ < taken ? entry : -1);
        at += taken;
        if (behind != 0) return at;
      }
      return pack_.num_entries;
    }
    const int width = min(kChunk, s.entry_tokens);
    for (; at < pack_.num_entries; ++at) {
      const int32_t entry = pack_.entries[at];
      if (entry == kNoEntry) continue;
      const int64_t base = static_cast<int64_t>(entry) * s.entry_tokens;
      if (base >= segment_end) break;
      for (int offset = 0; offset < s.entry_tokens; offset += width) {
        const int64_t j = base + offset + lane_;
        Chunk(lane_ < width && j < pack_.kv_len ? static_cast<int32_t>(j) : -1);
      }
    }
    return at;
  }

  __device__ void ClearSegment() {
    for (int i = 0; i < kWarpRows; ++i) {
      state_[i].top = NegativeInfinity();
      state_[i].sum = 0.0f;
      for (int c = 0; c < kVec * 4; ++c) sums_[i][c] = 0.0f;
    }
  }

  __device__ void StorePart(int32_t segment) {
    const int64_t items = static_cast<int64_t>(gridDim.x) * p_.item_heads;
    for (int i = 0; i < kWarpRows; ++i) {
      if (!rows_[i].valid) continue;
      const int64_t at =
          (segment * items + pack_.item) * p_.slots + warp_ * kWarpRows + i;
      if (lane_ == 0) p_.norms[at] = make_float2(state_[i].top, state_[i].sum);
      ForColumns([&](int c, int n) { p_.sums[at * p_.cache.head_dim + c] = sums_[i][n]; });
    }
  }

  // Walks all segments and writes the rows.
  __device__ void Run(int32_t at) {
    Softmax total[kWarpRows];
    float out[kWarpRows][kVec * 4];
    for (int i = 0; i < kWarpRows; ++i) {
      total[i].top = NegativeInfinity();
      total[i].sum = 0.0f;
      for (int c = 0; c < kVec * 4; ++c) out[i][c] = 0.0f;
    }
    while (at < pack_.num_entries) {
      const int64_t position =
          static_cast<int64_t>(pack_.entries[at]) * p_.selection.entry_tokens;
      const int64_t end = (position / kAttentionSegment + 1) * kAttentionSegment;
      if (position >= pack_.kv_len) break;
      at = WalkSegment(at, end);
      for (int i = 0; i < kWarpRows; ++i) {
        const float2 w = MergeWeights(total[i], state_[i]);
        for (int c = 0; c < kVec * 4; ++c) out[i][c] = Merge(out[i][c], sums_[i][c], w);
      }
      ClearSegment();
      while (at < pack_.num_entries && pack_.entries[at] == kNoEntry) ++at;
    }
    for (int i = 0; i < kWarpRows; ++i) {
      const Row& r = rows_[i];
      if (!r.valid) continue;
      const float factor = Finish(p_, r, total[i], lane_ == 0);
      float* to = p_.out + r.row * p_.out_row + r.head * p_.out_head;
      ForColumns([&](int c, int n) { to[c] = out[i][n] * factor; });
    }
  }

 private:
  // Calls fn(column, index) for this lane's columns.
  template <typename Fn>
  __device__ __forceinline__ void ForColumns(const Fn& fn) const {
#pragma unroll
    for (int n = 0; n < kVec * 4; ++n) {
      const int c = n / 4 * 128 + lane_ * 4 + n % 4;
      if (c < p_.cache.head_dim) fn(c, n);
    }
  }

  // Whether some row of the block may see position j.
  __device__ bool MaySee(int32_t j) const {
    const EdgeRule& e = pack_.edge;
    if (j < 0 || j >= pack_.kv_len || (e.causal && j > last_)) return false;
    if (e.window != 0 && j <= first_ - e.window && j >= e.sink_tokens) return false;
    return e.chunk == 0 || (j / e.chunk >= first_ / e.chunk && j / e.chunk <= last_ / e.chunk);
  }

  // One chunk of keys, lane by lane; -1: none. The same in all warps.
  __device__ void Chunk(int32_t position) {
    Key key = {MaySee(position) ? position : -1, kNoPage};
    if (key.position >= 0) {
      key.page = p_.table.pages[pack_.tile.sequence * p_.table.stride + position / kPageTokens];
      if (key.page < 0 || key.page >= p_.cache.num_pages) {
        *p_.status = 1;
        key.position = -1;
      }
    }
    if (__ballot_sync(0xffffffffu, key.position >= 0) == 0) return;
    __syncthreads();
    LoadKeys(key);
    __syncthreads();
    Score(key.position);
    __syncwarp();
    AddValues();
  }

  __device__ void LoadKeys(const Key& key) {
    const PagedKv& cache = p_.cache;
    const int dim = cache.head_dim;
    const int64_t row_bytes = RowBytesOf(cache.dtype, dim);
    const bool wide = dim % 4 == 0;
    for (int n = warp_; n < kChunk; n += kWarps) {
      const int32_t position = __shfl_sync(0xffffffffu, key.position, n);
      const int32_t page = __shfl_sync(0xffffffffu, key.page, n);
      const int32_t slot = position % kPageTokens;
      const int64_t head = page * cache.page_stride + pack_.kv_head * cache.head_stride;
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float* to = (side == 0 ? k_ : v_) + n * kStride;
        const char* base = static_cast<const char*>(side == 0 ? cache.k : cache.v) + head;
        const char* row = base + slot * row_bytes;
        const bool real = position >= 0;
        const float scale = real && cache.dtype == KvDType::kQ8
                                ? reinterpret_cast<const float*>(
                                      base + static_cast<int64_t>(kPageTokens) * dim)[slot]
                            : side == 0 ? 1.0f
                                        : cache.v_scale;
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          const int c = i * 128 + lane_ * 4;
          float4 x = make_float4(0, 0, 0, 0);
          if (real && wide && c < dim) {
            x = LoadFour(cache.dtype, row, c, scale);
          } else if (real) {
            if (c < dim) x.x = LoadOne(cache.dtype, row, c, scale);
            if (c + 1 < dim) x.y = LoadOne(cache.dtype, row, c + 1, scale);
            if (c + 2 < dim) x.z = LoadOne(cache.dtype, row, c + 2, scale);
            if (c + 3 < dim) x.w = LoadOne(cache.dtype, row, c + 3, scale);
          }
          *reinterpret_cast<float4*>(to + c) = x;
        }
      }
    }
  }

  __device__ bool Sees(const Row& r, int32_t j) const {
    const EdgeRule& e = pack_.edge;
    return r.valid && j >= 0 && (!e.causal || j <= r.position) &&
           (e.window == 0 || j > r.position - e.window || j < e.sink_tokens) &&
           (e.chunk == 0 || j / e.chunk == r.position / e.chunk);
  }

  // Scores of this warp's rows against the chunk, and their weights in shared memory.
  __device__ void Score(int32_t position) {
    float s[kWarpRows] = {};
    const float4* k = reinterpret_cast<const float4*>(k_ + lane_ * kStride);
    const float4* q = reinterpret_cast<const float4*>(q_ + warp_ * kWarpRows * kStride);
    const int fours = (p_.cache.head_dim + 3) / 4;
    for (int c = 0; c < fours; ++c) {
      const float4 x = k[c];
#pragma unroll
      for (int i = 0; i < kWarpRows; ++i) {
        const float4 y = q[i * (kStride / 4) + c];
        s[i] = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, s[i]))));
      }
    }
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      s[i] *= p_.scale;
      if (p_.softcap > 0.0f) s[i] = p_.softcap * tanhf(s[i] / p_.softcap);
      if (!Sees(rows_[i], position)) s[i] = NegativeInfinity();
      float top = s[i];
      for (int o = 16; o > 0; o /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
      top = fmaxf(top, state_[i].top);
      const bool none = top == NegativeInfinity();
      const float weight = none ? 0.0f : expf(s[i] - top);
      rescale_[i] = none ? 1.0f : expf(state_[i].top - top);
      float sum = weight;
      for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
      state_[i].sum = __fmaf_rn(state_[i].sum, rescale_[i], sum);
      state_[i].top = top;
      weights_[lane_ * kWarpRows + i] = weight;
    }
  }

  __device__ void AddValues() {
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      for (int c = 0; c < kVec * 4; ++c) sums_[i][c] *= rescale_[i];
    }
    for (int n = 0; n < kChunk; ++n) {
      const float4 w = *reinterpret_cast<const float4*>(weights_ + n * kWarpRows);
      const float weight[kWarpRows] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const float4 v = *reinterpret_cast<const float4*>(v_ + n * kStride + j * 128 + lane_ * 4);
#pragma unroll
        for (int i = 0; i < kWarpRows; ++i) {
          float* sum = sums_[i] + j * 4;
          sum[0] = fmaf(weight[i], v.x, sum[0]);
          sum[1] = fmaf(weight[i], v.y, sum[1]);
          sum[2] = fmaf(weight[i], v.z, sum[2]);
          sum[3] = fmaf(weight[i], v.w, sum[3]);
        }
      }
    }
  }

  const Params& p_;
  const Pack& pack_;
  const int lane_, warp_;
  float* q_;
  float* k_;
  float* v_;
  float* weights_;
  const int32_t first_, last_;
  Row rows_[kWarpRows];
  Softmax state_[kWarpRows];
  float rescale_[kWarpRows];
  float sums_[kWarpRows][kVec * 4];
};

// The first entry that is one and lies at `position` or later.
__device__ int32_t FindEntry(const Params& p, const Pack& pack, int64_t position) {
  __shared__ int32_t found;
  if (threadIdx.x == 0) found = pack.num_entries;
  __syncthreads();
  int32_t mine = pack.num_entries;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < pack.num_entries; i += kThreads) {
    const int32_t entry = pack.entries[i];
    if (entry != kNoEntry && static_cast<int64_t>(entry) * p.selection.entry_tokens >= position) {
      mine = i;
      break;
    }
  }
  atomicMin(&found, mine);
  __syncthreads();
  return found;
}

template <int kVec>
__global__ void __launch_bounds__(kThreads) FloatKernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) float shared[];
  const Pack pack(p);
  if (pack.empty) return;
  if (p.segments == 0) {
    const int32_t at = FindEntry(p, pack, 0);
    Block<kVec>(p, pack, shared).Run(at);
    return;
  }
  const auto segment = static_cast<int32_t>(blockIdx.z);
  const int64_t begin = static_cast<int64_t>(segment) * kAttentionSegment;
  const int32_t at = FindEntry(p, pack, begin);
  Block<kVec> block(p, pack, shared);
  if (begin < pack.kv_len) block.WalkSegment(at, begin + kAttentionSegment);
  block.StorePart(segment);
}

// A block per row: merges its segments.
__global__ void __launch_bounds__(kThreads) FloatMergeKernel(const __grid_constant__ Params p) {
  const Pack pack(p);
  const auto slot = static_cast<int>(blockIdx.z);
  if (pack.empty || slot >= pack.count) return;
  const Row r = pack.RowOf(p, slot);
  const int64_t items = static_cast<int64_t>(gridDim.x) * p.item_heads;
  float* to = p.out + r.row * p.out_row + r.head * p.out_head;
  for (int c = static_cast<int>(threadIdx.x); c < p.cache.head_dim; c += kThreads) {
    Softmax total;
    total.top = NegativeInfinity();
    total.sum = 0.0f;
    float out = 0.0f;
    for (int32_t segment = 0; segment < p.segments; ++segment) {
      const int64_t at = (segment * items + pack.item) * p.slots + slot;
      const float2 norm = p.norms[at];
      Softmax next;
      next.top = norm.x;
      next.sum = norm.y;
      const float2 w = MergeWeights(total, next);
      out = Merge(out, p.sums[at * p.cache.head_dim + c], w);
    }
    to[c] = out * Finish(p, r, total, threadIdx.x == 0);
  }
}

Params MakeParams(const AttentionParams& a, const FloatAttentionLaunch& launch) {
  const KvSelection& s = a.selection;
  Params p = {};
  p.q = a.q.ptr<const float>();
  p.q_row = a.q.strides[0];
  p.q_head = a.q.strides[1];
  p.out = a.out.ptr<float>();
  p.out_row = a.out.strides[0];
  p.out_head = a.out.strides[1];
  p.cache = a.cache;
  p.table = a.page_table;
  p.kv_lens = a.kv_lens;
  p.selection = s;
  p.scale = a.scale;
  p.softcap = a.softcap;
  p.sinks = a.sinks;
  p.lse = a.lse;
  p.status = launch.status;
  p.heads = static_cast<int32_t>(a.q.shape[1]);
  p.group = p.heads / a.cache.num_heads;
  p.item_heads = s.list_heads == ListHeads::kPerQHead ? p.heads : a.cache.num_heads;
  p.item_width = p.heads / p.item_heads;
  const int32_t packed = s.query_tile * p.item_width;
  p.packs = (packed + kPackRows - 1) / kPackRows;
  p.slots = packed < kPackRows ? packed : kPackRows;
  const int64_t blocks = static_cast<int64_t>(s.num_tiles) * p.packs * p.item_heads;
  const int32_t segments = (launch.max_kv_len + kAttentionSegment - 1) / kAttentionSegment;
  const bool split = segments > 1 && segments <= 65535 && blocks < 2 * launch.multiprocessors;
  p.segments = split ? segments : 0;
  return p;
}

int64_t Parts(const AttentionParams& a, const Params& p) {
  return static_cast<int64_t>(p.segments) * a.selection.num_tiles * p.packs * p.item_heads *
         p.slots;
}

template <int kVec>
cudaError_t Launch(const Params& p, int32_t num_tiles, cudaStream_t stream) {
  constexpr int kBytes = Block<kVec>::kSharedBytes;
  const cudaError_t error = cudaFuncSetAttribute(
      FloatKernel<kVec>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const dim3 blocks(static_cast<unsigned>(num_tiles * p.packs),
                    static_cast<unsigned>(p.item_heads),
                    static_cast<unsigned>(p.segments == 0 ? 1 : p.segments));
  FloatKernel<kVec><<<blocks, kThreads, kBytes, stream>>>(p);
  if (p.segments > 0) {
    FloatMergeKernel<<<dim3(blocks.x, blocks.y, static_cast<unsigned>(p.slots)), kThreads, 0,
                          stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace

int64_t FloatAttentionScratchBytes(const AttentionParams& a, const FloatAttentionLaunch& launch) {
  const Params p = MakeParams(a, launch);
  return Parts(a, p) * (8 + 4 * int64_t{a.cache.head_dim});
}

cudaError_t LaunchFloatAttention(const AttentionParams& a, const FloatAttentionLaunch& launch,
                           cudaStream_t stream) {
  const int32_t dim = a.cache.head_dim;
  if (dim > kMaxFloatHeadDim) return cudaErrorNotSupported;
  if (a.selection.num_tiles == 0) return cudaSuccess;
  Params p = MakeParams(a, launch);
  p.norms = static_cast<float2*>(launch.scratch);
  p.sums = reinterpret_cast<float*>(p.norms + Parts(a, p));
  const int32_t tiles = a.selection.num_tiles;
  return dim <= 128   ? Launch<1>(p, tiles, stream)
         : dim <= 256 ? Launch<2>(p, tiles, stream)
                      : Launch<5>(p, tiles, stream);
}

}  // namespace longstride::kernels::cuda

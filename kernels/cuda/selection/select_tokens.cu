// Computes SelectTokens (op_params.h) in two launches: every candidate's score, and the best of
// them as an ascending list. Inputs: q f32 [rows, heads, dim], weights f32 [rows, heads], index
// keys of any cache type.
//
// Scores: where keys have 16 bits and fit (TokensByProducts), products of the tensor cores: a warp
// holds its keys in registers, 8 at a time, and walks the heads; else a block for each page and
// row, a thread for each key and quarter of the heads, in float32. Lists: a block for each, by
// radix selection (lists.cuh). A score's order of sums depends on nothing but the head count.
// Bound: arithmetic. Arch: sm_80 and newer.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/selection/key_values.cuh"
#include "kernels/cuda/selection/query_parts.cuh"
#include "kernels/cuda/selection/selection.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kKeysAtOnce = 8, kRuns = 4;  // a warp's
constexpr int kKeysOfBlock = kRuns * kWarps * kKeysAtOnce;
constexpr int kChunks = 4;  // of 32 channels
constexpr int kQuarters = 4;
constexpr size_t kMostStaged = 48 << 10;

struct TokenShape {
  SelectTokensParams p;
  TokenLaunch launch;
};

__device__ __forceinline__ float NotANumber() { return __uint_as_float(0x7fffffffu); }
__device__ __forceinline__ int32_t TokensOf(const QueryTile& t) {
  return t.first_position + t.num_rows;
}
__device__ __forceinline__ bool Chooses(const TokenShape& s, int32_t tile_index,
                                        const QueryTile& tile) {
  return s.p.counts[tile_index] != 0 && s.p.counts[tile_index] < TokensOf(tile);
}
// The page of key j, or null.
__device__ __forceinline__ const char* PageOf(const TokenShape& s, const QueryTile& tile,
                                              int32_t j) {
  const int32_t id = s.p.page_table.pages[tile.sequence * s.p.page_table.stride + j / kPageTokens];
  return id >= 0 && id < s.p.cache.num_pages
             ? static_cast<const char*>(s.p.cache.k) + id * s.p.cache.page_stride
             : nullptr;
}
// Written so that what is not a number stays that.
__device__ __forceinline__ float Term(float weight, float product) {
  return weight * (product < 0.0f ? 0.0f : product);
}

// Block (kKeysOfBlock keys, tile).
template <typename T>
__global__ void __launch_bounds__(kThreads) TokenProductKernel(const TokenShape s) {
  BeginOverlapped();
  extern __shared__ uint4 shared[];
  T* parts = reinterpret_cast<T*>(shared);
  __shared__ float factors[kHeadsAtOnce], weights[kHeadsAtOnce];
  const int32_t local = static_cast<int32_t>(blockIdx.y);
  const int32_t tile_index = s.launch.first_tile + local;
  const QueryTile tile = s.p.tiles[tile_index];
  const int32_t first = static_cast<int32_t>(blockIdx.x) * kKeysOfBlock, tokens = TokensOf(tile);
  if (!Chooses(s, tile_index, tile) || first >= tokens) return;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t dim = s.p.cache.head_dim, stride = RowStride(dim);
  const auto heads = static_cast<int32_t>(s.p.q.shape[1]);
  uint4 keys[kRuns][kChunks];
  bool exists[kRuns];
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    const int32_t j = first + (run * kWarps + warp) * kKeysAtOnce + lane / 4;
    const char* page = j < tokens ? PageOf(s, tile, j) : nullptr;
    exists[run] = page != nullptr;
    const T* row = reinterpret_cast<const T*>(page) + j % kPageTokens * dim;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int32_t d = 32 * c + lane % 4 * 8;
      keys[run][c] = exists[run] && d < dim ? *reinterpret_cast<const uint4*>(row + d) : uint4{};
    }
  }
  float sums[kRuns][2] = {};  // of keys 2 * (lane % 4) and the next, heads lane / 4 + 8 n
  const float* q = static_cast<const float*>(s.p.q.data) + tile.row_begin * s.p.q.strides[0];
  const float* of_heads =
      static_cast<const float*>(s.p.weights.data) + tile.row_begin * s.p.weights.strides[0];
  for (int32_t h0 = 0; h0 < heads; h0 += kHeadsAtOnce) {
    if (h0 > 0) __syncthreads();
    for (int32_t row = warp; row < kHeadsAtOnce; row += kWarps) {
      const int32_t head = h0 + row;
      const float factor = SplitQueries<T, PageScore::kMean>(
          head < heads ? q + head * s.p.q.strides[1] : nullptr, dim, row, lane, parts);
      if (lane == 0) factors[row] = factor, weights[row] = head < heads ? of_heads[head] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      float acc[4] = {};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (32 * c >= dim) break;
        Multiply<T>(parts + lane / 4 * stride + 32 * c + lane % 4 * 8, stride, keys[run][c], acc);
      }
      if (h0 + lane / 4 >= heads) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sums[run][i] += Term(weights[lane / 4], (acc[i] + acc[2 + i]) * factors[lane / 4]);
      }
    }
  }
  float* scores = s.launch.scores + local * s.launch.max_tokens;
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t column = lane % 4 * 2 + i;
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        sums[run][i] += __shfl_xor_sync(kAllLanes, sums[run][i], step);
      }
      const bool there = __shfl_sync(kAllLanes, exists[run] ? 1 : 0, column * 4) != 0;
      const int32_t j = first + (run * kWarps + warp) * kKeysAtOnce + column;
      if (lane < 4 && j < tokens) scores[j] = there ? sums[run][i] : NotANumber();
    }
  }
}

// Block (page, tile). Keys lie in shared memory as float32 where they fit.
template <typename T>
__global__ void __launch_bounds__(kPageTokens* kQuarters)
    TokenScoreKernel(const TokenShape s, bool staged) {
  BeginOverlapped();
  extern __shared__ float keys[];  // [kPageTokens, dim | 1]
  __shared__ float quarters[kQuarters][kPageTokens];
  const int32_t local = static_cast<int32_t>(blockIdx.y);
  const int32_t tile_index = s.launch.first_tile + local;
  const QueryTile tile = s.p.tiles[tile_index];
  const int32_t first = static_cast<int32_t>(blockIdx.x) * kPageTokens, tokens = TokensOf(tile);
  if (!Chooses(s, tile_index, tile) || first >= tokens) return;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t slot = thread % kPageTokens, quarter = thread / kPageTokens;
  const int32_t count = min(kPageTokens, tokens - first);
  const int32_t dim = s.p.cache.head_dim, stride = dim | 1;
  const auto heads = static_cast<int32_t>(s.p.q.shape[1]);
  const T* page = reinterpret_cast<const T*>(PageOf(s, tile, first));
  if (staged && page != nullptr) {
    for (int32_t i = thread; i < count * dim; i += kPageTokens * kQuarters) {
      keys[i / dim * stride + i % dim] = KeyValue(page, i / dim, dim, i % dim);
    }
  }
  __syncthreads();
  float sum = 0.0f;
  if (page != nullptr && slot < count) {
    const float* q = static_cast<const float*>(s.p.q.data) + tile.row_begin * s.p.q.strides[0];
    const float* weights =
        static_cast<const float*>(s.p.weights.data) + tile.row_begin * s.p.weights.strides[0];
    for (int32_t h = quarter; h < heads; h += kQuarters) {
      const float* of_head = q + h * s.p.q.strides[1];
      float product = 0.0f;
      for (int32_t d = 0; d < dim; ++d) {
        product += of_head[d] * (staged ? keys[slot * stride + d] : KeyValue(page, slot, dim, d));
      }
      sum += Term(weights[h], product);
    }
  }
  quarters[quarter][slot] = sum;
  __syncthreads();
  if (quarter != 0 || slot >= count) return;
  for (int i = 1; i < kQuarters; ++i) sum += quarters[i][slot];
  s.launch.scores[local * s.launch.max_tokens + first + slot] =
      page != nullptr ? sum : NotANumber();
}

// Block (tile).
__global__ void __launch_bounds__(kListThreads) TokenListKernel(const TokenShape s) {
  BeginOverlapped();
  __shared__ ListShared shared;
  const int32_t local = static_cast<int32_t>(blockIdx.x);
  const int32_t tile_index = s.launch.first_tile + local;
  const QueryTile tile = s.p.tiles[tile_index];
  const int32_t count = s.p.counts[tile_index], tokens = TokensOf(tile);
  int32_t* out = s.p.entries + s.p.list_begin[tile_index];
  if (!Chooses(s, tile_index, tile)) {
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kListThreads) out[i] = i;
    return;
  }
  const float* scores = s.launch.scores + local * s.launch.max_tokens;
  const auto key_at = [&](int32_t j) {
    const float score = scores[j] + 0.0f;  // -0 is 0
    return score == score ? KeyOf(score) : 0u;
  };
  const Largest largest =
      FindLargest<false>(0, tokens, key_at, static_cast<uint32_t>(count), shared);
  WriteLargest(0, tokens, key_at, largest, out, shared);
}

template <typename T>
cudaError_t LaunchProducts(const TokenShape& s, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>((s.launch.max_tokens + kKeysOfBlock - 1) / kKeysOfBlock),
                    static_cast<unsigned>(s.launch.num_tiles));
  const size_t bytes =
      sizeof(T) * kParts<T> * kHeadsAtOnce * static_cast<size_t>(RowStride(s.p.cache.head_dim));
  return LaunchOverlapped(TokenProductKernel<T>, blocks, kThreads, bytes, stream, s);
}

template <typename T>
cudaError_t LaunchFloat(const TokenShape& s, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>((s.launch.max_tokens + kPageTokens - 1) / kPageTokens),
                    static_cast<unsigned>(s.launch.num_tiles));
  const size_t bytes = sizeof(float) * kPageTokens * static_cast<size_t>(s.p.cache.head_dim | 1);
  const bool staged = bytes + sizeof(float) * kQuarters * kPageTokens <= kMostStaged;
  return LaunchOverlapped(TokenScoreKernel<T>, blocks, kPageTokens * kQuarters, staged ? bytes : 0,
                          stream, s, staged);
}

bool TokensByProducts(const SelectTokensParams& p) {
  const bool aligned = (reinterpret_cast<uintptr_t>(p.cache.k) | p.cache.page_stride) % 16 == 0;
  return (p.cache.dtype == KvDType::kF16 || p.cache.dtype == KvDType::kBF16) && aligned &&
         p.cache.head_dim % 32 == 0 && p.cache.head_dim <= 32 * kChunks;
}

cudaError_t LaunchTokenScores(const TokenShape& s, cudaStream_t stream) {
  const bool products = TokensByProducts(s.p);
  switch (s.p.cache.dtype) {
    case KvDType::kBF16:
      return products ? LaunchProducts<__nv_bfloat16>(s, stream)
                      : LaunchFloat<__nv_bfloat16>(s, stream);
    case KvDType::kF16:
      return products ? LaunchProducts<__half>(s, stream) : LaunchFloat<__half>(s, stream);
    case KvDType::kF32:
      return LaunchFloat<float>(s, stream);
    case KvDType::kQ8:
      return LaunchFloat<int8_t>(s, stream);
    case KvDType::kFp8:
      return LaunchFloat<uint8_t>(s, stream);  // k_scale changes no order
  }
  return cudaErrorNotSupported;
}

}  // namespace

cudaError_t LaunchSelectTokens(const SelectTokensParams& p, const TokenLaunch& launch,
                               cudaStream_t stream) {
  if (launch.num_tiles == 0) return cudaSuccess;
  TokenShape s;
  s.p = p;
  s.launch = launch;
  const cudaError_t error = LaunchTokenScores(s, stream);
  if (error != cudaSuccess) return error;
  return LaunchOverlapped(TokenListKernel, static_cast<unsigned>(launch.num_tiles), kListThreads, 0,
                          stream, s);
}

}  // namespace longstride::kernels::cuda

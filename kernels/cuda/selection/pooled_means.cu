// Means of rows of queries and of pages of keys, with the mean cosine of all their pairs, and the
// shares of attention that they give (pooled_means.h). A warp adds up a vector, its lanes over the
// channels; warps and then lanes are summed in one order. Bound: the keys' bytes, once a call.
// Arch: any.
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/selection/key_values.cuh"
#include "kernels/cuda/selection/pooled_means.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr uint32_t kLanes = 0xffffffffu;
constexpr int kMostChannels = 512;
constexpr int kOwn = kMostChannels / 32;  // channels of a lane

__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kLanes, x, step);
  return x;
}

__device__ __forceinline__ float BlockReduce(float x, bool maximum, float* warps) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kLanes, x, step);
    x = maximum ? fmaxf(x, other) : x + other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  float all = warps[0];
  for (int w = 1; w < kWarps; ++w) all = maximum ? fmaxf(all, warps[w]) : all + warps[w];
  return all;
}

// The mean of `count` vectors and the mean cosine of their pairs; value_at(i, d) is vector i's
// channel d.
template <typename ValueAt>
__device__ void Pool(int32_t count, int32_t dim, const ValueAt& value_at, float* mean,
                     float* cosine) {
  __shared__ float sums[2][kMostChannels];
  __shared__ float warps[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  float sum[kOwn] = {}, unit[kOwn] = {};
  for (int32_t i = warp; i < count; i += kWarps) {
    float x[kOwn];
    float square = 0.0f;
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      const int32_t d = n * 32 + lane;
      x[n] = d < dim ? value_at(i, d) : 0.0f;
      square += x[n] * x[n];
    }
    square = WarpSum(square);
    const float inverse = square == 0.0f ? 0.0f : rsqrtf(square);
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      sum[n] += x[n];
      unit[n] += x[n] * inverse;
    }
  }
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) {
#pragma unroll
      for (int n = 0; n < kOwn; ++n) {
        const int32_t d = n * 32 + lane;
        if (d >= dim) continue;
        sums[0][d] = sum[n] + (w == 0 ? 0.0f : sums[0][d]);
        sums[1][d] = unit[n] + (w == 0 ? 0.0f : sums[1][d]);
      }
    }
    __syncthreads();
  }
  const float scale = 1.0f / static_cast<float>(count);
  float square = 0.0f;
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < dim; d += kThreads) {
    mean[d] = sums[0][d] * scale;
    const float x = sums[1][d] * scale;
    square += x * x;
  }
  square = BlockReduce(square, false, warps);
  if (threadIdx.x == 0) *cosine = square;
}

// Block (page, KV head, slot).
template <typename Key>
__global__ void __launch_bounds__(kThreads)
    PageMeansKernel(const SelectPagesParams p, const PageMeans pages) {
  const auto page = static_cast<int32_t>(blockIdx.x);
  const int32_t slot = static_cast<int32_t>(blockIdx.z), dim = p.cache.head_dim;
  const int32_t count = min(kPageTokens, pages.ends[slot] - page * kPageTokens);
  if (count <= 0) return;
  const int64_t at = (slot * pages.max_pages + page) * p.cache.num_heads + blockIdx.y;
  const int32_t id = p.page_table.pages[pages.sequences[slot] * p.page_table.stride + page];
  const bool held = id >= 0 && id < p.cache.num_pages;
  const auto* keys = reinterpret_cast<const Key*>(static_cast<const char*>(p.cache.k) +
                                                  (held ? id : 0) * p.cache.page_stride +
                                                  blockIdx.y * p.cache.head_stride);
  Pool(
      count, dim, [&](int32_t i, int32_t d) { return held ? KeyValue(keys, i, dim, d) : 0.0f; },
      pages.means + at * dim, pages.cosines + at);
}

// Block (tile, query head).
__global__ void __launch_bounds__(kThreads)
    RowMeansKernel(const SelectPagesParams p, const PooledLaunch l) {
  if (l.slot_of[blockIdx.x] < 0) return;
  const QueryTile tile = l.tiles[blockIdx.x];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * p.q.shape[1] + blockIdx.y;
  const float* q = static_cast<const float*>(p.q.data) + tile.row_begin * p.q.strides[0] +
                   blockIdx.y * p.q.strides[1];
  Pool(
      tile.num_rows, p.cache.head_dim,
      [&](int32_t i, int32_t d) { return q[i * p.q.strides[0] + d]; },
      l.means + at * p.cache.head_dim, l.cosines + at);
}

// Block (tile, list head).
__global__ void __launch_bounds__(kThreads)
    SharesKernel(const SelectPagesParams p, const PooledLaunch l) {
  __shared__ float warps[kWarps];
  const int32_t slot = l.slot_of[blockIdx.x];
  if (slot < 0) return;
  const QueryTile tile = l.tiles[blockIdx.x];
  const int32_t pages = (tile.first_position + tile.num_rows - 1) / kPageTokens + 1;
  const int32_t dim = p.cache.head_dim, heads = static_cast<int32_t>(p.q.shape[1]);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const bool limits = p.score == PageScore::kPooled;
  float* out =
      l.shares + (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * l.shares_pitch;
  for (int32_t page = static_cast<int32_t>(threadIdx.x); page < pages; page += kThreads) {
    out[page] = 0.0f;
  }
  for (int32_t n = 0; n < l.heads_per_list; ++n) {
    const int32_t head = static_cast<int32_t>(blockIdx.y) * l.heads_per_list + n;
    const int32_t kv_head = head / (heads / p.cache.num_heads);
    const float* q = l.means + (static_cast<int64_t>(blockIdx.x) * heads + head) * dim;
    const auto page_at = [&](int32_t page) {
      return (slot * l.pages.max_pages + page) * p.cache.num_heads + kv_head;
    };
    const auto alike = [&](int32_t page) {
      return !limits || l.pages.cosines[page_at(page)] > p.similarity;
    };
    const auto score = [&](int32_t page) {
      const float* k = l.pages.means + page_at(page) * dim;
      float sum = 0.0f;
      for (int32_t d = lane; d < dim; d += 32) sum += q[d] * k[d];
      return alike(page) ? p.scale * kLog2E * WarpSum(sum) : NegativeInfinity();
    };
    float max = NegativeInfinity();
    for (int32_t page = warp; page < pages; page += kWarps) max = fmaxf(max, score(page));
    max = BlockReduce(max, true, warps);
    float sum = 0.0f;
    for (int32_t page = warp; page < pages; page += kWarps) {
      const float weight = alike(page) ? Exp2(score(page) - max) : 0.0f;
      if (lane == 0) sum += weight;
    }
    sum = BlockReduce(sum, false, warps);
    const float scale = 1.0f / (sum * static_cast<float>(l.heads_per_list));
    for (int32_t page = warp; page < pages; page += kWarps) {
      const float weight = alike(page) ? Exp2(score(page) - max) : 0.0f;
      if (lane == 0 && sum > 0.0f) out[page] += weight * scale;
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t LaunchPageMeans(const SelectPagesParams& p, const PageMeans& pages,
                            cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(pages.max_pages),
                    static_cast<unsigned>(p.cache.num_heads),
                    static_cast<unsigned>(pages.num_slots));
  switch (p.cache.dtype) {
    case KvDType::kF32:
      PageMeansKernel<float><<<blocks, kThreads, 0, stream>>>(p, pages);
      break;
    case KvDType::kF16:
      PageMeansKernel<__half><<<blocks, kThreads, 0, stream>>>(p, pages);
      break;
    case KvDType::kBF16:
      PageMeansKernel<__nv_bfloat16><<<blocks, kThreads, 0, stream>>>(p, pages);
      break;
    case KvDType::kFp8:
      PageMeansKernel<uint8_t><<<blocks, kThreads, 0, stream>>>(p, pages);
      break;
    case KvDType::kQ8:
      PageMeansKernel<int8_t><<<blocks, kThreads, 0, stream>>>(p, pages);
      break;
  }
  return cudaGetLastError();
}

cudaError_t LaunchPooledShares(const SelectPagesParams& p, const PooledLaunch& l,
                               cudaStream_t stream) {
  if (p.cache.head_dim > kMostChannels) return cudaErrorInvalidValue;
  const auto tiles = static_cast<unsigned>(l.num_tiles);
  const auto heads = static_cast<unsigned>(p.q.shape[1]);
  RowMeansKernel<<<dim3(tiles, heads), kThreads, 0, stream>>>(p, l);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  const dim3 lists(tiles, heads / static_cast<unsigned>(l.heads_per_list));
  SharesKernel<<<lists, kThreads, 0, stream>>>(p, l);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

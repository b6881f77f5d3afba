// Scores of pages by the attention that compressed keys get (PageScore::kCompressedKeys), in three
// launches: products of the rows' queries with the means of segments, a warp for a page and all
// query heads of a KV head; the largest and the sum of exponentials of each query head; and, a
// thread for a page, the heads' sum at the compressed keys that reach into it. Bound: memory, the
// segment means. No order of a reduction depends on the grid. Arch: any.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/selection/lists.cuh"
#include "kernels/cuda/selection/selection.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kPagesOfBlock = 32;
constexpr int kHeadsAtOnce = 8;
constexpr int kRowsOfSummary = SummaryRows(/*segment_means=*/true);

struct Shape {
  SelectPagesParams p;
  SelectLaunch launch;
  int32_t heads, group, heads_per_list;
};

__device__ __forceinline__ float Value(float x) { return x; }
__device__ __forceinline__ float Value(__half x) { return __half2float(x); }
__device__ __forceinline__ float Value(__nv_bfloat16 x) { return __bfloat162float(x); }

// Whether the tile's pages are ranked.
__device__ __forceinline__ bool IsRanked(const Shape& s, int32_t tile_index,
                                         const QueryTile& tile) {
  const int32_t count = s.p.counts[tile_index];
  return count > 0 && count < Candidates(tile);
}
// Compressed keys that the row at `position` sees; ranked rows see some.
__device__ __forceinline__ int32_t CompressedKeys(int32_t position) {
  return (position + 1) / kSegmentTokens - 1;
}
__device__ __forceinline__ float* Products(const Shape& s, int64_t local, int64_t head) {
  return s.launch.products + (local * s.heads + head) * s.launch.max_pages * kPageSegments;
}

// Block (pages, KV head, tile).
template <typename T>
__global__ void __launch_bounds__(kThreads) ProductKernel(const Shape s) {
  extern __shared__ float queries[];  // [group, dim]
  BeginOverlapped();
  const int32_t tile_index = s.launch.first_tile + static_cast<int32_t>(blockIdx.z);
  const QueryTile tile = s.p.tiles[tile_index];
  const int32_t first = static_cast<int32_t>(blockIdx.x) * kPagesOfBlock;
  const int32_t pages = Candidates(tile);
  if (!IsRanked(s, tile_index, tile) || first >= pages) return;
  const int32_t dim = s.p.cache.head_dim;
  const int64_t kv_head = blockIdx.y, first_head = kv_head * s.group;
  const float* q = static_cast<const float*>(s.p.q.data) + tile.row_begin * s.p.q.strides[0] +
                   first_head * s.p.q.strides[1];
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < s.group * dim; i += kThreads) {
    queries[i] = q[i / dim * s.p.q.strides[1] + i % dim] * s.p.scale;
  }
  __syncthreads();
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t end = min(pages, first + kPagesOfBlock);
  for (int32_t page = first + static_cast<int32_t>(threadIdx.x) / 32; page < end; page += kWarps) {
    const int32_t id = s.p.page_table.pages[tile.sequence * s.p.page_table.stride + page];
    const bool exists = id >= 0 && id < s.p.cache.num_pages;
    const T* rows = exists
                        ? reinterpret_cast<const T*>(static_cast<const char*>(s.p.cache.summaries) +
                                                     id * s.p.cache.page_stride) +
                              (kv_head * kRowsOfSummary + kSummaryRows) * dim
                        : nullptr;
    for (int32_t h0 = 0; h0 < s.group; h0 += kHeadsAtOnce) {
      float sums[kHeadsAtOnce][kPageSegments] = {};
      for (int32_t d = lane; exists && d < dim; d += 32) {
        float means[kPageSegments];
#pragma unroll
        for (int i = 0; i < kPageSegments; ++i) means[i] = Value(rows[i * dim + d]);
#pragma unroll
        for (int h = 0; h < kHeadsAtOnce; ++h) {
          if (h0 + h >= s.group) break;
          const float x = queries[(h0 + h) * dim + d];
#pragma unroll
          for (int i = 0; i < kPageSegments; ++i) sums[h][i] += x * means[i];
        }
      }
#pragma unroll
      for (int h = 0; h < kHeadsAtOnce; ++h) {
        if (h0 + h >= s.group) break;
#pragma unroll
        for (int i = 0; i < kPageSegments; ++i) {
#pragma unroll
          for (int step = 16; step > 0; step /= 2) {
            sums[h][i] += __shfl_xor_sync(kAllLanes, sums[h][i], step);
          }
          if (lane == i) {
            Products(s, blockIdx.z, first_head + h0 + h)[page * kPageSegments + i] = sums[h][i];
          }
        }
      }
    }
  }
}

__device__ __forceinline__ float PairScore(const float* products, int32_t c) {
  return 0.5f * (products[c] + products[c + 1]);
}

// The block's value of all threads by a tree; every thread gets it.
template <typename Op>
__device__ __forceinline__ float BlockReduce(float x, const Op& op, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = op(x, __shfl_xor_sync(kAllLanes, x, step));
  __syncthreads();
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = shared[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) x = op(x, shared[w]);
  return x;
}

// Block (query head, tile).
__global__ void __launch_bounds__(kThreads) NormKernel(const Shape s) {
  __shared__ float shared[kWarps];
  BeginOverlapped();
  const int32_t tile_index = s.launch.first_tile + static_cast<int32_t>(blockIdx.y);
  const QueryTile tile = s.p.tiles[tile_index];
  if (!IsRanked(s, tile_index, tile)) return;
  const int32_t count = CompressedKeys(tile.first_position);
  const float* products = Products(s, blockIdx.y, blockIdx.x);
  float most = NegativeInfinity(), sum = 0.0f;
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < count; c += kThreads) {
    most = fmaxf(most, PairScore(products, c));
  }
  most = BlockReduce(
      most, [](float a, float b) { return fmaxf(a, b); }, shared);
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < count; c += kThreads) {
    sum += __expf(PairScore(products, c) - most);
  }
  sum = BlockReduce(
      sum, [](float a, float b) { return a + b; }, shared);
  if (threadIdx.x == 0) {
    float* norms = s.launch.norms + (static_cast<int64_t>(blockIdx.y) * s.heads + blockIdx.x) * 2;
    norms[0] = most;
    norms[1] = sum > 0.0f ? __fdiv_rn(1.0f, sum) : 0.0f;  // 0: the head is no numbers
  }
}

// Block (pages, list head, tile).
__global__ void __launch_bounds__(kThreads) PoolKernel(const Shape s) {
  BeginOverlapped();
  const int32_t tile_index = s.launch.first_tile + static_cast<int32_t>(blockIdx.z);
  const QueryTile tile = s.p.tiles[tile_index];
  const auto page = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x);
  if (!IsRanked(s, tile_index, tile) || page >= TailBegin(tile, s.p.recent_pages)) return;
  const int32_t count = CompressedKeys(tile.first_position);
  float weights[kPageSegments + 1] = {};
  const int32_t first = page * kPageSegments - 1;
  for (int32_t h = 0; h < s.heads_per_list; ++h) {
    const int32_t head = static_cast<int32_t>(blockIdx.y) * s.heads_per_list + h;
    const float* norms = s.launch.norms + (static_cast<int64_t>(blockIdx.z) * s.heads + head) * 2;
    if (norms[1] == 0.0f) continue;
    const float* products = Products(s, blockIdx.z, head);
#pragma unroll
    for (int k = 0; k <= kPageSegments; ++k) {
      const int32_t c = first + k;
      if (c >= 0 && c < count) weights[k] += __expf(PairScore(products, c) - norms[0]) * norms[1];
    }
  }
  float best = 0.0f;
#pragma unroll
  for (int k = 0; k <= kPageSegments; ++k) best = fmaxf(best, weights[k]);
  s.launch.scores[(static_cast<int64_t>(blockIdx.y) * s.launch.num_tiles + blockIdx.z) *
                      s.launch.max_pages +
                  page] = best;
}

template <typename T>
cudaError_t LaunchProducts(const Shape& s, dim3 blocks, int shared, cudaStream_t stream) {
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(ProductKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return error;
  }
  return LaunchOverlapped(ProductKernel<T>, blocks, kThreads, static_cast<size_t>(shared), stream,
                          s);
}

}  // namespace

cudaError_t LaunchCompressedScores(const SelectPagesParams& p, const SelectLaunch& launch,
                                   cudaStream_t stream) {
  const auto heads = static_cast<int32_t>(p.q.shape[1]);
  const int32_t list_heads = p.list_heads == ListHeads::kPerKvHead ? p.cache.num_heads : heads;
  const Shape s = {p, launch, heads, heads / p.cache.num_heads, heads / list_heads};
  const auto tiles = static_cast<unsigned>(launch.num_tiles);
  const auto runs = [&](int64_t of) {
    return static_cast<unsigned>((launch.max_pages + of - 1) / of);
  };
  const dim3 blocks(runs(kPagesOfBlock), static_cast<unsigned>(p.cache.num_heads), tiles);
  const int shared = s.group * p.cache.head_dim * 4;
  cudaError_t error = cudaErrorInvalidValue;
  switch (p.cache.dtype) {
    case KvDType::kF16:
    case KvDType::kFp8:
      error = LaunchProducts<__half>(s, blocks, shared, stream);
      break;
    case KvDType::kBF16:
      error = LaunchProducts<__nv_bfloat16>(s, blocks, shared, stream);
      break;
    case KvDType::kF32:
    case KvDType::kQ8:
      error = LaunchProducts<float>(s, blocks, shared, stream);
      break;
  }
  if (error != cudaSuccess) return error;
  error = LaunchOverlapped(NormKernel, dim3(static_cast<unsigned>(heads), tiles), kThreads, 0,
                           stream, s);
  if (error != cudaSuccess) return error;
  return LaunchOverlapped(PoolKernel,
                          dim3(runs(kThreads), static_cast<unsigned>(list_heads), tiles), kThreads,
                          0, stream, s);
}

}  // namespace longstride::kernels::cuda

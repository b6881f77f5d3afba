// Computes SelectPages (op_params.h) in three launches: the mean query of each tile (where tiles
// have more than one row), the score of every candidate page, and the best of them as an ascending
// list.
//
// Scores: products of the tensor cores where they can be (product_scores.cu), else a warp for each
// page, its lanes over the channels, all query heads of the list at once. Lists: a block for each;
// the threshold score comes from a radix selection of 8 bits at a time over the scores as ordered
// integers (2 bits where the threads hold all in registers), then what is above it and the first of
// what equals it are written in page order. The order of no reduction depends on the grid. Arch:
// any.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/selection/lists.cuh"
#include "kernels/cuda/selection/selection.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kScoreThreads = 256;
// Pages that a block scores: few where there are few blocks, since a warp scores one after the other.
constexpr int kMostPagesOfBlock = 64, kFewestPagesOfBlock = 16;
constexpr int64_t kManyBlocks = 1024;
constexpr int kHeadsAtOnce = 8;
constexpr int kFewKeys = 4, kManyKeys = 32;  // of a thread, where all threads' hold the candidates

struct SelectShape {
  SelectPagesParams p;
  SelectLaunch launch;
  int32_t list_heads, heads_per_list;
  int32_t group;  // query heads of a KV head
  int32_t pages_of_block;
  int32_t summary_rows;  // of a page and KV head
};

__global__ void PoolKernel(const SelectShape s) {
  BeginOverlapped();
  const QueryTile tile = s.p.tiles[s.launch.first_tile + blockIdx.x];
  const int32_t dim = s.p.cache.head_dim;
  const int64_t heads = s.p.q.shape[1];
  const float* q = static_cast<const float*>(s.p.q.data) + tile.row_begin * s.p.q.strides[0] +
                   blockIdx.y * s.p.q.strides[1];
  float* out = s.launch.pooled + (blockIdx.x * heads + blockIdx.y) * dim;
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < dim;
       d += static_cast<int32_t>(blockDim.x)) {
    float sum = 0.0f;
#pragma unroll 4
    for (int32_t r = 0; r < tile.num_rows; ++r) sum += q[r * s.p.q.strides[0] + d];
    out[d] = __fdiv_rn(sum, static_cast<float>(tile.num_rows));
  }
}

// Four channels of a summary row.
__device__ void Load4(const float* p, float (&v)[4]) {
  const float4 x = *reinterpret_cast<const float4*>(p);
  v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
}
__device__ void Load4(const __half* p, float (&v)[4]) {
  const uint2 x = *reinterpret_cast<const uint2*>(p);
  const float2 lo = __half22float2(*reinterpret_cast<const __half2*>(&x.x));
  const float2 hi = __half22float2(*reinterpret_cast<const __half2*>(&x.y));
  v[0] = lo.x, v[1] = lo.y, v[2] = hi.x, v[3] = hi.y;
}
__device__ void Load4(const __nv_bfloat16* p, float (&v)[4]) {
  const uint2 x = *reinterpret_cast<const uint2*>(p);
  v[0] = __uint_as_float(x.x << 16), v[1] = __uint_as_float(x.x & 0xffff0000u);
  v[2] = __uint_as_float(x.y << 16), v[3] = __uint_as_float(x.y & 0xffff0000u);
}
__device__ float Value(float x) { return x; }
__device__ float Value(__half x) { return __half2float(x); }
__device__ float Value(__nv_bfloat16 x) { return __bfloat162float(x); }

// Channels [d, d + 4) of a row of `dim`; those beyond it are zero.
template <typename T>
__device__ void LoadChannels(const T* row, int32_t d, int32_t dim, bool whole, float (&v)[4]) {
  if (whole) {
    Load4(row + d, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = d + i < dim ? Value(row[d + i]) : 0.0f;
}

// Scores of pages [first, end) of one list: block (pages, list head, tile).
template <typename T, PageScore kKind>
__global__ void __launch_bounds__(kScoreThreads) ScoreKernel(const SelectShape s) {
  LetDependentsStart();
  extern __shared__ float queries[];  // [heads_per_list, padded dim]
  const int32_t local = static_cast<int32_t>(blockIdx.z);
  const int32_t tile_index = s.launch.first_tile + local;
  const int32_t list_head = static_cast<int32_t>(blockIdx.y);
  const QueryTile tile = s.p.tiles[tile_index];
  const int32_t count = s.p.counts[tile_index], tail = TailBegin(tile, s.p.recent_pages);
  const int32_t first = static_cast<int32_t>(blockIdx.x) * s.pages_of_block;
  const bool scores_any = count > 0 && count < Candidates(tile) && first < tail;
  const int32_t dim = s.p.cache.head_dim, padded = (dim + 3) / 4 * 4;
  const int32_t heads = s.heads_per_list;
  const int64_t first_head = static_cast<int64_t>(list_head) * heads;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t* pages = s.p.page_table.pages + tile.sequence * s.p.page_table.stride;
  // Two pages at a time, so that a warp waits for memory half as often.
  constexpr int32_t kWarps = kScoreThreads / 32;
  const int32_t end = min(tail, first + s.pages_of_block);
  const auto page_id = [&](int32_t page) { return scores_any && page < end ? pages[page] : -1; };
  int32_t ids[2] = {page_id(first + warp), page_id(first + warp + kWarps)};
  WaitForPredecessors();
  if (!scores_any) return;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < heads * padded; i += kScoreThreads) {
    const int32_t h = i / padded, d = i % padded;
    float x = 0.0f;
    if (d < dim) {
      x = s.launch.one_row
              ? static_cast<const float*>(s.p.q.data)[tile.row_begin * s.p.q.strides[0] +
                                                      (first_head + h) * s.p.q.strides[1] + d]
              : s.launch.pooled[(local * s.p.q.shape[1] + first_head + h) * dim + d];
    }
    queries[i] = x;
  }
  __syncthreads();
  const int64_t kv_head = first_head / s.group;
  float* scores = s.launch.scores +
                  (static_cast<int64_t>(list_head) * s.launch.num_tiles + local) *
                      s.launch.max_pages;
  const bool aligned = dim % 4 == 0;
  for (int32_t page = first + warp; page < end; page += 2 * kWarps) {
    const T* rows[2];
    float best[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t id = ids[i];
      ids[i] = page_id(page + (2 + i) * kWarps);
      const bool exists = id >= 0 && id < s.p.cache.num_pages;
      best[i] = NegativeInfinity();
      rows[i] = !exists ? nullptr
                        : reinterpret_cast<const T*>(static_cast<const char*>(s.p.cache.summaries) +
                                                     id * s.p.cache.page_stride) +
                              kv_head * s.summary_rows * dim;
    }
    for (int32_t h0 = 0; h0 < heads; h0 += kHeadsAtOnce) {
      float acc[2][kHeadsAtOnce] = {};
      for (int32_t d = lane * 4; d < dim; d += 128) {
        float a[2][4] = {}, b[2][4] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (rows[i] == nullptr) continue;
          LoadChannels(rows[i] + (kKind == PageScore::kMean ? 2 * dim : 0), d, dim, aligned, a[i]);
          if constexpr (kKind == PageScore::kBound) {
            LoadChannels(rows[i] + dim, d, dim, aligned, b[i]);
          }
        }
#pragma unroll
        for (int h = 0; h < kHeadsAtOnce; ++h) {
          if (h0 + h >= heads) break;
          const float4 q = *reinterpret_cast<const float4*>(queries + (h0 + h) * padded + d);
          const float x[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
          for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              acc[i][h] += kKind == PageScore::kMean ? x[e] * a[i][e]
                                                     : fmaxf(x[e] * a[i][e], x[e] * b[i][e]);
            }
          }
        }
      }
#pragma unroll
      for (int h = 0; h < kHeadsAtOnce; ++h) {
        if (h0 + h >= heads) break;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float score = acc[i][h];
#pragma unroll
          for (int step = 16; step > 0; step /= 2) score += __shfl_xor_sync(kAllLanes, score, step);
          if (rows[i] != nullptr && score > best[i]) best[i] = score;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t at = page + i * kWarps;
      if (lane == 0 && at < end) scores[at] = best[i] + 0.0f;  // -0 becomes +0: they are equal scores
    }
  }
}

__global__ void __launch_bounds__(kListThreads) ListKernel(const SelectShape s) {
  LetDependentsStart();
  __shared__ ListShared shared;
  const int32_t local = static_cast<int32_t>(blockIdx.x);
  const int32_t tile_index = s.launch.first_tile + local;
  const int64_t list = static_cast<int64_t>(blockIdx.y) * s.p.num_tiles + tile_index;
  const QueryTile tile = s.p.tiles[tile_index];
  const int32_t count = s.p.counts[tile_index], pages = Candidates(tile);
  const int thread = static_cast<int>(threadIdx.x);
  int32_t* out = s.p.entries + s.p.list_begin[list];
  WaitForPredecessors();
  if (count == 0) return;
  if (count == pages) {
    for (int32_t i = thread; i < pages; i += kListThreads) out[i] = i;
    return;
  }
  const int32_t tail = TailBegin(tile, s.p.recent_pages);
  const int32_t sinks = min(s.p.sink_pages, tail);
  const int32_t wanted = count - sinks - (pages - tail);
  for (int32_t i = thread; i < sinks; i += kListThreads) out[i] = i;
  for (int32_t i = thread; i < pages - tail; i += kListThreads) {
    out[count - (pages - tail) + i] = tail + i;
  }
  if (wanted <= 0) return;
  const float* scores =
      s.launch.scores + (static_cast<int64_t>(blockIdx.y) * s.launch.num_tiles + local) *
                            s.launch.max_pages;
  const auto score_at = [&](int32_t page) { return KeyOf(scores[page]); };
  const auto take = static_cast<uint32_t>(wanted);
  if (tail - sinks <= kListThreads * kFewKeys) {
    WriteLargestOfFew<kFewKeys>(sinks, tail, score_at, take, out + sinks, shared);
    return;
  }
  if (tail - sinks <= kListThreads * kManyKeys) {
    WriteLargestOfFew<kManyKeys>(sinks, tail, score_at, take, out + sinks, shared);
    return;
  }
  const Largest largest = FindLargest<false>(sinks, tail, score_at, take, shared);
  WriteLargest(sinks, tail, score_at, largest, out + sinks, shared);
}

// From the pages' scores to their blocks' (SelectPagesParams::block_pages): a thread for each
// block.
__global__ void BlockScoreKernel(const SelectShape s) {
  BeginOverlapped();
  const int32_t local = static_cast<int32_t>(blockIdx.z);
  const int32_t tile_index = s.launch.first_tile + local;
  const QueryTile tile = s.p.tiles[tile_index];
  const int32_t count = s.p.counts[tile_index], tail = TailBegin(tile, s.p.recent_pages);
  if (count == 0 || count == Candidates(tile)) return;
  const int32_t width = s.p.block_pages;
  const int32_t begin = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x) * width;
  if (begin >= tail) return;
  float* scores =
      s.launch.scores +
      (static_cast<int64_t>(blockIdx.y) * s.launch.num_tiles + local) * s.launch.max_pages;
  const int32_t own = tile.first_position / kPageTokens / width * width;
  const int32_t end = begin >= own ? tail : begin + width;
  if (begin > own) return;
  float score = -NegativeInfinity();
  if (begin < own) {
    float sum = 0.0f;
    for (int32_t page = begin; page < end; ++page) sum += scores[page];
    score = __fdiv_rn(sum, static_cast<float>(width)) + 0.0f;
  }
  for (int32_t page = begin; page < end; ++page) scores[page] = score;
}

template <typename T>
cudaError_t LaunchScores(const SelectShape& s, dim3 blocks, int shared, cudaStream_t stream) {
  const auto kernel = s.p.score == PageScore::kMean ? ScoreKernel<T, PageScore::kMean>
                                                    : ScoreKernel<T, PageScore::kBound>;
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return error;
  }
  return LaunchOverlapped(kernel, blocks, kScoreThreads, static_cast<size_t>(shared), stream, s);
}

}  // namespace

cudaError_t LaunchSelectPages(const SelectPagesParams& p, const SelectLaunch& launch,
                              cudaStream_t stream) {
  if (launch.num_tiles == 0) return cudaSuccess;
  SelectShape s;
  s.p = p;
  s.launch = launch;
  s.summary_rows = SummaryRows(p.cache.segment_means);
  const auto heads = static_cast<int32_t>(p.q.shape[1]);
  s.group = heads / p.cache.num_heads;
  s.list_heads = p.list_heads == ListHeads::kPerKvHead ? p.cache.num_heads : heads;
  s.heads_per_list = heads / s.list_heads;
  const auto tiles = static_cast<unsigned>(launch.num_tiles);
  const auto lists = static_cast<unsigned>(s.list_heads);
  if (!launch.one_row && p.score != PageScore::kCompressedKeys) {
    const cudaError_t error = LaunchOverlapped(
        PoolKernel, dim3(tiles, static_cast<unsigned>(heads)), 128, 0, stream, s);
    if (error != cudaSuccess) return error;
  }
  const int64_t most = launch.max_pages / kMostPagesOfBlock * lists * tiles;
  s.pages_of_block = most < kManyBlocks ? kFewestPagesOfBlock : kMostPagesOfBlock;
  const dim3 blocks(
      static_cast<unsigned>((launch.max_pages + s.pages_of_block - 1) / s.pages_of_block), lists, tiles);
  const int shared = s.heads_per_list * ((p.cache.head_dim + 3) / 4 * 4) * 4;
  cudaError_t error = cudaSuccess;
  if (p.score == PageScore::kCompressedKeys) {
    error = LaunchCompressedScores(p, launch, stream);
    if (error != cudaSuccess) return error;
    return LaunchOverlapped(ListKernel, dim3(tiles, lists), kListThreads, 0, stream, s);
  }
  if (ScoresByProducts(p)) {
    error = LaunchProductScores(p, launch, stream);
  } else if (p.cache.dtype == KvDType::kF32 || p.cache.dtype == KvDType::kQ8) {
    error = LaunchScores<float>(s, blocks, shared, stream);
  } else if (p.cache.dtype == KvDType::kBF16) {
    error = LaunchScores<__nv_bfloat16>(s, blocks, shared, stream);
  } else {
    error = LaunchScores<__half>(s, blocks, shared, stream);
  }
  if (error != cudaSuccess) return error;
  if (p.block_pages > 1) {
    constexpr unsigned kThreads = 64;
    const auto width = static_cast<int64_t>(p.block_pages) * kThreads;
    const auto runs = static_cast<unsigned>((launch.max_pages + width - 1) / width);
    error = LaunchOverlapped(BlockScoreKernel, dim3(runs, lists, tiles), kThreads, 0, stream, s);
    if (error != cudaSuccess) return error;
  }
  return LaunchOverlapped(ListKernel, dim3(tiles, lists), kListThreads, 0, stream, s);
}

}  // namespace longstride::kernels::cuda

// Scores of kBound and kMean (SelectPagesParams) as products of the tensor cores: pages by query
// heads.
//
// With q+ = max(q, 0) and q- = min(q, 0), sum_d max(q_d min_d, q_d max_d) = q+ . max + q- . min: a
// product over twice the channels. Summaries of 16 bits are operands as they are stored. Queries
// are float32 and split into parts (query_parts.cuh). A warp takes 8 pages and up to 8 heads at a
// time. Arch: sm_80 and newer.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/selection/lists.cuh"
#include "kernels/cuda/selection/query_parts.cuh"
#include "kernels/cuda/selection/selection.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kPagesAtOnce = 8;
constexpr int kMostRuns = 4;  // of so many pages that a warp takes
constexpr int32_t kMostChannels = 256;
constexpr int64_t kManyBlocks = 1024;

struct ProductShape {
  SelectPagesParams p;
  SelectLaunch launch;
  int32_t heads_per_list;
  int32_t group;         // query heads of a KV head
  int32_t summary_rows;  // of a page and KV head
};

// Block (pages, list head, tile): kRuns * kWarps * kPagesAtOnce pages of one list.
template <typename T, PageScore kKind, int kRuns>
__global__ void __launch_bounds__(kThreads) ProductScoreKernel(const ProductShape s) {
  LetDependentsStart();
  extern __shared__ uint4 shared[];
  T* parts = reinterpret_cast<T*>(shared);
  __shared__ float factors[kHeadsAtOnce];
  const int32_t local = static_cast<int32_t>(blockIdx.z);
  const int32_t tile_index = s.launch.first_tile + local;
  const QueryTile tile = s.p.tiles[tile_index];
  const int32_t count = s.p.counts[tile_index], tail = TailBegin(tile, s.p.recent_pages);
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t first = static_cast<int32_t>(blockIdx.x) * kRuns * kWarps * kPagesAtOnce;
  const bool scores_any = count > 0 && count < Candidates(tile) && first < tail;
  const int32_t dim = s.p.cache.head_dim, stride = RowStride(dim);
  const int64_t first_head = static_cast<int64_t>(blockIdx.y) * s.heads_per_list;
  const int64_t kv_head = first_head / s.group;
  constexpr int kRead = kRowsRead<kKind>;
  constexpr int64_t kFirstRow = kKind == PageScore::kMean ? 2 : 0;
  // Of the lane's page of each run; null: there is none.
  const T* rows[kRuns];
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    const int32_t page = first + (run * kWarps + warp) * kPagesAtOnce + lane / 4;
    const int32_t id = scores_any && page < tail
                           ? s.p.page_table.pages[tile.sequence * s.p.page_table.stride + page]
                           : -1;
    rows[run] = id >= 0 && id < s.p.cache.num_pages
                    ? reinterpret_cast<const T*>(static_cast<const char*>(s.p.cache.summaries) +
                                                 id * s.p.cache.page_stride) +
                          (kv_head * s.summary_rows + kFirstRow) * dim
                    : nullptr;
    // On their way while what writes the newest page's still runs.
    constexpr int32_t kLine = 128 / sizeof(T);
    for (int32_t at = lane % 4 * kLine; rows[run] != nullptr && at < kRead * dim; at += 4 * kLine) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(rows[run] + at));
    }
  }
  WaitForPredecessors();
  if (!scores_any) return;
  float best[kRuns][2];  // of pages 2 * (lane % 4) and the next
#pragma unroll
  for (int run = 0; run < kRuns; ++run) best[run][0] = best[run][1] = NegativeInfinity();
  for (int32_t h0 = 0; h0 < s.heads_per_list; h0 += kHeadsAtOnce) {
    if (h0 > 0) __syncthreads();
    for (int32_t row = warp; row < kHeadsAtOnce; row += kWarps) {
      const int64_t head = first_head + h0 + row;
      const float* q = nullptr;
      if (h0 + row < s.heads_per_list) {
        q = s.launch.one_row ? static_cast<const float*>(s.p.q.data) +
                                   tile.row_begin * s.p.q.strides[0] + head * s.p.q.strides[1]
                             : s.launch.pooled + (local * s.p.q.shape[1] + head) * dim;
      }
      const float factor = SplitQueries<T, kKind>(q, dim, row, lane, parts);
      if (lane == 0) factors[row] = factor;
    }
    __syncthreads();
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      float acc[kRead][4] = {};
      constexpr int32_t kChunks = 4;  // of 32 channels, on their way together
      for (int32_t d0 = 0; d0 < dim; d0 += 32 * kChunks) {
        uint4 pages[kChunks][kRead];
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          const int32_t d = d0 + 32 * c + lane % 4 * 8;
#pragma unroll
          for (int r = 0; r < kRead; ++r) {
            pages[c][r] = rows[run] != nullptr && d < dim
                              ? *reinterpret_cast<const uint4*>(rows[run] + r * dim + d)
                              : uint4{};
          }
        }
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          const int32_t d = d0 + 32 * c;
          if (d >= dim) break;
#pragma unroll
          for (int r = 0; r < kRead; ++r) {
            Multiply<T>(
                parts + (r * kParts<T> * kHeadsAtOnce + lane / 4) * stride + d + lane % 4 * 8,
                stride, pages[c][r], acc[r]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float score = acc[0][i] + acc[0][2 + i];
        if constexpr (kRead == 2) score += acc[1][i] + acc[1][2 + i];
        score *= factors[lane / 4];
        if (h0 + lane / 4 < s.heads_per_list && score > best[run][i]) best[run][i] = score;
      }
    }
  }
  float* scores =
      s.launch.scores +
      (static_cast<int64_t>(blockIdx.y) * s.launch.num_tiles + local) * s.launch.max_pages;
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t column = lane % 4 * 2 + i;
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        best[run][i] = fmaxf(best[run][i], __shfl_xor_sync(kAllLanes, best[run][i], step));
      }
      const bool exists = __shfl_sync(kAllLanes, rows[run] != nullptr, column * 4) != 0;
      const int32_t page = first + (run * kWarps + warp) * kPagesAtOnce + column;
      // -0 becomes +0: they are equal scores.
      if (lane < 4 && page < tail) scores[page] = exists ? best[run][i] + 0.0f : NegativeInfinity();
    }
  }
}

template <typename T, PageScore kKind>
cudaError_t Launch(const ProductShape& s, int64_t lists, cudaStream_t stream) {
  const int64_t pages = kWarps * kPagesAtOnce;
  const bool many =
      s.launch.max_pages / (kMostRuns * pages) * lists * s.launch.num_tiles >= kManyBlocks;
  const int64_t of_block = many ? kMostRuns * pages : pages;
  const dim3 blocks(static_cast<unsigned>((s.launch.max_pages + of_block - 1) / of_block),
                    static_cast<unsigned>(lists), static_cast<unsigned>(s.launch.num_tiles));
  const size_t shared = sizeof(T) * kRowsRead<kKind> * kParts<T> * kHeadsAtOnce *
                        static_cast<size_t>(RowStride(s.p.cache.head_dim));
  return many ? LaunchOverlapped(ProductScoreKernel<T, kKind, kMostRuns>, blocks, kThreads, shared,
                                 stream, s)
              : LaunchOverlapped(ProductScoreKernel<T, kKind, 1>, blocks, kThreads, shared, stream,
                                 s);
}

}  // namespace

bool ScoresByProducts(const SelectPagesParams& p) {
  const KvDType dtype = p.cache.dtype;
  const bool aligned =
      (reinterpret_cast<uintptr_t>(p.cache.summaries) | p.cache.page_stride) % 16 == 0;
  return (p.score == PageScore::kBound || p.score == PageScore::kMean) &&
         (dtype == KvDType::kF16 || dtype == KvDType::kBF16 || dtype == KvDType::kFp8) && aligned &&
         p.cache.head_dim % 32 == 0 && p.cache.head_dim <= kMostChannels;
}

cudaError_t LaunchProductScores(const SelectPagesParams& p, const SelectLaunch& launch,
                                cudaStream_t stream) {
  ProductShape s;
  s.p = p;
  s.launch = launch;
  s.summary_rows = SummaryRows(p.cache.segment_means);
  const auto heads = static_cast<int32_t>(p.q.shape[1]);
  s.group = heads / p.cache.num_heads;
  const int32_t lists = p.list_heads == ListHeads::kPerKvHead ? p.cache.num_heads : heads;
  s.heads_per_list = heads / lists;
  const bool mean = p.score == PageScore::kMean;
  if (p.cache.dtype == KvDType::kBF16) {
    return mean ? Launch<__nv_bfloat16, PageScore::kMean>(s, lists, stream)
                : Launch<__nv_bfloat16, PageScore::kBound>(s, lists, stream);
  }
  return mean ? Launch<__half, PageScore::kMean>(s, lists, stream)
              : Launch<__half, PageScore::kBound>(s, lists, stream);
}

}  // namespace longstride::kernels::cuda

// Computes SummarizePages (op_params.h): minimum, maximum and mean of the keys of whole or begun
// pages, and the means of their segments where the cache asks for them. A block for each head of
// each page, a thread for each channel; slots in ascending order, so that the sum is the
// reference's to the bit. Bound: memory (64 rows a page). Arch: any.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/selection/key_values.cuh"
#include "kernels/cuda/selection/selection.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kAtOnce = 63;  // keys: with the first one, a page
static_assert(kAtOnce + 1 == kPageTokens);

__device__ void Put(__half* row, int32_t d, float value) { row[d] = __float2half_rn(value); }
__device__ void Put(__nv_bfloat16* row, int32_t d, float value) {
  row[d] = __float2bfloat16_rn(value);
}
__device__ void Put(float* row, int32_t d, float value) { row[d] = value; }

template <typename Key, typename Out>
__global__ void __launch_bounds__(kThreads)
    SummarizeKernel(const PageSummaryParams p, int32_t summary_rows) {
  LetDependentsStart();
  const int32_t page = p.page_ids[blockIdx.x], count = p.counts[blockIdx.x];
  const int32_t dim = p.cache.head_dim;
  WaitForPredecessors();
  if (page < 0) return;
  const int64_t at = page * p.cache.page_stride;
  const auto* keys = reinterpret_cast<const Key*>(static_cast<const char*>(p.cache.k) + at +
                                                  blockIdx.y * p.cache.head_stride);
  auto* out = reinterpret_cast<Out*>(static_cast<char*>(p.cache.summaries) + at) +
              static_cast<int64_t>(blockIdx.y) * summary_rows * dim;
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < dim; d += kThreads) {
    float min = KeyValue(keys, 0, dim, d);
    float max = min, sum = min;
    float segments[kPageSegments] = {0.0f + min};
    for (int32_t first = 1; first < count; first += kAtOnce) {
      float batch[kAtOnce];  // on their way together
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int32_t slot = first + i < count ? first + i : count - 1;
        batch[i] = KeyValue(keys, slot, dim, d);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i >= count) continue;
        min = batch[i] < min ? batch[i] : min;
        max = batch[i] > max ? batch[i] : max;
        sum = __fadd_rn(sum, batch[i]);
        // `first` is 1: a page has no more keys than one batch takes.
        float& segment = segments[(1 + i) / kSegmentTokens];
        segment = __fadd_rn(segment, batch[i]);
      }
    }
    Put(out, d, min);
    Put(out + dim, d, max);
    Put(out + 2 * dim, d, __fdiv_rn(sum, static_cast<float>(count)));
    if (!p.cache.segment_means) continue;
#pragma unroll
    for (int32_t s = 0; s < kPageSegments; ++s) {
      const int32_t keys_of_it = ::max(1, ::min(kSegmentTokens, count - s * kSegmentTokens));
      Put(out + (kSummaryRows + s) * dim, d,
          __fdiv_rn(segments[s], static_cast<float>(keys_of_it)));
    }
  }
}

}  // namespace

cudaError_t LaunchSummarizePages(const PageSummaryParams& p, cudaStream_t stream) {
  if (p.num_pages == 0) return cudaSuccess;
  const dim3 blocks(static_cast<unsigned>(p.num_pages), static_cast<unsigned>(p.cache.num_heads));
  const int32_t rows = SummaryRows(p.cache.segment_means);
  switch (p.cache.dtype) {
    case KvDType::kF32:
      return LaunchOverlapped(SummarizeKernel<float, float>, blocks, kThreads, 0, stream, p, rows);
    case KvDType::kF16:
      return LaunchOverlapped(SummarizeKernel<__half, __half>, blocks, kThreads, 0, stream, p,
                              rows);
    case KvDType::kBF16:
      return LaunchOverlapped(SummarizeKernel<__nv_bfloat16, __nv_bfloat16>, blocks, kThreads, 0,
                              stream, p, rows);
    case KvDType::kFp8:
      return LaunchOverlapped(SummarizeKernel<uint8_t, __half>, blocks, kThreads, 0, stream, p,
                              rows);
    case KvDType::kQ8:
      return LaunchOverlapped(SummarizeKernel<int8_t, float>, blocks, kThreads, 0, stream, p, rows);
  }
  return cudaErrorInvalidValue;
}

}  // namespace longstride::kernels::cuda

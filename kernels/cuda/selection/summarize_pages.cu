// Computes SummarizePages (op_params.h): minimum, maximum and mean of the keys of whole or begun
// pages, and the means of their segments where the cache asks for them; and KvWrite with it where a
// page gets one key. A block for each head of each page, a thread for each channel; slots in
// ascending order, so that the sum is the reference's to the bit. Bound: memory (64 rows a page).
// Arch: any.
#include <type_traits>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/selection/key_values.cuh"
#include "kernels/cuda/selection/selection.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kAtOnce = 63;  // keys: with the first one, a page
static_assert(kAtOnce + 1 == kPageTokens);

__device__ void Put(__half* to, float value) { *to = __float2half_rn(value); }
__device__ void Put(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }
__device__ void Put(float* to, float value) { *to = value; }
__device__ void Put(uint8_t* to, float value) { *to = ToE4m3(value); }

// One channel of a page's summary, from its keys' values in ascending order of slots.
struct ChannelSummary {
  float min, max, sum;
  float segments[kPageSegments] = {};

  __device__ explicit ChannelSummary(float first) : min(first), max(first), sum(first) {
    segments[0] = 0.0f + first;
  }
  __device__ void Add(int32_t slot, float value) {
    min = value < min ? value : min;
    max = value > max ? value : max;
    sum = __fadd_rn(sum, value);
#pragma unroll
    for (int32_t s = 0; s < kPageSegments; ++s) {  // by constants, so that they stay in registers
      if (slot / kSegmentTokens == s) segments[s] = __fadd_rn(segments[s], value);
    }
  }
  // Slots [1, end) of a page.
  template <typename Key>
  __device__ void AddStored(const Key* keys, int32_t end, int32_t dim, int32_t d) {
    float batch[kAtOnce];  // on their way together
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      batch[i] = KeyValue(keys, 1 + i < end ? 1 + i : end - 1, dim, d);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (1 + i < end) Add(1 + i, batch[i]);
    }
  }
  // To channel d of a summary's rows.
  template <typename Out>
  __device__ void Write(int32_t count, bool segment_means, int32_t dim, Out* out) const {
    Put(out, min);
    Put(out + dim, max);
    Put(out + 2 * dim, __fdiv_rn(sum, static_cast<float>(count)));
    if (!segment_means) return;
#pragma unroll
    for (int32_t s = 0; s < kPageSegments; ++s) {
      const int32_t keys = ::max(1, ::min(kSegmentTokens, count - s * kSegmentTokens));
      Put(out + (kSummaryRows + s) * dim, __fdiv_rn(segments[s], static_cast<float>(keys)));
    }
  }
};

template <typename Out>
__device__ Out* SummaryOf(const PagedKv& cache, int32_t page, int32_t head) {
  return reinterpret_cast<Out*>(static_cast<char*>(cache.summaries) + page * cache.page_stride) +
         static_cast<int64_t>(head) * (kSummaryRows + (cache.segment_means ? kPageSegments : 0)) *
             cache.head_dim;
}

template <typename T>
__device__ T* PageOf(const PagedKv& cache, void* side, int32_t page, int32_t head) {
  return reinterpret_cast<T*>(static_cast<char*>(side) + page * cache.page_stride +
                              head * cache.head_stride);
}

template <typename Key, typename Out>
__global__ void __launch_bounds__(kThreads) SummarizeKernel(const PageSummaryParams p) {
  LetDependentsStart();
  const int32_t page = p.page_ids[blockIdx.x], count = p.counts[blockIdx.x];
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int32_t dim = p.cache.head_dim;
  WaitForPredecessors();
  if (page < 0) return;
  const auto* keys = PageOf<Key>(p.cache, p.cache.k, page, head);
  auto* out = SummaryOf<Out>(p.cache, page, head);
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < dim; d += kThreads) {
    ChannelSummary summary(KeyValue(keys, 0, dim, d));
    summary.AddStored(keys, count, dim, d);
    summary.Write(count, p.cache.segment_means, dim, out + d);
  }
}

// What is written to a page has been written before this step, but for the row's own key: a step's
// first kernel waits for all of the step before, so older keys are read ahead of the wait.
template <typename Key, typename Out>
__global__ void __launch_bounds__(kThreads) AddKeysKernel(const KvWriteParams p) {
  LetDependentsStart();
  const auto row = static_cast<int64_t>(blockIdx.x);
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int32_t page = p.page_ids[row], slot = p.slots[row], dim = p.cache.head_dim;
  if (page < 0) return WaitForPredecessors();
  auto* keys = PageOf<Key>(p.cache, p.cache.k, page, head);
  auto* values = PageOf<Key>(p.cache, p.cache.v, page, head);
  auto* out = SummaryOf<Out>(p.cache, page, head);
  const float* k =
      static_cast<const float*>(p.k.data) + row * p.k.strides[0] + head * p.k.strides[1];
  const float* v =
      static_cast<const float*>(p.v.data) + row * p.v.strides[0] + head * p.v.strides[1];
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < dim; d += kThreads) {
    ChannelSummary summary(slot > 0 ? KeyValue(keys, 0, dim, d) : 0.0f);
    if (slot > 1) summary.AddStored(keys, slot, dim, d);
    WaitForPredecessors();
    float key = k[d], value = v[d];
    if constexpr (std::is_same_v<Key, uint8_t>) {
      key = __fdiv_rn(key, p.cache.k_scale);
      value = __fdiv_rn(value, p.cache.v_scale);
    }
    Key stored;
    Put(&stored, key);
    keys[int64_t{slot} * dim + d] = stored;
    Put(&values[int64_t{slot} * dim + d], value);
    const float as_stored = KeyValue(&stored, 0, 0, 0);
    if (slot == 0) summary = ChannelSummary(as_stored);
    if (slot > 0) summary.Add(slot, as_stored);
    summary.Write(slot + 1, p.cache.segment_means, dim, out + d);
  }
  WaitForPredecessors();  // threads without a channel, too
}

}  // namespace

cudaError_t LaunchSummarizePages(const PageSummaryParams& p, cudaStream_t stream) {
  if (p.num_pages == 0) return cudaSuccess;
  const dim3 blocks(static_cast<unsigned>(p.num_pages), static_cast<unsigned>(p.cache.num_heads));
  const auto launch = [&](auto kernel) {
    return LaunchOverlapped(kernel, blocks, kThreads, 0, stream, p);
  };
  switch (p.cache.dtype) {
    case KvDType::kF32:
      return launch(SummarizeKernel<float, float>);
    case KvDType::kF16:
      return launch(SummarizeKernel<__half, __half>);
    case KvDType::kBF16:
      return launch(SummarizeKernel<__nv_bfloat16, __nv_bfloat16>);
    case KvDType::kFp8:
      return launch(SummarizeKernel<uint8_t, __half>);
    case KvDType::kQ8:
      return launch(SummarizeKernel<int8_t, float>);
  }
  return cudaErrorInvalidValue;
}

cudaError_t LaunchAddKeys(const KvWriteParams& p, cudaStream_t stream) {
  if (p.k.shape[0] == 0) return cudaSuccess;
  const dim3 blocks(static_cast<unsigned>(p.k.shape[0]), static_cast<unsigned>(p.cache.num_heads));
  const auto launch = [&](auto kernel) {
    return LaunchOverlapped(kernel, blocks, kThreads, 0, stream, p);
  };
  switch (p.cache.dtype) {
    case KvDType::kF32:
      return launch(AddKeysKernel<float, float>);
    case KvDType::kF16:
      return launch(AddKeysKernel<__half, __half>);
    case KvDType::kBF16:
      return launch(AddKeysKernel<__nv_bfloat16, __nv_bfloat16>);
    case KvDType::kFp8:
      return launch(AddKeysKernel<uint8_t, __half>);
    case KvDType::kQ8:
      break;
  }
  return cudaErrorNotSupported;
}

}  // namespace longstride::kernels::cuda

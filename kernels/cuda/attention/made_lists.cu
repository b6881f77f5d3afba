// Trims lists to what was made: a thread for each, by bisection; sums of integers, in any order.
#include "kernels/cuda/attention/made_lists.h"

#include "kernels/cuda/device/launch.cuh"

namespace longstride::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) TrimKernel(const KvSelection s, int32_t heads_per_list,
                                                       int32_t* list_count, DeviceCounters* counters) {
  BeginOverlapped();
  const int64_t list = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  unsigned long long visible = 0, read = 0;
  if (list < static_cast<int64_t>(s.num_list_heads) * s.num_tiles) {
    const int32_t* entries = s.entries + s.list_begin[list];
    int32_t count = 0, end = s.list_count[list];  // entries before count exist, from end on none does
    while (count < end) {
      const int32_t middle = count + (end - count) / 2;
      if (entries[middle] == kNoEntry) {
        end = middle;
      } else {
        count = middle + 1;
      }
    }
    list_count[list] = count;
    const QueryTile tile = s.tiles[list % s.num_tiles];
    if (counters != nullptr && count > 0) {
      const int32_t last = tile.first_position + tile.num_rows - 1;
      read = (static_cast<unsigned long long>(count - 1) * kPageTokens + last % kPageTokens + 1) *
             tile.num_rows;
      for (int32_t i = tile.first_position; i <= last; ++i) {
        const int32_t ahead = last / kPageTokens - i / kPageTokens;
        visible += static_cast<unsigned long long>(count - ahead - 1) * kPageTokens +
                   i % kPageTokens + 1;
      }
    }
  }
  if (counters == nullptr) return;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    visible += __shfl_xor_sync(0xffffffffu, visible, step);
    read += __shfl_xor_sync(0xffffffffu, read, step);
  }
  if (threadIdx.x % 32 != 0 || read == 0) return;
  atomicAdd(&counters->keys_visible, visible * heads_per_list);
  atomicAdd(&counters->keys_read, read * heads_per_list);
}

}  // namespace

cudaError_t LaunchTrimLists(const KvSelection& s, int32_t query_heads, int32_t* list_count,
                            DeviceCounters* counters, cudaStream_t stream) {
  const int64_t lists = static_cast<int64_t>(s.num_list_heads) * s.num_tiles;
  if (lists == 0) return cudaSuccess;
  return LaunchOverlapped(TrimKernel, static_cast<unsigned>((lists + kThreads - 1) / kThreads), kThreads,
                          0, stream, s, query_heads / s.num_list_heads, list_count, counters);
}

}  // namespace longstride::kernels::cuda

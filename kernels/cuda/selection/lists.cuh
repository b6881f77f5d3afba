// What the kernels that write lists of pages share: a tile's candidates, sums over a thread block, and the
// selection of the largest of many integers by radix, 8 bits at a time. Sums are of integers: the order of
// no reduction matters.
#pragma once

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

inline constexpr int kListThreads = 512;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ __forceinline__ int32_t Candidates(const QueryTile& t) {
  return (t.first_position + t.num_rows - 1) / kPageTokens + 1;
}
// Pages from here on are taken anyway.
__device__ __forceinline__ int32_t TailBegin(const QueryTile& t, int32_t recent) {
  const int32_t pages = Candidates(t);
  const int32_t own = pages - t.first_position / kPageTokens;
  return max(0, pages - max(own, recent));
}

// Larger scores are larger integers.
__device__ __forceinline__ uint32_t KeyOf(float score) {
  const uint32_t bits = __float_as_uint(score);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// Shared memory of the functions below, which all kListThreads threads call together.
struct ListShared {
  uint32_t weights[256], counts[256];  // of one digit
  uint32_t warps[kListThreads / 32];
  uint32_t digit, above, above_count;
};

// Exclusive sum of `mine` over the block; *total is the sum of all.
__device__ __forceinline__ uint32_t BlockScan(uint32_t mine, ListShared& s, uint32_t* total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  uint32_t sum = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // who still reads the sums of the last call
  if (lane == 31) s.warps[warp] = sum;
  __syncthreads();
  uint32_t before = 0, all = 0;
  for (int w = 0; w < kListThreads / 32; ++w) {
    if (w < warp) before += s.warps[w];
    all += s.warps[w];
  }
  *total = all;
  return before + sum - mine;
}

// The largest keys: all above `key`, which are `above`, and the first `equals` that equal it.
struct Largest {
  uint32_t key, equals, above;
};

// The fewest of the largest keys [begin, end) whose weights, 1 each or the keys themselves, sum to `wanted`
// (above 0) or more; all if all do not. Weights sum to less than 2^32.
template <bool kWeighted, typename KeyAt>
__device__ __forceinline__ Largest FindLargest(int32_t begin, int32_t end, const KeyAt& key_at,
                                               uint32_t wanted, ListShared& s) {
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t prefix = 0, above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = thread; i < 256; i += kListThreads) s.weights[i] = s.counts[i] = 0;
    __syncthreads();
    for (int32_t base = begin; base < end; base += kListThreads) {
      const bool inside = base + thread < end;
      const uint32_t key = inside ? key_at(base + thread) : 0;
      const bool counts = inside && (shift == 24 || key >> (shift + 8) == prefix);
      const uint32_t warp = __ballot_sync(kAllLanes, counts);
      if (!counts) continue;
      const uint32_t digit = (key >> shift) & 255u;
      if (!kWeighted && shift < 24) {
        atomicAdd(&s.weights[digit], 1u);
        continue;
      }
      // Most keys have the same first digits: a warp adds its equals at once.
      const uint32_t equals = __match_any_sync(warp, digit);
      const bool leads = thread % 32 == __ffs(static_cast<int>(equals)) - 1;
      if (!kWeighted) {
        if (leads) atomicAdd(&s.weights[digit], static_cast<uint32_t>(__popc(equals)));
        continue;
      }
      if (leads) atomicAdd(&s.counts[digit], static_cast<uint32_t>(__popc(equals)));
      if (equals == warp) {
        const uint32_t sum = __reduce_add_sync(warp, key);
        if (leads) atomicAdd(&s.weights[digit], sum);
      } else {
        atomicAdd(&s.weights[digit], key);
      }
    }
    __syncthreads();
    // Thread t < 256 looks at digit 255 - t: keys above it come first.
    const uint32_t mine = thread < 256 ? s.weights[255 - thread] : 0;
    const uint32_t count = kWeighted && thread < 256 ? s.counts[255 - thread] : mine;
    uint32_t total, ignored;
    const uint32_t before = BlockScan(mine, s, &total);
    const uint32_t count_before = kWeighted ? BlockScan(count, s, &ignored) : before;
    if (kWeighted && shift == 24 && total < wanted) return {0, kAllLanes, 0};
    if (before < wanted && wanted <= before + mine) {
      s.digit = static_cast<uint32_t>(255 - thread);
      s.above = before;
      s.above_count = count_before;
    }
    __syncthreads();
    prefix = prefix << 8 | s.digit;
    wanted -= s.above;
    above += s.above_count;
    __syncthreads();
  }
  if (!kWeighted) return {prefix, wanted, above};
  return {prefix, prefix == 0 ? kAllLanes : (wanted + prefix - 1) / prefix, above};
}

// Writes those of the pages [begin, end) that take(page) holds of to out, ascending; how many they are.
template <typename Take>
__device__ __forceinline__ int32_t WriteTaken(int32_t begin, int32_t end, const Take& take,
                                              int32_t* out, ListShared& s) {
  int32_t written = 0;
  for (int32_t base = begin; base < end; base += kListThreads) {
    const int32_t page = base + static_cast<int32_t>(threadIdx.x);
    const bool taken = page < end && take(page);
    uint32_t total;
    const uint32_t at = BlockScan(taken ? 1 : 0, s, &total);
    if (taken) out[written + static_cast<int32_t>(at)] = page;
    written += static_cast<int32_t>(total);
  }
  return written;
}

// The same of the largest keys: of equals the lower pages.
template <typename KeyAt>
__device__ __forceinline__ int32_t WriteLargest(int32_t begin, int32_t end, const KeyAt& key_at,
                                                const Largest& largest, int32_t* out,
                                                ListShared& s) {
  int32_t written = 0;
  uint32_t equals = 0;
  for (int32_t base = begin; base < end; base += kListThreads) {
    const int32_t page = base + static_cast<int32_t>(threadIdx.x);
    const uint32_t key = page < end ? key_at(page) : 0;
    const bool equal = page < end && key == largest.key;
    uint32_t total;
    const uint32_t rank = equals + BlockScan(equal ? 1 : 0, s, &total);
    equals += total;
    const bool taken = page < end && (key > largest.key || (equal && rank < largest.equals));
    const uint32_t at = BlockScan(taken ? 1 : 0, s, &total);
    if (taken) out[written + static_cast<int32_t>(at)] = page;
    written += static_cast<int32_t>(total);
  }
  return written;
}

// The `wanted` (1 to end - begin) largest of at most kOwn keys a thread, ties going to the lower
// pages, ascending to out; keys are above 0, end - begin less than 2^16. Threads hold runs of
// pages: two bits of the threshold are found with one barrier, beginning where the keys differ and
// ending where exactly `wanted` reach it.
template <int kOwn, typename KeyAt>
__device__ __forceinline__ void WriteLargestOfFew(int32_t begin, int32_t end, const KeyAt& key_at,
                                                  uint32_t wanted, int32_t* out, ListShared& s) {
  constexpr int kWarps = kListThreads / 32;
  __shared__ uint32_t counts[2][kWarps][3], extremes[kWarps][2];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int32_t run = (end - begin + kListThreads - 1) / kListThreads;
  const int32_t first = begin + thread * run;
  uint32_t keys[kOwn];  // 0 where there is none: scores' keys are larger
#pragma unroll
  for (int i = 0; i < kOwn; ++i) keys[i] = i < run && first + i < end ? key_at(first + i) : 0;
  uint32_t most = 0, least = kAllLanes;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    most = max(most, keys[i]);
    if (keys[i] != 0) least = min(least, keys[i]);
  }
  most = __reduce_max_sync(kAllLanes, most);
  least = __reduce_min_sync(kAllLanes, least);
  if (lane == 0) extremes[warp][0] = most, extremes[warp][1] = least;
  __syncthreads();
  most = __reduce_max_sync(kAllLanes, lane < kWarps ? extremes[lane][0] : 0);
  least = __reduce_min_sync(kAllLanes, lane < kWarps ? extremes[lane][1] : kAllLanes);
  // The largest threshold that `wanted` keys reach: its bits above `shift` are those of all keys.
  int shift = most == least ? 0 : (31 - __clz(static_cast<int>(most ^ least))) / 2 * 2;
  uint32_t threshold = shift == 30 ? 0 : most >> (shift + 2) << (shift + 2);
  for (int turn = 0; shift >= 0; shift -= 2, turn ^= 1) {
    uint32_t reach[3];  // keys that reach the threshold with these two bits 1, 2 or 3
#pragma unroll
    for (int b = 0; b < 3; ++b) {
      const uint32_t candidate = threshold | static_cast<uint32_t>(b + 1) << shift;
      uint32_t mine = 0;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) mine += keys[i] >= candidate ? 1 : 0;
      reach[b] = __reduce_add_sync(kAllLanes, mine);
    }
    if (lane < 3) counts[turn][warp][lane] = lane == 0 ? reach[0] : lane == 1 ? reach[1] : reach[2];
    __syncthreads();
    uint32_t total[3];
#pragma unroll
    for (int b = 0; b < 3; ++b) {
      total[b] = __reduce_add_sync(kAllLanes, lane < kWarps ? counts[turn][lane][b] : 0);
    }
    const uint32_t bits = total[2] >= wanted ? 3 : total[1] >= wanted ? 2 : total[0] >= wanted ? 1 : 0;
    threshold |= bits << shift;
    if (bits != 0 && total[bits - 1] == wanted) break;  // no smaller bit parts them
  }
  uint32_t above = 0, equal = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    above += keys[i] > threshold ? 1 : 0;
    equal += keys[i] == threshold && threshold != 0 ? 1 : 0;
  }
  uint32_t all;
  const uint32_t before = BlockScan(above << 16 | equal, s, &all);
  const uint32_t above_before = before >> 16, equal_before = before & 0xffffu;
  const uint32_t equals = wanted - (all >> 16);
  uint32_t rank = equal_before, at = above_before + min(equal_before, equals);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const bool equal_key = keys[i] == threshold && threshold != 0;
    const bool taken = keys[i] > threshold || (equal_key && rank < equals);
    if (equal_key) ++rank;
    if (taken) out[at++] = first + i;
  }
}

}  // namespace longstride::kernels::cuda

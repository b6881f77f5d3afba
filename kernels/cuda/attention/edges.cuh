// Edge rules on the device: which pages need a mask, and what a row sees inside one.
#pragma once

#include "kernels/kv_selection.h"
#include "kernels/paged_kv.h"

namespace longstride::kernels::cuda {

// A page whose keys do not exist: beyond every length.
inline constexpr int32_t kAbsent = 0x40000000;

// The query positions of a work unit and the keys of their sequence.
struct QuerySpan {
  int32_t first_position;
  int32_t last_position;
  int32_t kv_len;
};

// True if every position of the span sees every key of the page.
__device__ __forceinline__ bool PageIsFull(const EdgeRule& e, const QuerySpan& q, int32_t base) {
  const int32_t last = base + kPageTokens - 1;
  if (last >= q.kv_len) return false;
  if (e.causal && last > q.first_position) return false;
  if (e.window != 0 && base <= q.last_position - e.window && last >= e.sink_tokens) return false;
  if (e.chunk != 0) {
    const int32_t c = base / e.chunk;
    if (last / e.chunk != c || q.first_position / e.chunk != c || q.last_position / e.chunk != c) {
      return false;
    }
  }
  return true;
}

// True if no position of the span sees any key of the page, because all of them come later.
__device__ __forceinline__ bool PageIsAhead(const EdgeRule& e, const QuerySpan& q, int64_t base) {
  return base >= q.kv_len || (e.causal && base > q.last_position);
}

// Segments that a list of so many pages is summed in. A list that begins where a window does
// depends on the rows that happen to be computed together, and so would its segments: it is one.
__device__ __forceinline__ int32_t SegmentsOf(const EdgeRule& e, int32_t list_pages,
                                              int32_t segment_pages, int32_t most) {
  if (e.window != 0 || e.chunk != 0) return 1;
  return min(max(1, (list_pages + segment_pages - 1) / segment_pages), most);
}

// The keys that the query at `position` sees: [low, high] without those below window_low, sinks
// excepted.
struct VisibleRange {
  int32_t low, high, window_low, sink_tokens;
  __device__ __forceinline__ VisibleRange(const EdgeRule& e, int32_t position, int32_t kv_len)
      : low(0),
        high(e.causal ? min(position, kv_len - 1) : kv_len - 1),
        window_low(e.window != 0 ? position - e.window + 1 : 0),
        sink_tokens(e.sink_tokens) {
    if (e.chunk != 0) {
      low = position / e.chunk * e.chunk;
      high = static_cast<int32_t>(
          min(static_cast<long long>(high), static_cast<long long>(low) + e.chunk - 1));
    }
  }
  __device__ __forceinline__ bool Sees(int32_t j) const {
    return j <= high && j >= low && (j >= window_low || j < sink_tokens);
  }
  // Bit c: the key base + c is seen, for the 64 keys of a page.
  __device__ __forceinline__ uint64_t PageBits(int32_t base) const {
    return Ones(max(low, window_low) - base, high - base) |
           Ones(low - base, min(high, sink_tokens - 1) - base);
  }

 private:
  // Bits first to last, those that exist.
  __device__ __forceinline__ static uint64_t Ones(int32_t first, int32_t last) {
    first = max(first, 0);
    last = min(last, kPageTokens - 1);
    return first <= last ? ~uint64_t{0} >> (63 - (last - first)) << first : 0;
  }
};

}  // namespace longstride::kernels::cuda

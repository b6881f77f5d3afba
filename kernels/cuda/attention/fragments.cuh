// Keys and values of 16 positions as operands of Mma16x8x16<T>, from rows of a head in shared
// memory.
//
// E is the cache's element: T itself, or uint8_t for e4m3, whose codes become halves in registers,
// exactly. Shared memory gives pairs of bytes to lanes where it gives single halves, so e4m3 has an
// order of channels of its own: within 16, lane t of four takes channels 4t to 4t + 3, the first
// two as word 0 of a fragment of queries and the others as word 1 (QueryChannel); outputs follow
// (ForOutputPairs).
#pragma once

#include <cstdint>

#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/device/mma.cuh"

namespace longstride::kernels::cuda {

template <typename E>
inline constexpr bool kIsCode = sizeof(E) == 1;

// Below, at(key, chunk) is the address of 16 bytes of a key's row.

// b[s]: operands for keys 0 to 7 (two words) and 8 to 15 of the channels [16 (step + s), + 16).
template <typename E, int kSteps, typename At>
__device__ __forceinline__ void LoadKeys(const At& at, int lane, int step,
                                         uint32_t (&b)[kSteps][4]) {
  static_assert(kSteps == 1 || kSteps == 2);
  const int r = lane & 7, i = lane >> 3;
  if constexpr (!kIsCode<E>) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      LoadMatrix4(b[s], at((i >> 1) * 8 + r, (step + s) * 2 + (i & 1)));
    }
  } else if constexpr (kSteps == 2) {
    uint32_t codes[4];
    LoadMatrix4(codes, at((i >> 1) * 8 + r, step + (i & 1)));
#pragma unroll
    for (int n = 0; n < 4; ++n) HalvesOfE4m3(codes[n], b[n & 1] + (n >> 1) * 2);
  } else {
    uint32_t codes[2];
    LoadMatrix2(codes, at((i & 1) * 8 + r, step));
#pragma unroll
    for (int n = 0; n < 2; ++n) HalvesOfE4m3(codes[n], b[0] + n * 2);
  }
}

// b[s]: operands of the 16 keys for output tiles 2 (group + s) (two words) and 2 (group + s) + 1.
template <typename E, int kGroups, typename At>
__device__ __forceinline__ void LoadValues(const At& at, int lane, int group,
                                           uint32_t (&b)[kGroups][4]) {
  static_assert(kGroups == 1 || kGroups == 2);
  const int key = (lane >> 3 & 1) * 8 + (lane & 7), i = lane >> 4;
  if constexpr (!kIsCode<E>) {
#pragma unroll
    for (int s = 0; s < kGroups; ++s) LoadMatrix4Transposed(b[s], at(key, (group + s) * 2 + i));
  } else {
    uint32_t codes[2 * kGroups];
    if constexpr (kGroups == 2) {
      LoadMatrix4Transposed(codes, at(key, group + i));
    } else {
      LoadMatrix2Transposed(codes, at(key, group));
    }
    // A word has two channels of two keys: one tile takes the even channels, the other the odd
    // ones.
#pragma unroll
    for (int s = 0; s < kGroups; ++s) {
      HalvesOfE4m3(__byte_perm(codes[2 * s], codes[2 * s + 1], 0x6420), b[s]);
      HalvesOfE4m3(__byte_perm(codes[2 * s], codes[2 * s + 1], 0x7531), b[s] + 2);
    }
  }
}

// The channels of which a lane's word `half` (0 or 1) of a step's fragment of queries has two.
template <typename E>
__device__ __forceinline__ int QueryChannel(int lane, int half) {
  return kIsCode<E> ? (lane & 3) * 4 + half * 2 : (lane & 3) * 2 + half * 8;
}

// A lane's four sums of one row (r: its first or its second) in the two tiles of 16 channels, as
// pairs: write(first channel, its sum, the next channel's sum).
template <typename E, typename Write>
__device__ __forceinline__ void ForOutputPairs(const float* even, const float* odd, int lane, int r,
                                               const Write& write) {
  const int t = lane & 3;
  if constexpr (kIsCode<E>) {
    write(t * 4, even[r * 2], odd[r * 2]);
    write(t * 4 + 2, even[r * 2 + 1], odd[r * 2 + 1]);
  } else {
    write(t * 2, even[r * 2], even[r * 2 + 1]);
    write(8 + t * 2, odd[r * 2], odd[r * 2 + 1]);
  }
}

}  // namespace longstride::kernels::cuda

// What the portable tensor-core attention kernels share: how a head of a page lies in shared
// memory, and how a row ends.
#pragma once

#include "kernels/cuda/attention/edges.cuh"
#include "kernels/cuda/attention/fragments.cuh"
#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/pipeline.cuh"

namespace longstride::kernels::cuda {

// Rows of kBytes in shared memory, free of bank conflicts for LoadMatrix4: swizzled in chunks of
// 16 bytes where the row is a multiple of 128 bytes, an odd number of chunks elsewhere.
template <int kBytes>
struct HeadRows {
  static constexpr bool kSwizzled = kBytes % 128 == 0;
  static constexpr int kChunks = kBytes / 16;
  static constexpr int kRowBytes = kBytes + (kSwizzled || kChunks % 2 == 1 ? 0 : 16);
  static constexpr int kPageBytes = kPageTokens * kRowBytes;
  static_assert(kBytes % 16 == 0);

  static __device__ __forceinline__ uint32_t At(int row, int chunk) {
    return static_cast<uint32_t>(row * kRowBytes +
                                 ((kSwizzled ? chunk ^ (row & 7) : chunk) << 4));
  }
  // The address `chunks` chunks behind `address`, whose own chunk has none of their bits. Rows lie
  // at multiples of 128 bytes if they are swizzled.
  static __device__ __forceinline__ uint32_t Behind(uint32_t address, int chunks) {
    return kSwizzled ? (address ^ static_cast<uint32_t>((chunks & 7) << 4)) +
                           static_cast<uint32_t>(chunks >> 3 << 7)
                     : address + static_cast<uint32_t>(chunks << 4);
  }
};

// The same value, of which the compiler does not know so: addresses made from it are computed where
// they are used and do not take registers from the sums.
template <typename Int>
__device__ __forceinline__ Int Forgotten(Int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// Below, element e of tile n of a product of 16 rows is row lane / 4 + 8 * (e / 2), column
// n * 8 + lane % 4 * 2 + e % 2.

struct RowEnd {
  float factor;  // what the row's sums are multiplied with
  float lse;
};
// `best`: the row's maximum on the scale of natural logarithms; `total`: its sum of exponentials.
__device__ __forceinline__ RowEnd EndRow(float best, float total, const float* sinks, int head) {
  if (!(total > 0.0f)) return {0.0f, NegativeInfinity()};
  RowEnd end = {1.0f / total, best + logf(total)};
  if (sinks != nullptr) {
    const float sink = sinks[head], most = fmaxf(best, sink), mine = __expf(best - most);
    end.factor = mine / (total * mine + __expf(sink - most));
  }
  return end;
}

// The maxima of two rows of scores [kTiles][4].
template <int kTiles>
__device__ __forceinline__ void RowMaxima(const float (&s)[kTiles][4], float (&maxima)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float best = s[0][r * 2];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) best = fmaxf(best, fmaxf(s[n][r * 2], s[n][r * 2 + 1]));
    maxima[r] = QuadMax(best);
  }
}

// What is subtracted from exponents: where nothing was visible yet, 0 instead of -inf.
__device__ __forceinline__ float Subtracted(float top) {
  return top == NegativeInfinity() ? 0.0f : top;
}
// Brings a row's running maximum up to date; what the sums before are to be multiplied with.
__device__ __forceinline__ float RaiseMaximum(float maximum, float& top) {
  const float best = fmaxf(top, maximum);
  const float shrink = Exp2(top - Subtracted(best));
  top = best;
  return shrink;
}

// Scores of two rows, whose maxima are given, become exp2(score * factor - running maximum); keeps
// that maximum (times factor) and this thread's part of the sum; `shrink` is what the sums before
// are to be multiplied with.
template <int kTiles>
__device__ __forceinline__ void Exponentiate(float factor, const float (&maxima)[2],
                                             float (&s)[kTiles][4], float (&top)[2],
                                             float (&sum)[2], float (&shrink)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    shrink[r] = RaiseMaximum(maxima[r] * factor, top[r]);
    const float subtract = Subtracted(top[r]);
    float part = 0.0f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = s[n][r * 2 + c];
        x = Exp2(fmaf(x, factor, -subtract));
        part += x;
      }
    }
    sum[r] = sum[r] * shrink[r] + part;
  }
}

template <int kTiles>
__device__ __forceinline__ void OnlineSoftmax(float factor, float (&s)[kTiles][4], float (&top)[2],
                                              float (&sum)[2], float (&shrink)[2]) {
  float maxima[2];
  RowMaxima(s, maxima);
  Exponentiate(factor, maxima, s, top, sum, shrink);
}

template <int kTiles>
__device__ __forceinline__ void SoftCap(float scale, float softcap, float (&s)[kTiles][4]) {
  const float inner = scale / softcap;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] = softcap * Tanh(s[n][e] * inner);
  }
}

// Multiplying by 1 changes nothing: skipped where no row of the warp has a new maximum.
template <int kTiles>
__device__ __forceinline__ void Shrink(const float (&shrink)[2], float (&o)[kTiles][4]) {
  if (!__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) o[n][e] *= shrink[e / 2];
  }
}

// A fragments of probabilities for 16 keys from two tiles of scores.
template <typename T>
__device__ __forceinline__ void PackProbabilities(const float (&left)[4], const float (&right)[4],
                                                  uint32_t (&a)[4]) {
  a[0] = Pack<T>(left[0], left[1]);
  a[1] = Pack<T>(left[2], left[3]);
  a[2] = Pack<T>(right[0], right[1]);
  a[3] = Pack<T>(right[2], right[3]);
}

}  // namespace longstride::kernels::cuda

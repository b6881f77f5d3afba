#include "model/sampler_kernels.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/op_params.h"

#if defined(__GNUC__) && !defined(__clang__)
// Vectors of 8 floats never cross a call that is not inlined.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace longstride::model::sampling {
namespace {

constexpr int kLanes = 8;
typedef float Float8 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));

#define LS_INLINE inline __attribute__((always_inline))

LS_INLINE Float8 Load(const float* p) {
  Float8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

LS_INLINE Float8 Splat(float x) { return Float8{x, x, x, x, x, x, x, x}; }

// exp for x <= 0 (Cephes' reduction and polynomial, about 1 ulp); 0 below -87.
LS_INLINE Float8 ExpNonPositive(Float8 x) {
  const Float8 lowest = Splat(-87.0f);
  const Int8 keep = x >= lowest;
  x = keep ? x : lowest;
  // n = round(x / ln 2), exact in float after adding and subtracting 1.5 * 2^23.
  const Float8 magic = Splat(12582912.0f);
  const Float8 n = (x * 1.44269504088896341f + magic) - magic;
  const Float8 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Float8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Int8 exponent = (__builtin_convertvector(n, Int8) + 127) << 23;
  const Float8 result = p * std::bit_cast<Float8>(exponent);
  return keep ? result : Splat(0.0f);
}

LS_INLINE bool BlockMaximaImpl(const float* logits, int32_t n, float* maxima) {
  const float lowest = -std::numeric_limits<float>::infinity();
  Int8 nan = {};
  bool tail_nan = false;
  for (int32_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const int32_t end = std::min(n, begin + kBlock);
    float best = lowest;
    int32_t i = begin;
    if (end - begin == kBlock) {
      Float8 a = Splat(lowest), b = a, c = a, d = a;
      for (; i < end; i += 4 * kLanes) {
        const Float8 xa = Load(logits + i), xb = Load(logits + i + 8);
        const Float8 xc = Load(logits + i + 16), xd = Load(logits + i + 24);
        a = xa > a ? xa : a;
        b = xb > b ? xb : b;
        c = xc > c ? xc : c;
        d = xd > d ? xd : d;
        nan |= (xa != xa) | (xb != xb) | (xc != xc) | (xd != xd);
      }
      a = b > a ? b : a;
      c = d > c ? d : c;
      a = c > a ? c : a;
      for (int lane = 0; lane < kLanes; ++lane) best = std::max(best, a[lane]);
    }
    for (; i < end; ++i) {
      tail_nan = tail_nan || logits[i] != logits[i];
      best = logits[i] > best ? logits[i] : best;
    }
    maxima[block] = best;
  }
  for (int lane = 0; lane < kLanes; ++lane) tail_nan = tail_nan || nan[lane] != 0;
  return !tail_nan;
}

// A weight is kHalfBits high and as many low bits, so that 32-bit lanes hold sums of a block.
constexpr int kHalfBits = kernels::kWeightBits / 2;
constexpr float kHalfOne = 1 << kHalfBits;

struct Halves {
  Int8 high, low;
};

// Of exp(x), rounded down: both steps are exact.
LS_INLINE Halves WeightHalves(Float8 x) {
  const Float8 scaled = ExpNonPositive(x) * kHalfOne;
  const Int8 high = __builtin_convertvector(scaled, Int8);
  const Float8 rest = (scaled - __builtin_convertvector(high, Float8)) * kHalfOne;
  return {high, __builtin_convertvector(rest, Int8)};
}

LS_INLINE void BlockWeightsImpl(const float* logits, int32_t n, float max, float scale,
                                uint64_t* sums) {
  for (int32_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const int32_t end = std::min(n, begin + kBlock);
    Int8 high = {}, low = {};
    for (int32_t i = begin; i < end; i += kLanes) {
      Float8 x;
      if (i + kLanes <= end) {
        x = Load(logits + i);
      } else {
        float padded[kLanes];
        std::fill(padded, padded + kLanes, -std::numeric_limits<float>::infinity());
        std::copy(logits + i, logits + end, padded);
        x = Load(padded);
      }
      const Halves w = WeightHalves((x - max) * scale);
      high += w.high;
      low += w.low;
    }
    uint64_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      sum += (static_cast<uint64_t>(high[lane]) << kHalfBits) + static_cast<uint64_t>(low[lane]);
    }
    sums[block] = sum;
  }
}

LS_INLINE void BlockExpSumsImpl(const float* logits, int32_t n, float max, float scale,
                                double* sums) {
  for (int32_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const int32_t end = std::min(n, begin + kBlock);
    Float8 a = Splat(0.0f), b = a;
    int32_t i = begin;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      a += ExpNonPositive((Load(logits + i) - max) * scale);
      b += ExpNonPositive((Load(logits + i + kLanes) - max) * scale);
    }
    for (; i < end; i += kLanes) {
      float padded[kLanes];
      std::fill(padded, padded + kLanes, -std::numeric_limits<float>::infinity());
      std::copy(logits + i, logits + std::min(end, i + kLanes), padded);
      a += ExpNonPositive((Load(padded) - max) * scale);
    }
    a += b;
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(a[lane]);
    sums[block] = sum;
  }
}

LS_INLINE void BlockExpDifferencesImpl(const float* p, const float* q, int32_t n, float max,
                                       double* sums) {
  for (int32_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const int32_t end = std::min(n, begin + kBlock);
    Float8 total = Splat(0.0f);
    int32_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Float8 x = Load(p + i);
      total += ExpNonPositive(x - max) * (x - Load(q + i));
    }
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(total[lane]);
    for (; i < end; ++i) {
      const float weight = ExpNonPositive(Splat(p[i]) - max)[0];
      sum += static_cast<double>(weight) * (static_cast<double>(p[i]) - static_cast<double>(q[i]));
    }
    sums[block] = sum;
  }
}

#if defined(__x86_64__)
// No FMA: contraction would change the bits.
#define LS_AVX2 __attribute__((target("avx2")))
LS_AVX2 bool BlockMaximaAvx2(const float* logits, int32_t n, float* maxima) {
  return BlockMaximaImpl(logits, n, maxima);
}
LS_AVX2 void BlockWeightsAvx2(const float* logits, int32_t n, float max, float scale,
                              uint64_t* sums) {
  BlockWeightsImpl(logits, n, max, scale, sums);
}
LS_AVX2 void BlockExpSumsAvx2(const float* logits, int32_t n, float max, float scale,
                              double* sums) {
  BlockExpSumsImpl(logits, n, max, scale, sums);
}
LS_AVX2 void BlockExpDifferencesAvx2(const float* p, const float* q, int32_t n, float max,
                                     double* sums) {
  BlockExpDifferencesImpl(p, q, n, max, sums);
}
bool HasAvx2() {
  static const bool has = __builtin_cpu_supports("avx2");
  return has;
}
#endif

}  // namespace

bool BlockMaxima(const float* logits, int32_t n, float* maxima) {
#if defined(__x86_64__)
  if (HasAvx2()) return BlockMaximaAvx2(logits, n, maxima);
#endif
  return BlockMaximaImpl(logits, n, maxima);
}

uint64_t Weight(float logit, float max, float scale) {
  const Halves w = WeightHalves((Splat(logit) - max) * scale);
  return (static_cast<uint64_t>(w.high[0]) << kHalfBits) + static_cast<uint64_t>(w.low[0]);
}

void BlockWeights(const float* logits, int32_t n, float max, float scale, uint64_t* sums) {
#if defined(__x86_64__)
  if (HasAvx2()) return BlockWeightsAvx2(logits, n, max, scale, sums);
#endif
  BlockWeightsImpl(logits, n, max, scale, sums);
}

void BlockExpSums(const float* logits, int32_t n, float max, float scale, double* sums) {
#if defined(__x86_64__)
  if (HasAvx2()) return BlockExpSumsAvx2(logits, n, max, scale, sums);
#endif
  BlockExpSumsImpl(logits, n, max, scale, sums);
}

void BlockExpDifferences(const float* p, const float* q, int32_t n, float max, double* sums) {
#if defined(__x86_64__)
  if (HasAvx2()) return BlockExpDifferencesAvx2(p, q, n, max, sums);
#endif
  BlockExpDifferencesImpl(p, q, n, max, sums);
}

}  // namespace longstride::model::sampling

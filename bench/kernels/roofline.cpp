#include "bench/kernels/roofline.h"

#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/buffer.h"
#include "kernels/cpu/cpu_info.h"
#include "kernels/cpu/target.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace longstride::bench {
namespace {

constexpr int64_t kLoops = 200000;
constexpr int64_t kReadBytes = int64_t{256} << 20;

clockid_t clock_id = CLOCK_MONOTONIC;

template <typename Fn>
double BestSeconds(kernels::cpu::ThreadPool& pool, const Fn& fn) {
  const double start = Seconds();
  pool.Run(fn);
  return Seconds() - start;
}

#if defined(__x86_64__)
LS_TARGET_BEGIN("avx2,fma")
// 8 chains of multiply and add on bytes; 64 operations for each 32-byte product. Results are
// returned so that the loops cannot be dropped.
__attribute__((noinline)) int64_t MaddubsLoop(int64_t loops) {
  __m256i acc[8];
  const __m256i w = _mm256_set1_epi8(3), x = _mm256_set1_epi8(1);
  for (auto& a : acc) a = _mm256_setzero_si256();
  for (int64_t i = 0; i < loops; ++i) {
    for (auto& a : acc) {
      __m256i p;
      // The compiler would otherwise compute the one product once.
      __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(p) : "x"(w), "x"(x));
      a = _mm256_add_epi16(a, p);
    }
  }
  int64_t sum = 0;
  for (auto& a : acc) sum += _mm256_extract_epi64(a, 0);
  return sum;
}
__attribute__((noinline)) float FmaLoop(int64_t loops) {
  __m256 acc[12];
  const __m256 x = _mm256_set1_ps(1.0001f), y = _mm256_set1_ps(0.9999f);
  for (auto& a : acc) a = _mm256_setzero_ps();
  for (int64_t i = 0; i < loops; ++i) {
    for (auto& a : acc) a = _mm256_fmadd_ps(x, y, a);
  }
  float sum = 0.0f;
  for (auto& a : acc) sum += _mm256_cvtss_f32(a);
  return sum;
}
__attribute__((noinline)) int64_t ReadLoop(const char* p, int64_t bytes) {
  __m256i acc[4];
  for (auto& a : acc) a = _mm256_setzero_si256();
  for (int64_t i = 0; i + 128 <= bytes; i += 128) {
    for (int j = 0; j < 4; ++j) {
      acc[j] = _mm256_xor_si256(
          acc[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i + 32 * j)));
    }
  }
  return _mm256_extract_epi64(
      _mm256_xor_si256(_mm256_xor_si256(acc[0], acc[1]), _mm256_xor_si256(acc[2], acc[3])), 0);
}
LS_TARGET_END

LS_TARGET_BEGIN("avx512f,avx512vnni")
__attribute__((noinline)) int64_t DpbusdLoop(int64_t loops) {
  __m512i acc[12];
  const __m512i x = _mm512_set1_epi8(1), y = _mm512_set1_epi8(2);
  for (auto& a : acc) a = _mm512_set1_epi32(0);
  for (int64_t i = 0; i < loops; ++i) {
    for (auto& a : acc) a = _mm512_dpbusd_epi32(a, x, y);
  }
  alignas(64) int64_t lanes[8];
  int64_t sum = 0;
  for (auto& a : acc) {
    _mm512_store_si512(lanes, a);
    sum += lanes[0];
  }
  return sum;
}
__attribute__((noinline)) float Fma512Loop(int64_t loops) {
  __m512 acc[12];
  const __m512 x = _mm512_set1_ps(1.0001f), y = _mm512_set1_ps(0.9999f);
  for (auto& a : acc) a = _mm512_set1_ps(0.0f);
  for (int64_t i = 0; i < loops; ++i) {
    for (auto& a : acc) a = _mm512_fmadd_ps(x, y, a);
  }
  alignas(64) float lanes[16];
  float sum = 0.0f;
  for (auto& a : acc) {
    _mm512_store_ps(lanes, a);
    sum += lanes[0];
  }
  return sum;
}
LS_TARGET_END
#endif

volatile int64_t sink_int;
volatile float sink_float;

}  // namespace

double Seconds() {
  timespec t;
  clock_gettime(clock_id, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

void UseCpuTime() { clock_id = CLOCK_PROCESS_CPUTIME_ID; }

Roofline MeasureRoofline(kernels::cpu::ThreadPool& pool, int rounds) {
  Roofline best;
#if defined(__x86_64__)
  const kernels::cpu::CpuFeatures features = kernels::cpu::DetectCpuFeatures();
  if (!features.avx2) return best;
  const int threads = pool.num_threads();
  static kernels::Buffer memory = [] {
    kernels::Buffer b = *kernels::Buffer::AllocateHost(kReadBytes);
    std::memset(b.data(), 1, kReadBytes);
    return b;
  }();
  for (int r = 0; r < rounds; ++r) {
    double s = BestSeconds(pool, [](int) { sink_int = MaddubsLoop(kLoops); });
    double gops = threads * kLoops * 8 * 64 / s * 1e-9;
    if (features.avx512_vnni) {
      s = BestSeconds(pool, [](int) { sink_int = DpbusdLoop(kLoops); });
      gops = threads * kLoops * 12 * 128 / s * 1e-9;
    }
    best.int8_name = features.avx512_vnni ? "vpdpbusd 512" : "vpmaddubsw 256";
    best.int8_gops = std::max(best.int8_gops, gops);
    if (features.avx512) {
      s = BestSeconds(pool, [](int) { sink_float = Fma512Loop(kLoops); });
      best.fp32_gflops = std::max(best.fp32_gflops, threads * kLoops * 12 * 32 / s * 1e-9);
    } else {
      s = BestSeconds(pool, [](int) { sink_float = FmaLoop(kLoops); });
      best.fp32_gflops = std::max(best.fp32_gflops, threads * kLoops * 12 * 16 / s * 1e-9);
    }
    const int64_t share = kReadBytes / threads / 4096 * 4096;
    s = BestSeconds(pool,
                    [&](int t) { sink_int = ReadLoop(memory.as<char>() + t * share, share); });
    best.read_gbs = std::max(best.read_gbs, static_cast<double>(threads * share) / s * 1e-9);
  }
#endif
  return best;
}

}  // namespace longstride::bench

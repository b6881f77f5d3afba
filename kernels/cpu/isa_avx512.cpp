// The inner loops for AVX-512 (F, BW, VL, DQ) with VNNI.
#include "kernels/cpu/isa.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/target.h"
#include "kernels/quant.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if !defined(__clang__)
// gcc 12's own intrinsics headers start from undefined vectors on purpose (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define LS_INLINE inline __attribute__((always_inline))

LS_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace longstride::kernels::cpu {
namespace {

// clang-format off: the order matters, later parts use earlier ones
#include "kernels/cpu/simd/vec_avx512.inc"
#include "kernels/cpu/simd/math.inc"
#include "kernels/cpu/simd/elementwise.inc"
#include "kernels/cpu/simd/kv_load_avx2.inc"
#include "kernels/cpu/simd/selection.inc"
#include "kernels/cpu/simd/attention.inc"
#include "kernels/cpu/simd/attention_few_avx2.inc"
#include "kernels/cpu/simd/float_linear.inc"
#include "kernels/cpu/simd/quant_expand_avx2.inc"
#include "kernels/cpu/simd/quantize_avx2.inc"
#include "kernels/cpu/simd/quant_tile_512.inc"
#include "kernels/cpu/simd/quant_panel.inc"
#include "kernels/cpu/simd/table.inc"
// clang-format on

constexpr CpuKernels kTable = MakeTable("avx512vnni");

}  // namespace
}  // namespace longstride::kernels::cpu
LS_TARGET_END

namespace longstride::kernels::cpu {

const CpuKernels* Avx512VnniKernels() { return &kTable; }

}  // namespace longstride::kernels::cpu

#else

namespace longstride::kernels::cpu {

const CpuKernels* Avx512VnniKernels() { return nullptr; }

}  // namespace longstride::kernels::cpu

#endif

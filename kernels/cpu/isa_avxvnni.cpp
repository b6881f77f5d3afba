// The inner loops for AVX2 with the 256-bit VNNI dot product (processors without AVX-512).
#include "kernels/cpu/isa.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/target.h"
#include "kernels/quant.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define LS_INLINE inline __attribute__((always_inline))

LS_TARGET_BEGIN("avx2,fma,f16c,avxvnni")
namespace longstride::kernels::cpu {
namespace {

#define LS_DPBUSD _mm256_dpbusd_avx_epi32

// clang-format off: the order matters, later parts use earlier ones
#include "kernels/cpu/simd/vec_avx2.inc"
#include "kernels/cpu/simd/math.inc"
#include "kernels/cpu/simd/elementwise.inc"
#include "kernels/cpu/simd/kv_load_avx2.inc"
#include "kernels/cpu/simd/selection.inc"
#include "kernels/cpu/simd/attention.inc"
#include "kernels/cpu/simd/attention_few_avx2.inc"
#include "kernels/cpu/simd/float_linear.inc"
#include "kernels/cpu/simd/quant_expand_avx2.inc"
#include "kernels/cpu/simd/quantize_avx2.inc"
#include "kernels/cpu/simd/quant_tile_vnni256.inc"
#include "kernels/cpu/simd/quant_tile_256.inc"
#include "kernels/cpu/simd/quant_fused_256.inc"
#include "kernels/cpu/simd/quant_panel.inc"
#include "kernels/cpu/simd/table.inc"
// clang-format on

constexpr CpuKernels kTable = MakeTable("avxvnni");

}  // namespace
}  // namespace longstride::kernels::cpu
LS_TARGET_END

namespace longstride::kernels::cpu {

const CpuKernels* AvxVnniKernels() { return &kTable; }

}  // namespace longstride::kernels::cpu

#else

namespace longstride::kernels::cpu {

const CpuKernels* AvxVnniKernels() { return nullptr; }

}  // namespace longstride::kernels::cpu

#endif

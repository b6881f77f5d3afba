// The inner loops in plain C++, for every processor.
#include "kernels/cpu/isa.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/quant.h"

#define LS_INLINE inline

namespace longstride::kernels::cpu {
namespace {

// clang-format off: the order matters, later parts use earlier ones
#include "kernels/cpu/simd/vec_portable.inc"
#include "kernels/cpu/simd/math.inc"
#include "kernels/cpu/simd/elementwise.inc"
#include "kernels/cpu/simd/kv_load_portable.inc"
#include "kernels/cpu/simd/selection.inc"
#include "kernels/cpu/simd/attention.inc"
#include "kernels/cpu/simd/float_linear.inc"
#include "kernels/cpu/simd/quant_panel_portable.inc"

// Panels serve any number of rows here.
constexpr int kFewRows = 0;
constexpr auto AttendFew = nullptr;

#include "kernels/cpu/simd/table.inc"
// clang-format on

constexpr CpuKernels kTable = MakeTable("portable");

}  // namespace

const CpuKernels* PortableKernels() { return &kTable; }

}  // namespace longstride::kernels::cpu

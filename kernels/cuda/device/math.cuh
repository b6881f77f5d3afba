// Small arithmetic helpers shared by the attention kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace longstride::kernels::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float NegativeInfinity() { return __int_as_float(0xff800000); }

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// tanh with a relative error near 1e-6, which the hardware's own approximation does not reach.
__device__ __forceinline__ float Tanh(float x) {
  const float e = Exp2(2.0f * kLog2E * fabsf(x));
  return copysignf(1.0f - __fdividef(2.0f, 1.0f + e), x);
}

// e4m3, as E4m3ToFloat and FloatToE4m3 (quant.h).
__device__ __forceinline__ float FromE4m3(uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}
__device__ __forceinline__ uint8_t ToE4m3(float x) {
  const uint8_t code = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
  return (code & 0x7f) == 0x7f ? 0x7f | (__float_as_uint(x) >> 24 & 0x80) : code;
}

// Two codes as two halves, the first in the low half; exact.
__device__ __forceinline__ uint32_t HalvesOfE4m3(uint16_t codes) {
  const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3);
  return static_cast<uint32_t>(halves.y) << 16 | halves.x;
}

// Four codes to two words of two halves each.
__device__ __forceinline__ void HalvesOfE4m3(uint32_t codes, uint32_t* to) {
#if __CUDA_ARCH__ >= 890
  asm("{\n.reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n}\n"
      : "=r"(to[0]), "=r"(to[1])
      : "r"(codes));
#else
  to[0] = HalvesOfE4m3(static_cast<uint16_t>(codes));
  to[1] = HalvesOfE4m3(static_cast<uint16_t>(codes >> 16));
#endif
}

// Two floats as one word of two 16-bit values, the first in the low half.
template <typename T>
__device__ __forceinline__ uint32_t Pack(float lo, float hi);
template <>
__device__ __forceinline__ uint32_t Pack<__nv_bfloat16>(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
template <>
__device__ __forceinline__ uint32_t Pack<__half>(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}

// Reductions over the four lanes that share a row of a tensor-core fragment.
__device__ __forceinline__ float QuadMax(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
__device__ __forceinline__ float QuadSum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

// Lane t of a quad holds w[i] = word t of item i; afterwards w[i] = word i of item t.
__device__ __forceinline__ void QuadTranspose(uint32_t (&w)[4], int t) {
  const bool odd = t & 1, high = t & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
    if (odd)
      w[i] = got;
    else
      w[i + 1] = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, high ? w[i] : w[i + 2], 2);
    if (high)
      w[i] = got;
    else
      w[i + 2] = got;
  }
}

}  // namespace longstride::kernels::cuda

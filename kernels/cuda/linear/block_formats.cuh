// Decoding GGUF's block formats, as packed_weight.h lays them out, straight into the A fragments of
// a warpgroup product. Codes become 16-bit integers by placing their bits under an exponent
// (0x6400 is 1024 in f16) and subtracting it, exactly; then one multiplication or fused
// multiply-add rounds once. Scales of the K formats are products that are rounded to f16 first:
// relative error of a weight at most 3 * 2^-12 of its block's range.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/linear/hopper.cuh"
#include "kernels/cuda/linear/packed_weight.h"

namespace longstride::kernels::cuda {

__device__ __forceinline__ __half2 AsHalf2(uint32_t bits) {
  return *reinterpret_cast<const __half2*>(&bits);
}
__device__ __forceinline__ __nv_bfloat162 AsBfloat2(uint32_t bits) {
  return *reinterpret_cast<const __nv_bfloat162*>(&bits);
}
template <typename T2>
__device__ __forceinline__ uint32_t AsBits(T2 v) {
  return *reinterpret_cast<const uint32_t*>(&v);
}
// Moves the bits that lie from bit `from` on to bit 4 on.
__device__ __forceinline__ uint32_t ToBit4(uint32_t v, int from) {
  return from <= 4 ? v << (4 - from) : v >> (from - 4);
}
// A half in both halves of a word.
__device__ __forceinline__ uint32_t TwiceLow(uint32_t v) {
  return AsBits(__low2half2(AsHalf2(v)));
}
__device__ __forceinline__ uint32_t TwiceHigh(uint32_t v) {
  return AsBits(__high2half2(AsHalf2(v)));
}
// (v & mask) | bits, in one instruction.
template <uint32_t kMask>
__device__ __forceinline__ uint32_t Masked(uint32_t v, uint32_t bits) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(v), "n"(kMask), "r"(bits));
  return r;
}
// Two bytes as the halves 1024 + byte.
template <int kPair>
__device__ __forceinline__ uint32_t BytesAsHalves(uint32_t v) {
  return __byte_perm(v, 0x64646464u, kPair == 0 ? 0x4140 : 0x4342);
}

template <DType kType>
struct BlockFormat {
  static constexpr bool kIsK = BlockElements(kType) == 256;
  static constexpr bool kHasMinimum = kType == DType::kQ4_1 || kType == DType::kQ5_1 ||
                                      kType == DType::kQ4_K || kType == DType::kQ5_K;
  static constexpr bool kIsMxfp4 = kType == DType::kMXFP4;
  static constexpr bool kHasFifthBit =
      kType == DType::kQ5_0 || kType == DType::kQ5_1 || kType == DType::kQ5_K;
  static constexpr int kUnitBlocks = UnitBlocks(kType);
  static constexpr int kUnitBytes = UnitBytes(kType);
  static constexpr int kCodeWords = kType == DType::kQ8_0 ? 8 : 4;
  static constexpr int kHighWords = kType == DType::kQ6_K ? 2 : kHasFifthBit ? 1 : 0;
  static constexpr int kScales = kType == DType::kQ6_K ? 4 : 2;  // per row and 64 columns
  // Byte offsets inside a unit.
  static constexpr int kHighAt = kUnitBlocks * 512 * kCodeWords;
  static constexpr int kScalesAt = kHighAt + kUnitBlocks * 512 * kHighWords;
  static constexpr int kSuperAt = kScalesAt + 1024;  // K formats only
  // Scales of one pair of rows.
  static constexpr int kScaleBytes = kIsMxfp4 ? 4 : !kIsK && kHasMinimum ? 16 : 8;

  // What one thread holds of 64 columns of its two rows, row `lane / 4` and 8 below it.
  struct Block {
    uint32_t codes[kCodeWords];
    uint32_t high[kHighWords == 0 ? 1 : kHighWords];
    uint32_t scale[2][kScales];  // both halves the same
    uint32_t minimum[2][kHasMinimum ? kScales : 1];
  };

  // Where this thread's pieces of a unit begin, as shared addresses. Of the unit there are `blocks`
  // steps of 64 columns and `slices` times 16 rows; `warp` is one of the slices.
  struct Place {
    uint32_t codes, high, scales, super;
    __device__ Place(uint32_t unit, int warp, int lane, int blocks = kUnitBlocks, int slices = 4)
        : codes(unit + static_cast<uint32_t>(warp * (kCodeWords == 8 ? 64 : 32) + lane) * 16),
          high(unit + static_cast<uint32_t>(blocks * slices * 128 * kCodeWords) +
               static_cast<uint32_t>(warp * 32 + lane) * (4 * kHighWords)),
          scales(unit +
                 static_cast<uint32_t>(blocks * slices * 128 * (kCodeWords + kHighWords)) +
                 static_cast<uint32_t>(warp * 8 + (lane >> 2)) * kScaleBytes),
          super(unit +
                static_cast<uint32_t>(blocks * slices *
                                      (128 * (kCodeWords + kHighWords) + 64)) +
                static_cast<uint32_t>(warp * 8 + (lane >> 2)) * (kType == DType::kQ6_K ? 4 : 8)) {}
  };

  // Step `block` of 64 columns of the unit `offset` bytes behind the first.
  static __device__ __forceinline__ void Load(const Place& p, uint32_t offset, int block,
                                              Block* b) {
    const uint32_t codes = p.codes + offset + static_cast<uint32_t>(block) * 512 * kCodeWords;
    const uint4 q = LoadShared16(codes);
    b->codes[0] = q.x, b->codes[1] = q.y, b->codes[2] = q.z, b->codes[3] = q.w;
    if constexpr (kCodeWords == 8) {
      const uint4 more = LoadShared16(codes + 512);
      b->codes[4] = more.x, b->codes[5] = more.y, b->codes[6] = more.z, b->codes[7] = more.w;
    }
    const uint32_t high = p.high + offset + static_cast<uint32_t>(block) * 512 * kHighWords;
    if constexpr (kHighWords == 1) {
      b->high[0] = LoadShared4(high);
    } else if constexpr (kHighWords == 2) {
      const uint2 h = LoadShared8(high);
      b->high[0] = h.x, b->high[1] = h.y;
    }
    LoadScales(p.scales + offset + (kIsK ? static_cast<uint32_t>(block) * 256 : 0),
               p.super + offset, b);
  }

  // The fragment of columns [16 * step, 16 * step + 16).
  static __device__ __forceinline__ void Decode(const Block& b, int step, uint32_t (&a)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = j & 1, at = step * kScales / 4;
      if constexpr (kIsMxfp4) {
        const uint32_t q = b.codes[step] >> (4 * j);
        // e2m1's bits under bfloat16's exponent: 2^-126 times the value, subnormal ones included.
        const uint32_t value = ((q << 12) & 0x80008000u) | ((q << 6) & 0x01C001C0u);
        const __nv_bfloat162 unit = __hmul2(AsBfloat2(value), AsBfloat2(0x7E807E80u));
        a[j] = AsBits(__hmul2(unit, AsBfloat2(b.scale[row][at])));
      } else {
        const __half2 code = Code(b, step, j);
        if constexpr (kHasMinimum) {
          a[j] = AsBits(__hfma2(code, AsHalf2(b.scale[row][at]), AsHalf2(b.minimum[row][at])));
        } else {
          a[j] = AsBits(__hmul2(code, AsHalf2(b.scale[row][at])));
        }
      }
    }
  }

 private:
  // Two codes as integers in f16, the format's offset subtracted.
  static __device__ __forceinline__ __half2 Code(const Block& b, int step, int j) {
    if constexpr (kType == DType::kQ8_0) {
      const uint32_t word = b.codes[step * 2 + (j >> 1)];
      const uint32_t v = (j & 1) == 0 ? BytesAsHalves<0>(word) : BytesAsHalves<1>(word);
      return __hsub2(AsHalf2(v), AsHalf2(0x64806480u));  // 1152: stored with 128 added
    } else if constexpr (kHighWords == 0) {
      const uint32_t q = b.codes[step] >> (8 * (j >> 1));
      constexpr bool kCentred = kType == DType::kQ4_0;
      if ((j & 1) == 0) {
        const uint32_t v = Masked<0x000F000Fu>(q, 0x64006400u);
        return __hsub2(AsHalf2(v), AsHalf2(kCentred ? 0x64086408u : 0x64006400u));
      }
      const uint32_t v = Masked<0x00F000F0u>(q, 0x64006400u);  // 1024 + 16 * code
      return __hfma2(AsHalf2(v), AsHalf2(0x2C002C00u),
                     AsHalf2(kCentred ? 0xD480D480u : 0xD400D400u));
    } else {
      constexpr bool kPairs = kHighWords == 2;
      const uint32_t q = b.codes[step] >> (4 * j);
      const uint32_t high = kPairs ? ToBit4(b.high[step >> 1], ((step & 1) * 4 + j) * 2)
                                   : ToBit4(b.high[0], step * 4 + j);
      const uint32_t v = Masked<kPairs ? 0x00300030u : 0x00100010u>(
          high, Masked<0x000F000Fu>(q, 0x64006400u));
      constexpr uint32_t kOffset = kType == DType::kQ6_K   ? 0x64206420u
                                   : kType == DType::kQ5_0 ? 0x64106410u
                                                           : 0x64006400u;
      return __hsub2(AsHalf2(v), AsHalf2(kOffset));
    }
  }

  static __device__ __forceinline__ void LoadScales(uint32_t scales_at, uint32_t super_at,
                                                    Block* b) {
    if constexpr (kIsMxfp4) {
      const uint32_t e = LoadShared4(scales_at);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t exponent = (e >> (8 * i)) & 255;
        b->scale[i >> 1][i & 1] = exponent == 0 ? 0x00400040u : exponent * 0x00800080u;
      }
    } else if constexpr (!kIsK && !kHasMinimum) {
      const uint2 d = LoadShared8(scales_at);
      b->scale[0][0] = TwiceLow(d.x), b->scale[0][1] = TwiceHigh(d.x);
      b->scale[1][0] = TwiceLow(d.y), b->scale[1][1] = TwiceHigh(d.y);
    } else if constexpr (!kIsK) {
      const uint4 d = LoadShared16(scales_at);
      const uint32_t both[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        b->scale[i >> 1][i & 1] = TwiceLow(both[i]);
        b->minimum[i >> 1][i & 1] = TwiceHigh(both[i]);
      }
    } else {
      const uint2 s = LoadShared8(scales_at);
      const uint32_t scales[2] = {s.x, s.y};
      if constexpr (kType == DType::kQ6_K) {
        const uint32_t d = LoadShared4(super_at);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const __half2 super = AsHalf2(r == 0 ? TwiceLow(d) : TwiceHigh(d));
          const __half2 offset = AsHalf2(0x64806480u);  // stored with 128 added
          const uint32_t low = AsBits(
              __hmul2(__hsub2(AsHalf2(BytesAsHalves<0>(scales[r])), offset), super));
          const uint32_t high = AsBits(
              __hmul2(__hsub2(AsHalf2(BytesAsHalves<1>(scales[r])), offset), super));
          b->scale[r][0] = TwiceLow(low), b->scale[r][1] = TwiceHigh(low);
          b->scale[r][2] = TwiceLow(high), b->scale[r][3] = TwiceHigh(high);
        }
      } else {
        const uint2 d = LoadShared8(super_at);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const __half2 super = AsHalf2(r == 0 ? d.x : d.y);  // scale, minus minimum
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint32_t bytes =
                i == 0 ? BytesAsHalves<0>(scales[r]) : BytesAsHalves<1>(scales[r]);
            const uint32_t both =
                AsBits(__hmul2(__hsub2(AsHalf2(bytes), AsHalf2(0x64006400u)), super));
            b->scale[r][i] = TwiceLow(both);
            b->minimum[r][i] = TwiceHigh(both);
          }
        }
      }
    }
  }
};

}  // namespace longstride::kernels::cuda

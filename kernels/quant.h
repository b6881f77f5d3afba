// Number formats: half and bfloat16 conversions and GGUF's block formats, to and from float32.
// Scalar and exact; the backends' fast paths are tested against these.
// Source: the block layouts of the GGUF format (ggml); MXFP4 of the OCP Microscaling spec v1.0.
#pragma once

#include <cstdint>

#include "kernels/tensor_view.h"

namespace longstride::kernels {

// IEEE half, round to nearest even; overflow becomes infinity, NaN stays NaN (quiet).
uint16_t FloatToHalf(float value);
float HalfToFloat(uint16_t bits);
// bfloat16, round to nearest even; NaN stays NaN.
uint16_t FloatToBfloat16(float value);
float Bfloat16ToFloat(uint16_t bits);
// e4m3 as the OCP 8-bit floating point specification has it: no infinities, 0x7f and 0xff are NaN,
// the largest magnitude is 448.
float E4m3ToFloat(uint8_t bits);
// Round to nearest even; magnitudes above 448, infinities included, become 448; NaN stays NaN.
uint8_t FloatToE4m3(float value);

// True for the dtypes that DequantizeRow reads: f32, f16, bf16 and every block type.
bool CanDequantize(DType dtype);

// Writes `n` elements of the row that starts at `row` as float32, with exactly the operations of
// ggml's definition (no fused multiply-add). REQUIRES: CanDequantize(dtype), n is whole blocks.
void DequantizeRow(DType dtype, const void* row, int64_t n, float* out);

// Rounds a row to Q8_0 blocks as ggml does: d = max|x| / 127 stored as half, codes
// round(x * (1 / d)), halves away from zero. |x - decoded| <= d/2 + |x| / 2048 (half's rounding of
// d). REQUIRES: n % 32 == 0.
void QuantizeRowQ8_0(const float* x, int64_t n, void* out);

// Rounds one head's row for a kQ8 cache (see paged_kv.h): one float32 scale = max|x| / 127 for all
// n values, codes round(x / scale); an all-zero row has scale 0. |x - code * scale| <= scale / 2
// up to rounding of the last bit.
void QuantizeKvRow(const float* x, int64_t n, int8_t* codes, float* scale);

// The value of an e8m0 exponent, halved: MXFP4's codes below are doubled in turn.
float E8m0Half(uint8_t e);
// MXFP4's sixteen e2m1 values times two.
inline constexpr int8_t kMxfp4Doubled[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                             0, -1, -2, -3, -4, -6, -8, -12};

// The 6-bit scale and minimum of sub-block j (0..7) of a Q4_K or Q5_K block's 12 scale bytes.
void UnpackScaleMinK4(const uint8_t* scales, int j, uint8_t* scale, uint8_t* minimum);

}  // namespace longstride::kernels

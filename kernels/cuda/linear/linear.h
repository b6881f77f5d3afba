// Linear layers on the GPU: weights in their device form, and their products with activations.
//
// One order of summation per weight shape, for every number of rows: a row's bits do not depend on
// the other rows of the call (tested for 1 to 512 rows). What that costs is in docs/kernels.md.
//
// Numerics, against exact arithmetic on the decoded weight, as ‖error‖ / ‖result‖ for random data:
//   f32 weights   float32 throughout                                              1e-6
//   f16           activations rounded to f16, rows scaled by powers of two        3e-4
//   bf16          activations rounded to bf16                                     3e-3
//   q*            weights decoded to f16, activations as for f16                  1e-3
//   mxfp4         weights exact in bf16, activations rounded to bf16              3e-3
//   fp8_128       activations rounded to bf16 and to e4m3 with a scale for each row;
//                 codes multiplied exactly, 128 products summed by the tensor cores
//                 (at least 14 bits), those sums scaled and added in float32      4e-2
//                 portable kernels: activations as for f16, codes multiplied
//                 exactly, sums of 128 products scaled and added in float32       5e-3
// with float32 sums. Activations and results are f32, f16 or bf16, each as its view says.
#pragma once

#include <memory>
#include <span>

#include "kernels/backend.h"
#include "kernels/cuda/device/context.h"
#include "kernels/cuda/linear/product.h"

namespace longstride::kernels::cuda {

// Consecutive rows of a weight that share a format.
struct LinearSegment {
  DType dtype = DType::kF32;
  int64_t row_begin = 0;
  int64_t rows = 0;
  const uint8_t* data = nullptr;  // packed, device memory
};

class CudaLinearWeight : public LinearWeight {
 public:
  CudaLinearWeight(int64_t rows, int64_t cols, std::vector<LinearSegment> segments, Buffer buffer);
  const std::vector<LinearSegment>& segments() const { return segments_; }

 private:
  std::vector<LinearSegment> segments_;
  Buffer buffer_;
};

// Packs the row-concatenation of `parts` (host or device memory; f32, f16, bf16 or a quantised type,
// each its own) into new device memory; the parts are not needed afterwards. Waits for the device.
// UNIMPLEMENTED: another dtype. RESOURCE_EXHAUSTED: no memory.
absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareCudaLinear(std::span<const TensorView> parts,
                                                                DeviceContext& context);

// LinearParams as op_params.h says, in device memory. Queued on the context's stream.
absl::Status RunCudaLinear(const LinearParams& p, DeviceContext& context);

// Rows as operands for weights of one or both 16-bit types, made at most once a call. The memory
// belongs to `scratch`.
class Operands {
 public:
  Operands(const TensorView& x, DeviceContext& context, Scratch& scratch)
      : x_(x), context_(context), scratch_(scratch) {}
  // Rows to take and factors to apply; see Conversion. REQUIRES: before the first For.
  void Gather(const int32_t* source_rows, const float* factors, int64_t rows) {
    source_rows_ = source_rows;
    factors_ = factors;
    rows_ = rows;
  }
  absl::StatusOr<Operand> For(DType weight_dtype);

 private:
  TensorView x_;
  DeviceContext& context_;
  Scratch& scratch_;
  const int32_t* source_rows_ = nullptr;
  const float* factors_ = nullptr;
  int64_t rows_ = -1;
  Operand made_[3];  // bf16, f16, e4m3
};

}  // namespace longstride::kernels::cuda

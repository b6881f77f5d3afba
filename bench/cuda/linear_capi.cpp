// A C interface to the matrix products for bench/cuda/linear_bench.py: device pointers in, nothing
// but the CUDA runtime needed.
#include <cuda_runtime_api.h>

#include "kernels/cuda/linear/packed_weight.h"
#include "kernels/cuda/linear/product.h"

using longstride::kernels::DType;
using longstride::kernels::TensorView;
using longstride::kernels::cuda::Operand;

namespace cuda = longstride::kernels::cuda;

namespace {

DType TypeNamed(int type) { return static_cast<DType>(type); }
// Of the activations of a product with weights of this type.
DType TakenType(int portable, int weight_type) {
  const DType type = TypeNamed(weight_type);
  return type == DType::kFP8_128 && portable == 0 ? DType::kF8E4M3 : cuda::OperandType(type);
}

}  // namespace

extern "C" {

int64_t ls_packed_bytes(int type, int64_t rows, int64_t cols) {
  return cuda::PackedBytes(TypeNamed(type), rows, cols);
}
int64_t ls_row_bytes(int type, int64_t cols) {
  return longstride::kernels::RowBytes(TypeNamed(type), cols);
}
// A number of TYPES in the scripts that use this.
int ls_operand_type(int portable, int type) { return static_cast<int>(TakenType(portable, type)); }

int ls_pack(int type, const void* source, int64_t rows, int64_t cols, void* packed, void* stream) {
  return cuda::LaunchPacking({.dtype = TypeNamed(type),
                              .source = source,
                              .source_row_bytes = ls_row_bytes(type, cols),
                              .rows = rows,
                              .cols = cols,
                              .weight_rows = rows,
                              .packed = static_cast<uint8_t*>(packed)},
                             static_cast<cudaStream_t>(stream));
}

// x: [m, k] of x_type; operand: room for m * k values of the operand's type; row_scale: [m].
int ls_convert(int portable, int weight_type, const void* x, int x_type, int64_t m, int64_t k,
               void* operand, float* row_scale, void* stream) {
  const int64_t dims[2] = {m, k};
  return cuda::LaunchConversion(
      {.x = TensorView::Contiguous(x, TypeNamed(x_type), dims, 2),
       .rows = m,
       .to = TakenType(portable, weight_type),
       .out = operand,
       .pitch = k,
       .row_scale = row_scale},
      static_cast<cudaStream_t>(stream));
}

int ls_product(int portable, int weight_type, const void* packed, int64_t n, const void* operand,
               const float* row_scale, int64_t m, int64_t k, void* out, int out_type,
               void* stream) {
  const DType type = TypeNamed(weight_type);
  const cuda::Product product{.weight_dtype = type,
                              .weight = static_cast<const uint8_t*>(packed),
                              .n = n,
                              .x = Operand{.data = operand,
                                           .dtype = TakenType(portable, weight_type),
                                           .rows = m,
                                           .cols = k,
                                           .pitch = k,
                                           .row_scale = row_scale},
                              .out = out,
                              .out_dtype = TypeNamed(out_type),
                              .out_stride = n,
                              .path = portable != 0 ? cuda::KernelPath::kPortable
                                                    : cuda::KernelPath::kFast};
  return cuda::IsDense(type)
             ? cuda::LaunchDenseProduct(product, static_cast<cudaStream_t>(stream))
             : cuda::LaunchQuantProduct(product, static_cast<cudaStream_t>(stream));
}

}  // extern "C"

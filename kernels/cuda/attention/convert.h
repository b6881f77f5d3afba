// Activations to and from what the attention kernels take and give.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

// to = from, element by element: f32 [rows, heads, dim] with strides to contiguous f16 or bf16.
cudaError_t LaunchToHalf(const TensorView& from, const TensorView& to, cudaStream_t stream);
// The rows that the selection's tiles cover, as another type: f16 or bf16 to f32, f32 or f16 to bf16.
cudaError_t LaunchCoveredRows(const TensorView& from, const KvSelection& selection,
                              const TensorView& to, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

// Float32 activations to and from what the Hopper attention kernels take.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

// to = from, element by element: f32 [rows, heads, dim] with strides to contiguous f16 or bf16.
cudaError_t LaunchToHalf(const TensorView& from, const TensorView& to, cudaStream_t stream);
// The rows that the selection's tiles cover, back to float32.
cudaError_t LaunchFromHalf(const TensorView& from, const KvSelection& selection,
                           const TensorView& to, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

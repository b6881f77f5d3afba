// Launches of the row-wise ops' kernels. Plain structs and CUDA types only.
//
// Every function does what op_params.h says of the op, with its tensors and arrays (ids, positions,
// frequencies, pages, slots, rows) in device memory, asynchronously on `stream`, and returns what
// the launch itself reports. REQUIRES: the shapes that Backend checks.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

cudaError_t LaunchEmbedding(const EmbeddingParams& p, cudaStream_t stream);
cudaError_t LaunchGatherRows(const GatherRowsParams& p, cudaStream_t stream);
cudaError_t LaunchRmsNorm(const RmsNormParams& p, cudaStream_t stream);
cudaError_t LaunchLayerNorm(const LayerNormParams& p, cudaStream_t stream);
cudaError_t LaunchRope(const RopeParams& p, cudaStream_t stream);
cudaError_t LaunchPositionScale(const PositionScaleParams& p, cudaStream_t stream);
cudaError_t LaunchKvWrite(const KvWriteParams& p, cudaStream_t stream);
cudaError_t LaunchGatedActivation(const GatedActivationParams& p, cudaStream_t stream);
cudaError_t LaunchAdd(const AddParams& p, cudaStream_t stream);
cudaError_t LaunchSoftcap(const SoftcapParams& p, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

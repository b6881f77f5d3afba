// Attention for every shape that the contract allows, in float32: the path of what the tensor-core
// kernels refuse (other head sizes, token lists, entries of 16 and 32 positions, float32 and int8
// caches). Plain structs and CUDA types only.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

inline constexpr int32_t kMaxFloatHeadDim = 640;

// What a launch works on, beside the params: q and out are float32; every pointer is device memory.
struct FloatAttentionLaunch {
  int32_t max_kv_len = 0;   // no sequence of the step is longer
  int multiprocessors = 1;  // decides about splitting, which changes no bit
  void* scratch = nullptr;  // FloatAttentionScratchBytes; may be null where that is 0
  // Set to 1 where a visible key has no valid page; such keys are left out.
  uint32_t* status = nullptr;
};

int64_t FloatAttentionScratchBytes(const AttentionParams& p, const FloatAttentionLaunch& launch);
cudaError_t LaunchFloatAttention(const AttentionParams& p, const FloatAttentionLaunch& launch,
                           cudaStream_t stream);

}  // namespace longstride::kernels::cuda

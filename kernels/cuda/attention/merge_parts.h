// The launch of MergeAttention's kernel: parts, log-sum-exps and out in device memory,
// asynchronously on `stream`; returns what the launch itself reports.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/attention_parts.h"

namespace longstride::kernels::cuda {

cudaError_t LaunchMergeAttention(const MergeAttentionParams& p, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

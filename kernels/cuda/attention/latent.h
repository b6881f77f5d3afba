// Tensor-core attention over latents (multi-head latent attention, DeepSeek-V2, arXiv 2405.04434),
// behind attention.h: heads of 576 channels whose first 512 are the value. Internal to this folder.
#pragma once

#include "kernels/cuda/attention/attention.h"

namespace longstride::kernels::cuda {

inline constexpr int32_t kLatentKeyDim = 576;
inline constexpr int32_t kLatentValueDim = 512;

// One page is key and value, and what is asked of the value fits its first 512 channels.
constexpr bool IsLatent(const AttentionParams& p) {
  return p.cache.k == p.cache.v && p.cache.head_dim == kLatentKeyDim && p.value_dim > 0 &&
         p.value_dim <= kLatentValueDim;
}

// Of bf16 and f16, as the build has them (LONGSTRIDE_CUDA_LATENTS).
bool HasLatentKernel(KvDType dtype, KernelPath path);
// Whether the current device has the 155 KB of shared memory for a block that the kernels need.
bool LatentFits();

// As LaunchPrefill and LaunchDecode. Channels of out behind the first 512 become 0; decoding leaves
// parts of lists, to be merged, which lack them.
cudaError_t LaunchLatentPrefill(const AttentionParams& p, PrefillLayout layout, void* scratch,
                                cudaStream_t stream, KernelPath path);
cudaError_t LaunchLatentDecode(const AttentionParams& p, int32_t max_list_pages, void* scratch,
                               cudaStream_t stream, KernelPath path);

}  // namespace longstride::kernels::cuda

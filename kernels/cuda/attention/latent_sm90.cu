// Attention over latents with Hopper's warpgroup products.
#include "kernels/cuda/attention/latent.cuh"

namespace longstride::kernels::cuda::latent {

cudaError_t LaunchFast(const LatentParams& p, int64_t blocks, cudaStream_t stream) {
  switch (p.cache.dtype) {
#if LONGSTRIDE_LATENT_SM90_BF16
    case KvDType::kBF16:
      return LaunchOf<__nv_bfloat16, true>(p, blocks, stream);
#endif
#if LONGSTRIDE_LATENT_SM90_F16
    case KvDType::kF16:
      return LaunchOf<__half, true>(p, blocks, stream);
#endif
    default:
      return cudaErrorNotSupported;
  }
}

bool HasFast(KvDType dtype) {
  return (LONGSTRIDE_LATENT_SM90_BF16 && dtype == KvDType::kBF16) ||
         (LONGSTRIDE_LATENT_SM90_F16 && dtype == KvDType::kF16);
}

}  // namespace longstride::kernels::cuda::latent

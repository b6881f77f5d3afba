// The portable kernels of dense weights: {f16, bf16, fp8} x tiles of 8, 64 and 256 tokens.
#include "kernels/cuda/linear/portable.h"
#include "kernels/cuda/linear/portable_product.cuh"

namespace longstride::kernels::cuda {
namespace {

using Few = PortableShape<16, 8, 16, 8, 2, 16>;
using Some = PortableShape<64, 64, 32, 32, 2, 2>;
using Many = PortableShape<128, 256, 64, 64, 1, 1>;

template <typename Weights>
cudaError_t LaunchTokens(const Product& p, int tokens, cudaStream_t stream) {
  if (tokens <= Few::kTokens) return LaunchPortable<Weights, Few>(p, stream);
  if (tokens <= Some::kTokens) return LaunchPortable<Weights, Some>(p, stream);
  return LaunchPortable<Weights, Many>(p, stream);
}

}  // namespace

cudaError_t LaunchPortableDense(const Product& p, int tokens, cudaStream_t stream) {
  switch (p.weight_dtype) {
    case DType::kFP8_128: return LaunchTokens<Fp8Weights>(p, tokens, stream);
    case DType::kBF16: return LaunchTokens<DenseWeights<__nv_bfloat16>>(p, tokens, stream);
    default: return LaunchTokens<DenseWeights<__half>>(p, tokens, stream);
  }
}

}  // namespace longstride::kernels::cuda

// The portable kernels of f16 and bf16 weights: {f16, bf16} x tiles of 8, 64 and 256 tokens.
#include "kernels/cuda/linear/portable.h"
#include "kernels/cuda/linear/portable_product.cuh"

namespace longstride::kernels::cuda {
namespace {

using Few = PortableShape<16, 8, 16, 8, 2, 16>;
using Some = PortableShape<64, 64, 32, 32, 2, 2>;
using Many = PortableShape<128, 256, 64, 64, 1, 1>;

template <typename T>
cudaError_t LaunchTokens(const Product& p, int tokens, cudaStream_t stream) {
  if (tokens <= Few::kTokens) return LaunchPortable<DenseWeights<T>, Few>(p, stream);
  if (tokens <= Some::kTokens) return LaunchPortable<DenseWeights<T>, Some>(p, stream);
  return LaunchPortable<DenseWeights<T>, Many>(p, stream);
}

}  // namespace

cudaError_t LaunchPortableDense(const Product& p, int tokens, cudaStream_t stream) {
  return p.weight_dtype == DType::kBF16 ? LaunchTokens<__nv_bfloat16>(p, tokens, stream)
                                        : LaunchTokens<__half>(p, tokens, stream);
}

}  // namespace longstride::kernels::cuda

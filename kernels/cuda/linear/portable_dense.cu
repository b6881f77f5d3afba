// The portable kernels of dense weights: {f16, bf16, fp8} x tiles of 8, 64 and 256 tokens (fp8:
// 128).
#include <type_traits>

#include "kernels/cuda/linear/portable.h"
#include "kernels/cuda/linear/portable_product.cuh"

namespace longstride::kernels::cuda {
namespace {

// Weights with scaled sums have two accumulators for each, and are decoded: as few warps as
// possible share theirs.
template <typename Weights>
using Few = std::conditional_t<Weights::kScaledSums, PortableShape<16, 8, 16, 8, 4, 16>,
                               PortableShape<16, 8, 16, 8, 2, 16>>;
// Where tiles of 64 weight rows leave multiprocessors idle.
using Half = PortableShape<32, 64, 16, 32, 2, 4>;
template <typename Weights>
using Some = std::conditional_t<Weights::kScaledSums, PortableShape<64, 64, 16, 64, 2, 2>,
                                PortableShape<64, 64, 32, 32, 2, 2>>;
template <typename Weights>
using Many = std::conditional_t<Weights::kScaledSums, PortableShape<128, 128, 32, 64, 2, 1>,
                                PortableShape<128, 256, 64, 64, 1, 1>>;

template <typename Weights>
cudaError_t LaunchTokens(const Product& p, int tokens, cudaStream_t stream) {
  if (tokens <= 8) return LaunchPortable<Weights, Few<Weights>>(p, stream);
  if (Weights::kScaledSums && tokens <= 64 && CeilDiv(p.n, 64) < p.multiprocessors) {
    return LaunchPortable<Weights, Half>(p, stream);
  }
  if (tokens <= 64) return LaunchPortable<Weights, Some<Weights>>(p, stream);
  return LaunchPortable<Weights, Many<Weights>>(p, stream);
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

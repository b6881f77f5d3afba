// The two families of tensor-core kernels. Plain, for .cu files too.
#pragma once

#include <cstdint>

namespace longstride::kernels::cuda {

enum class KernelPath : uint8_t {
  kFast,      // Hopper's: warpgroup products and bulk tensor copies (sm_90a)
  kPortable,  // sm_80 and later: warp-level products and copies by threads
};

constexpr const char* KernelPathName(KernelPath path) {
  return path == KernelPath::kFast ? "fast" : "portable";
}

}  // namespace longstride::kernels::cuda

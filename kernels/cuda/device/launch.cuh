// Grids for row-wise kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace longstride::kernels::cuda {

inline constexpr int kRowThreads = 256;

// Blocks for `rows` x `columns` elements: x over rows (which may be many), y over column chunks.
struct RowGrid {
  dim3 blocks;
  bool empty;
  RowGrid(int64_t rows, int64_t columns, int columns_per_thread = 1)
      : blocks(static_cast<unsigned>(rows),
               static_cast<unsigned>((columns + int64_t{kRowThreads} * columns_per_thread - 1) /
                                     (int64_t{kRowThreads} * columns_per_thread))),
        empty(rows == 0 || columns == 0) {}
};

// Programmatic dependent launch (sm_90 and later): a kernel that was launched for it starts while the one
// before it in the stream still runs, once all blocks of that one have said LetDependentsStart, and waits
// in WaitForPredecessors for everything that ran before it. Without such a launch both do nothing.
__device__ __forceinline__ void LetDependentsStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void WaitForPredecessors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// How a short kernel begins that LaunchOverlapped launches: what it saves is the time from the end of one
// kernel to the start of the next. Where every load counts, weights and what was copied from the host may be
// read before the wait: a copy in the stream is overlapped by nothing. Threads that have nothing to do wait
// too: a grid that ends before its predecessor would let its successor run early.
__device__ __forceinline__ void BeginOverlapped() {
  LetDependentsStart();
  WaitForPredecessors();
}

// Whether the current device can.
inline bool CanOverlapLaunches() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9;
}

// Launches a kernel that begins with BeginOverlapped. Behind a copy or a memset it starts when that is done,
// as any kernel does.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlapped(void (*kernel)(Parameters...), dim3 blocks, unsigned threads,
                             size_t shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = CanOverlapLaunches() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// Results as float32 or bf16.
__device__ __forceinline__ void Store(float* to, float x) { *to = x; }
__device__ __forceinline__ void Store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void Store4(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
__device__ __forceinline__ void Store4(__nv_bfloat16* to, float4 x) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y), high = __floats2bfloat162_rn(x.z, x.w);
  uint2 both;
  both.x = reinterpret_cast<const uint32_t&>(low);
  both.y = reinterpret_cast<const uint32_t&>(high);
  *reinterpret_cast<uint2*>(to) = both;
}

}  // namespace longstride::kernels::cuda

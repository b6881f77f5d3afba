// Background copies from device to shared memory by ordinary threads (sm_80 and later), for kernels
// that do not have Hopper's copy engine.
#pragma once

#include <cstdint>

namespace longstride::kernels::cuda {

// 16 bytes, both sides aligned to them. Only the first `bytes` are read, the others become zero.
__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(bytes)
               : "memory");
}
// All 16, or nothing at all; without a branch, so that copies can stand between other instructions.
__device__ __forceinline__ void CopyAsync16If(bool wanted, uint32_t to, const void* from) {
  asm volatile(
      "{\n.reg .pred wanted;\n"
      "setp.ne.b32 wanted, %2, 0;\n"
      "@wanted cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n}\n" ::"r"(to),
      "l"(from), "r"(static_cast<int>(wanted))
      : "memory");
}
// The same of 4 bytes.
__device__ __forceinline__ void CopyAsync4(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
// Makes a group of this thread's copies since the last call.
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all but the last kPending groups of this thread are there.
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
inline constexpr int kMaxPendingCopies = 4;
// The same for a number known at run time, the same in all threads, of at most kMaxPendingCopies.
__device__ __forceinline__ void WaitCopies(int pending) {
  // No switch, which would read a table of jumps.
  if (pending == 2) {
    WaitCopies<2>();
  } else if (pending == 3) {
    WaitCopies<3>();
  } else if (pending == 1) {
    WaitCopies<1>();
  } else if (pending == 0) {
    WaitCopies<0>();
  } else {
    WaitCopies<kMaxPendingCopies>();
  }
}

}  // namespace longstride::kernels::cuda

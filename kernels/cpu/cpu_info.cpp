#include "kernels/cpu/cpu_info.h"

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "config/base/strings.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace longstride::kernels::cpu {
namespace {

#if defined(__x86_64__)
// Which register files the system saves on a context switch (XCR0).
uint64_t ReadXcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}
#endif

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// One string per physical core: the list of its hardware threads.
std::string CoreOf(int processor) {
  const std::string directory = StrCat("/sys/devices/system/cpu/cpu", processor, "/topology/");
  std::string siblings = FirstLine(directory + "thread_siblings_list");
  return siblings.empty() ? StrCat("processor ", processor) : siblings;
}

int CoresOfAffinityMask() {
  // The kernel refuses a mask smaller than its own; grow until it fits.
  for (int processors = 1024; processors <= 1 << 20; processors *= 2) {
    cpu_set_t* set = CPU_ALLOC(processors);
    const size_t bytes = CPU_ALLOC_SIZE(processors);
    const bool ok = sched_getaffinity(0, bytes, set) == 0;
    std::set<std::string> cores;
    for (int i = 0; ok && i < processors; ++i) {
      if (CPU_ISSET_S(i, bytes, set)) cores.insert(CoreOf(i));
    }
    CPU_FREE(set);
    if (ok) return static_cast<int>(cores.size());
  }
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

CpuFeatures DetectCpuFeatures() {
  CpuFeatures f;
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool osxsave = (c >> 27) & 1;
  const bool fma = (c >> 12) & 1;
  const bool f16c = (c >> 29) & 1;
  if (!osxsave) return f;
  const uint64_t xcr0 = ReadXcr0();
  const bool ymm = (xcr0 & 0x6) == 0x6;
  const bool zmm = (xcr0 & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2 = ymm && fma && f16c && ((b >> 5) & 1);
  const bool avx512 = ((b >> 16) & 1) && ((b >> 17) & 1) && ((b >> 30) & 1) && ((b >> 31) & 1);
  f.avx512 = f.avx2 && zmm && avx512;
  f.avx512_vnni = f.avx512 && ((c >> 11) & 1);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    f.avx_vnni = f.avx2 && ((a >> 4) & 1);
  }
#endif
  return f;
}

int ProcessorsOfQuota(const std::string& cpu_max) {
  std::istringstream in(cpu_max);
  std::string quota;
  double period = 0.0;
  if (!(in >> quota >> period) || quota == "max" || period <= 0.0) return 0;
  const double processors = std::strtod(quota.c_str(), nullptr) / period;
  if (!(processors > 0.0)) return 0;
  return std::max(1, static_cast<int>(std::min(processors + 0.5, 1e6)));
}

int AvailablePhysicalCores() {
  int cores = std::max(1, CoresOfAffinityMask());
  const int quota = ProcessorsOfQuota(FirstLine("/sys/fs/cgroup/cpu.max"));
  if (quota > 0) cores = std::min(cores, quota);
  return cores;
}

}  // namespace longstride::kernels::cpu

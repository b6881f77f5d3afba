// What the processor and the process's share of it offer, read once at start-up.
#pragma once

#include <string>

namespace longstride::kernels::cpu {

struct CpuFeatures {
  bool avx2 = false;      // AVX2, FMA and F16C, with the system saving their registers
  bool avx_vnni = false;  // the 256-bit VNNI of processors without AVX-512
  bool avx512 = false;    // F, BW, VL, DQ, with the system saving their registers
  bool avx512_vnni = false;
};

CpuFeatures DetectCpuFeatures();

// Physical cores among the processors that this process may use (its affinity mask), at most the
// whole processors of its control group's quota; at least 1.
int AvailablePhysicalCores();

// The pieces of AvailablePhysicalCores that read files, apart for tests. A quota file holds "max
// 100000" or "150000 100000" (control groups v2); 0 means no limit.
int ProcessorsOfQuota(const std::string& cpu_max);

}  // namespace longstride::kernels::cpu

// What this machine can do at most, measured by loops that do nothing else.
#pragma once

#include "kernels/cpu/thread_pool.h"

namespace longstride::bench {

// Seconds since some moment: of the wall clock, or after UseCpuTime of this process's processors.
double Seconds();
void UseCpuTime();

struct Roofline {
  double int8_gops = 0.0;  // multiply and add count as two; the widest int8 instruction there is
  const char* int8_name = "";
  double fp32_gflops = 0.0;
  double read_gbs = 0.0;  // reading memory far larger than the caches, once
};

// Best of `rounds` short rounds on all threads of the pool.
Roofline MeasureRoofline(kernels::cpu::ThreadPool& pool, int rounds);

}  // namespace longstride::bench

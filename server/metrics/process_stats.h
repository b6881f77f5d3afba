// What the kernel says about this process.
#pragma once

#include <cstdint>

namespace longstride::metrics {

struct ProcessStats {
  int64_t resident_bytes = 0;
  double cpu_seconds = 0;
  int64_t open_fds = 0;
};

// Zeros where /proc cannot be read.
ProcessStats ReadProcessStats();
// Seconds since the epoch; `fallback` where /proc cannot be read.
double ProcessStartSeconds(int64_t fallback);

}  // namespace longstride::metrics

#include "server/metrics/process_stats.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>

namespace longstride::metrics {

ProcessStats ReadProcessStats() {
  ProcessStats stats;
  std::ifstream statm("/proc/self/statm");
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  if (statm >> total_pages >> resident_pages) {
    stats.resident_bytes = resident_pages * sysconf(_SC_PAGESIZE);
  }
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) == 0) {
    stats.cpu_seconds = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                        static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
  }
  if (DIR* directory = opendir("/proc/self/fd"); directory != nullptr) {
    int64_t entries = 0;
    while (readdir(directory) != nullptr) ++entries;
    closedir(directory);
    stats.open_fds = entries - 3;  // ".", ".." and the directory's own
  }
  return stats;
}

double ProcessStartSeconds(int64_t fallback) {
  // Field 22 of /proc/self/stat, counted from the boot time in /proc/stat. The command's name, in
  // parentheses, may hold blanks.
  std::ifstream stat("/proc/self/stat");
  std::string line;
  std::getline(stat, line);
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return static_cast<double>(fallback);
  std::istringstream fields(line.substr(name_end + 1));
  std::string skipped;
  for (int i = 3; i < 22; ++i) fields >> skipped;
  double start_ticks = 0;
  fields >> start_ticks;
  std::ifstream boot("/proc/stat");
  std::string key;
  double boot_seconds = 0;
  while (boot >> key) {
    if (key == "btime" && boot >> boot_seconds) break;
    boot.ignore(1 << 16, '\n');
  }
  if (!fields || boot_seconds == 0) return static_cast<double>(fallback);
  return boot_seconds + start_ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace longstride::metrics

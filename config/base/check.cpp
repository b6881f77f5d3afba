#include "config/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace longstride::internal {

void CheckFailed(const char* file, int line, const char* condition, const std::string& operands) {
  std::fprintf(stderr, "%s:%d: check failed: %s%s%s%s\n", file, line, condition,
               operands.empty() ? "" : " (", operands.c_str(), operands.empty() ? "" : ")");
  std::fflush(stderr);
  std::abort();
}

}  // namespace longstride::internal

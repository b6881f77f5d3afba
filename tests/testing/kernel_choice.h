// LONGSTRIDE_TEST_KERNELS=portable or fast: the CUDA kernels that the GPU tests run; `auto` without.
#pragma once

#include <cstdlib>
#include <string>

#include "kernels/backend.h"

namespace longstride {

inline kernels::KernelChoice TestKernels() {
  const char* value = std::getenv("LONGSTRIDE_TEST_KERNELS");
  const std::string name = value == nullptr ? "auto" : value;
  if (name == "portable") return kernels::KernelChoice::kPortable;
  if (name == "fast") return kernels::KernelChoice::kFast;
  return kernels::KernelChoice::kAuto;
}

}  // namespace longstride

// Backends by name for tests that pose their problems in host memory: a device's backend is wrapped
// so that every op copies its operands there and its results back.
#pragma once

#include <memory>
#include <string>

#include "kernels/backend.h"

namespace longstride::kernels {

// "reference", "cuda" or an instruction set of the cpu backend; null where this machine lacks it.
std::unique_ptr<Backend> MakeByName(const std::string& name);

}  // namespace longstride::kernels

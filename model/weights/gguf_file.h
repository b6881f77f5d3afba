// A GGUF checkpoint, from one file, several parts, or memory.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

// `path` is the only or the first part (NAME-00001-of-000NN.gguf); the others are its neighbours.
absl::StatusOr<std::unique_ptr<WeightsFile>> OpenGguf(const std::string& path);

// The parts' contents, first part first. The memory must outlive the result. For tests and fuzzing.
absl::StatusOr<std::unique_ptr<WeightsFile>> OpenGgufMemory(
    const std::vector<std::span<const uint8_t>>& parts);

}  // namespace longstride::model

// The header of a safetensors file. Works on a span of memory, so that a fuzzer can drive it.
// Source: the safetensors format description (8-byte length, JSON, data).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "kernels/tensor_view.h"

namespace longstride::model {

struct SafetensorsTensor {
  std::string name;
  std::string type_name;                // as in the file: "BF16"
  std::optional<kernels::DType> dtype;  // nullopt: a type that is not read
  int rank = 0;
  std::array<int64_t, kernels::kMaxRank> shape = {};
  size_t offset = 0;  // from the start of the file
  size_t bytes = 0;
};

// Checks everything the header says against the file's size; the extents in the result lie inside
// `file` and do not overlap, and tensors of known type fill theirs exactly. INVALID_ARGUMENT.
absl::StatusOr<std::vector<SafetensorsTensor>> ParseSafetensors(std::span<const uint8_t> file);

// The "weight_map" of model.safetensors.index.json: the file of each tensor, in name order. File
// names are plain names (no folder parts); INVALID_ARGUMENT otherwise.
absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ParseSafetensorsIndex(
    std::string_view json);

}  // namespace longstride::model

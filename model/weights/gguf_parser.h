// The header of a GGUF file: metadata and tensor directory. Works on a span of memory, so that a
// fuzzer can drive it. Source: the GGUF specification, versions 2 and 3.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "kernels/tensor_view.h"

namespace longstride::model {

enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Where a metadata value lies in the file. Scalars are arrays of one element.
struct GgufValue {
  GgufType type = GgufType::kUint8;  // of the elements
  bool is_array = false;
  uint64_t count = 1;
  size_t position = 0;  // of the first element, from the start of the file
  size_t bytes = 0;     // of all elements, string lengths included
};

struct GgufTensor {
  std::string name;
  kernels::DType dtype = kernels::DType::kF32;
  int rank = 0;
  std::array<int64_t, kernels::kMaxRank> shape = {};  // outermost first
  size_t offset = 0;                                  // from the start of the file
  size_t bytes = 0;
};

struct GgufHeader {
  uint32_t version = 0;
  uint32_t alignment = 32;
  size_t header_bytes = 0;  // metadata and directory
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::vector<GgufTensor> tensors;  // in file order
};

// Checks everything the header says against the file's size; the spans that the result describes
// lie inside `file` and do not overlap. INVALID_ARGUMENT, or UNIMPLEMENTED for a big-endian file,
// an unknown version or a tensor type that is not read.
absl::StatusOr<GgufHeader> ParseGguf(std::span<const uint8_t> file);

// Elements of a value, converted; empty where the type does not fit (strings from strings; integers
// from the integer types and bool; floats from any number).
std::vector<std::string> GgufStringElements(std::span<const uint8_t> file, const GgufValue& value);
std::vector<int64_t> GgufIntElements(std::span<const uint8_t> file, const GgufValue& value);
std::vector<double> GgufNumberElements(std::span<const uint8_t> file, const GgufValue& value);

// Longer arrays are left out of the JSON.
inline constexpr uint64_t kGgufSmallArray = 4096;

// The metadata as one flat JSON object. Invalid UTF-8 is replaced.
std::string GgufMetadataJson(std::span<const uint8_t> file, const GgufHeader& header);

// Name of a ggml tensor type id, "type 99" where unknown.
std::string GgufTensorTypeName(uint32_t id);

}  // namespace longstride::model

// Makes small safetensors files for tests, also wrong ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/base/strings.h"
#include "tests/testing/byte_sink.h"

namespace longstride::testing {

// The 8-byte length, the header text as it is, and the data.
inline std::vector<uint8_t> RawSafetensors(std::string_view header,
                                           const std::vector<uint8_t>& data) {
  ByteSink out;
  out.PutString(header);
  out.PutBytes(data);
  return std::move(out.bytes());
}

class SafetensorsWriter {
 public:
  void Add(std::string_view name, std::string_view dtype, const std::vector<int64_t>& shape,
           const std::vector<uint8_t>& bytes) {
    std::string dims;
    for (const int64_t dim : shape) StrAppend(&dims, dims.empty() ? "" : ",", dim);
    StrAppend(&entries_, entries_.empty() ? "" : ",", "\"", name, "\":{\"dtype\":\"", dtype,
              "\",\"shape\":[", dims, "],\"data_offsets\":[", data_.size(), ",",
              data_.size() + bytes.size(), "]}");
    data_.insert(data_.end(), bytes.begin(), bytes.end());
  }
  void AddFloats(std::string_view name, const std::vector<int64_t>& shape,
                 const std::vector<float>& values) {
    std::vector<uint8_t> bytes(values.size() * sizeof(float));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    Add(name, "F32", shape, bytes);
  }
  void AddZeros(std::string_view name, const std::vector<int64_t>& shape) {
    size_t count = 1;
    for (const int64_t dim : shape) count *= static_cast<size_t>(dim);
    Add(name, "F32", shape, std::vector<uint8_t>(count * 4));
  }

  std::vector<uint8_t> Finish() const {
    std::string header = StrCat("{\"__metadata__\":{\"format\":\"pt\"},", entries_, "}");
    if (entries_.empty()) header = "{}";
    while (header.size() % 8 != 0) header += ' ';
    return RawSafetensors(header, data_);
  }

 private:
  std::string entries_;
  std::vector<uint8_t> data_;
};

}  // namespace longstride::testing

// Makes small GGUF files for tests, also wrong ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "tests/testing/byte_sink.h"

namespace longstride::testing {

class GgufWriter {
 public:
  uint32_t version = 3;
  uint32_t magic = 0x46554747;
  uint64_t alignment = 32;  // of the data; SetUint32("general.alignment") declares it

  void SetUint16(std::string_view key, uint16_t v) { Key(key, 2).Put(v); }
  void SetUint32(std::string_view key, uint32_t v) { Key(key, 4).Put(v); }
  void SetInt32(std::string_view key, int32_t v) { Key(key, 5).Put(v); }
  void SetFloat32(std::string_view key, float v) { Key(key, 6).Put(v); }
  void SetBool(std::string_view key, bool v) { Key(key, 7).Put<uint8_t>(v ? 1 : 0); }
  void SetString(std::string_view key, std::string_view v) { Key(key, 8).PutString(v); }
  void SetStrings(std::string_view key, const std::vector<std::string>& v) {
    Array(key, 8, v.size());
    for (const std::string& text : v) metadata_.PutString(text);
  }
  void SetFloats(std::string_view key, const std::vector<float>& v) {
    Array(key, 6, v.size());
    for (const float value : v) metadata_.Put(value);
  }
  void SetInts(std::string_view key, const std::vector<int32_t>& v) {
    Array(key, 5, v.size());
    for (const int32_t value : v) metadata_.Put(value);
  }
  // Anything: `payload` follows the value's type.
  void SetRaw(std::string_view key, uint32_t type, const std::vector<uint8_t>& payload) {
    Key(key, type).PutBytes(payload);
  }

  // Dimensions outermost first, as in TensorView. `type` is ggml's number.
  void AddTensor(std::string_view name, uint32_t type, const std::vector<int64_t>& shape,
                 std::vector<uint8_t> data) {
    tensors_.push_back({std::string(name), type, shape, std::move(data), -1});
  }
  void AddFloats(std::string_view name, const std::vector<int64_t>& shape,
                 const std::vector<float>& values) {
    std::vector<uint8_t> bytes(values.size() * sizeof(float));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    AddTensor(name, 0, shape, std::move(bytes));
  }
  // A float32 tensor of zeros.
  void AddZeros(std::string_view name, const std::vector<int64_t>& shape) {
    size_t count = 1;
    for (const int64_t dim : shape) count *= static_cast<size_t>(dim);
    AddTensor(name, 0, shape, std::vector<uint8_t>(count * 4));
  }
  // Writes another offset than the true one into the directory entry of the last tensor.
  void ForgeOffset(int64_t offset) { tensors_.back().forged_offset = offset; }

  std::vector<uint8_t> Finish() const {
    ByteSink out;
    out.Put(magic);
    out.Put(version);
    out.Put<uint64_t>(tensors_.size());
    out.Put<uint64_t>(num_keys_);
    ByteSink metadata = metadata_;
    out.PutBytes(metadata.bytes());
    uint64_t offset = 0;
    for (const Tensor& tensor : tensors_) {
      out.PutString(tensor.name);
      out.Put<uint32_t>(static_cast<uint32_t>(tensor.shape.size()));
      for (size_t d = tensor.shape.size(); d-- > 0;) out.Put<int64_t>(tensor.shape[d]);
      out.Put<uint32_t>(tensor.type);
      out.Put<uint64_t>(tensor.forged_offset >= 0 ? static_cast<uint64_t>(tensor.forged_offset)
                                                  : offset);
      offset += (tensor.data.size() + alignment - 1) / alignment * alignment;
    }
    for (const Tensor& tensor : tensors_) {
      out.Pad(alignment);
      out.PutBytes(tensor.data);
    }
    return std::move(out.bytes());
  }

 private:
  struct Tensor {
    std::string name;
    uint32_t type;
    std::vector<int64_t> shape;
    std::vector<uint8_t> data;
    int64_t forged_offset;
  };

  ByteSink& Key(std::string_view key, uint32_t type) {
    ++num_keys_;
    metadata_.PutString(key);
    metadata_.Put(type);
    return metadata_;
  }
  void Array(std::string_view key, uint32_t element_type, size_t count) {
    Key(key, 9).Put(element_type);
    metadata_.Put<uint64_t>(count);
  }

  ByteSink metadata_;
  uint64_t num_keys_ = 0;
  std::vector<Tensor> tensors_;
};

}  // namespace longstride::testing

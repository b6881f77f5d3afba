// Bounds-checked reading of little-endian values from untrusted bytes.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace longstride::model {

// Every read that would pass the end fails, leaves the position where it was and stays failed.
class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes, size_t position = 0)
      : bytes_(bytes), position_(position <= bytes.size() ? position : bytes.size()) {}

  size_t position() const { return position_; }
  size_t remaining() const { return bytes_.size() - position_; }

  template <typename T>
  bool Read(T* value) {
    if (remaining() < sizeof(T)) return false;
    std::memcpy(value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return true;
  }
  bool Skip(uint64_t count) {
    if (count > remaining()) return false;
    position_ += static_cast<size_t>(count);
    return true;
  }
  bool ReadView(uint64_t count, std::string_view* view) {
    if (count > remaining()) return false;
    *view = {reinterpret_cast<const char*>(bytes_.data()) + position_, static_cast<size_t>(count)};
    position_ += static_cast<size_t>(count);
    return true;
  }

 private:
  std::span<const uint8_t> bytes_;
  size_t position_;
};

}  // namespace longstride::model

// Working memory that grows to what its user needs and is then reused.
#pragma once

#include <cstdint>

#include "config/base/check.h"
#include "kernels/buffer.h"

namespace longstride::kernels::cpu {

class Scratch {
 public:
  // At least `bytes` bytes, 64-byte aligned, valid until the next call; contents undefined.
  void* Get(int64_t bytes) {
    if (bytes > buffer_.bytes()) {
      buffer_.Reset();
      absl::StatusOr<Buffer> grown = Buffer::AllocateHost(bytes + bytes / 4);
      LS_CHECK(grown.ok() && "out of memory for a kernel's working memory");
      buffer_ = *std::move(grown);
    }
    return buffer_.data();
  }

 private:
  Buffer buffer_;
};

// Hands out consecutive 64-byte aligned arrays; with a null base it only measures.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* Take(int64_t count) {
    const int64_t offset = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + offset);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace longstride::kernels::cpu

// Owning memory. Device memory of the project lives only in Buffers.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "config/base/status.h"
#include "kernels/tensor_view.h"

namespace longstride::kernels {

// Movable owner of one allocation. A default-constructed Buffer is empty.
class Buffer {
 public:
  // How a backend gives memory back and (for reservations) commits and uncommits a part of it.
  struct Deleter {
    virtual ~Deleter() = default;
    virtual void Free(void* data, int64_t bytes) = 0;
    // Reservations only; the default is for those that the system commits when they are touched.
    virtual absl::Status Commit(void* data, int64_t bytes) { return absl::OkStatus(); }
    // Reservations only; the default fails a check.
    virtual void Decommit(void* data, int64_t bytes);
  };

  Buffer() = default;
  Buffer(void* data, int64_t bytes, Device device, std::shared_ptr<Deleter> deleter)
      : data_(data), bytes_(bytes), device_(device), deleter_(std::move(deleter)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { Reset(); }

  // Host memory, 64-byte aligned, not initialised. RESOURCE_EXHAUSTED if the system has none.
  static absl::StatusOr<Buffer> AllocateHost(int64_t bytes);
  // Host address space whose pages are taken from the system when first written. The KV cache
  // reserves every group's worst case and lets the byte budget decide what is touched.
  static absl::StatusOr<Buffer> ReserveHost(int64_t bytes);

  // Puts memory behind [offset, offset + bytes) where there is none yet: devices do not by
  // themselves. All parts of one reservation have one size and lie at multiples of it.
  // RESOURCE_EXHAUSTED: none is left. REQUIRES: made by a backend's Reserve.
  absl::Status Commit(int64_t offset, int64_t bytes);
  // Gives the physical memory of [offset, offset + bytes) back to the system; the range reads as
  // zeros afterwards (on a device it has to be committed again). Whole system pages inside the range
  // only. REQUIRES: made by a backend's Reserve.
  void Decommit(int64_t offset, int64_t bytes);

  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  void Reset();

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_ = Device::kCpu;
  std::shared_ptr<Deleter> deleter_;
};

}  // namespace longstride::kernels

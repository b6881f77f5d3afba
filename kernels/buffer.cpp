#include "kernels/buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "config/base/check.h"

namespace longstride::kernels {
namespace {

constexpr int64_t kAlignment = 64;
// From here on an allocation asks for huge pages: streaming weights is bound by memory, and page
// walks cost a few per cent of it.
constexpr int64_t kHugeBytes = int64_t{2} << 20;

class HeapDeleter : public Buffer::Deleter {
 public:
  void Free(void* data, int64_t bytes) override { std::free(data); }
};

class MapDeleter : public Buffer::Deleter {
 public:
  void Free(void* data, int64_t bytes) override { munmap(data, static_cast<size_t>(bytes)); }
  void Decommit(void* data, int64_t bytes) override {
    static const int64_t page = sysconf(_SC_PAGESIZE);
    const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
};

absl::Status OutOfMemory(const char* what, int64_t bytes) {
  return absl::ResourceExhaustedError(StrCat("The system has no room for ", what, " of ", bytes,
                                             " bytes; lower the memory budget or free memory."));
}

absl::Status CheckSize(int64_t bytes) {
  if (bytes >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("A buffer must have 0 or more bytes, got ", bytes, "."));
}

}  // namespace

void Buffer::Deleter::Decommit(void* data, int64_t bytes) {
  LS_CHECK(false && "Decommit on a buffer that is not a reservation");
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    Reset();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    device_ = other.device_;
    deleter_ = std::move(other.deleter_);
  }
  return *this;
}

void Buffer::Reset() {
  if (data_ != nullptr && deleter_ != nullptr) deleter_->Free(data_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
  deleter_.reset();
}

absl::StatusOr<Buffer> Buffer::AllocateHost(int64_t bytes) {
  RETURN_IF_ERROR(CheckSize(bytes));
  if (bytes == 0) return Buffer();
  const int64_t alignment = bytes >= kHugeBytes ? kHugeBytes : kAlignment;
  if (bytes > INT64_MAX - alignment) return OutOfMemory("an allocation", bytes);
  const int64_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* data = nullptr;
  if (posix_memalign(&data, alignment, rounded) != 0) return OutOfMemory("an allocation", bytes);
  if (bytes >= kHugeBytes) madvise(data, bytes / kHugeBytes * kHugeBytes, MADV_HUGEPAGE);
  return Buffer(data, bytes, Device::kCpu, std::make_shared<HeapDeleter>());
}

absl::StatusOr<Buffer> Buffer::ReserveHost(int64_t bytes) {
  RETURN_IF_ERROR(CheckSize(bytes));
  if (bytes == 0) return Buffer();
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return OutOfMemory("a reservation", bytes);
  // Huge pages would commit 2 MiB at the first touch of any of its bytes.
  madvise(data, static_cast<size_t>(bytes), MADV_NOHUGEPAGE);
  return Buffer(data, bytes, Device::kCpu, std::make_shared<MapDeleter>());
}

absl::Status Buffer::Commit(int64_t offset, int64_t bytes) {
  LS_CHECK(offset >= 0 && bytes >= 0 && bytes <= bytes_ - offset);
  if (bytes == 0) return absl::OkStatus();
  return deleter_->Commit(static_cast<char*>(data_) + offset, bytes);
}

void Buffer::Decommit(int64_t offset, int64_t bytes) {
  LS_CHECK(offset >= 0 && bytes >= 0 && bytes <= bytes_ - offset);
  if (bytes > 0) deleter_->Decommit(static_cast<char*>(data_) + offset, bytes);
}

}  // namespace longstride::kernels

#include "model/weights/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace longstride::model {
namespace {

absl::Status SystemError(std::string_view what, std::string_view action) {
  const std::string message = StrCat("cannot ", action, " ", what, ": ", std::strerror(errno));
  switch (errno) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(message);
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InvalidArgumentError(message);
  }
}

}  // namespace

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path, std::string_view what) {
  // O_NONBLOCK: opening a FIFO that nobody writes must not hang; it is refused below.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError(what, "open");
  struct stat info = {};
  if (fstat(fd, &info) != 0) {
    const absl::Status status = SystemError(what, "read the size of");
    close(fd);
    return status;
  }
  if (!S_ISREG(info.st_mode) || info.st_size <= 0) {
    close(fd);
    return absl::InvalidArgumentError(
        StrCat(what, S_ISREG(info.st_mode) ? " is empty" : " is not a regular file"));
  }
  const auto size = static_cast<size_t>(info.st_size);
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED) {
    const absl::Status status = SystemError(what, "map");
    close(fd);
    return status;
  }
  close(fd);
  MappedFile file;
  file.data_ = static_cast<const uint8_t*>(data);
  file.size_ = size;
  return file;
}

void ReleasePages(const void* data, size_t bytes) {
  if (data == nullptr || bytes == 0) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  // Rounded outwards: a neighbour's page that goes too is read again from the page cache.
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace longstride::model

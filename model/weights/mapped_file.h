// A file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "config/base/status.h"

namespace longstride::model {

// Movable owner of one mapping. The contents are those of the file: a file that somebody truncates
// while it is mapped raises SIGBUS when read, so checkpoints must be replaced by renaming.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  // `what` names the file in messages (its plain name, never its path). NOT_FOUND,
  // PERMISSION_DENIED, INVALID_ARGUMENT (not a regular file, empty), RESOURCE_EXHAUSTED.
  static absl::StatusOr<MappedFile> Open(const std::string& path, std::string_view what);

  std::span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Gives the resident pages that [data, data + bytes) touches back to the system; reading them again
// faults them in from the file. Only for memory of a MappedFile.
void ReleasePages(const void* data, size_t bytes);

}  // namespace longstride::model

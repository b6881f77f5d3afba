// Device address space whose physical memory comes and goes by the granule: what the KV cache's
// reservations (docs/decisions/0002) and the scratch arena are made of. Addresses never move.
#pragma once

#include <cstdint>
#include <vector>

#include "config/base/status.h"

namespace longstride::kernels::cuda {

// One reserved range. Not thread-safe. Mapping and unmapping do not wait for the device: unmap only
// what no queued work still uses.
class VirtualRange {
 public:
  VirtualRange() = default;
  ~VirtualRange();
  VirtualRange(const VirtualRange&) = delete;
  VirtualRange& operator=(const VirtualRange&) = delete;

  // Reserves addresses for `bytes` on `device` (current); nothing is mapped yet. UNIMPLEMENTED: the
  // driver has no virtual memory management. RESOURCE_EXHAUSTED: no address space.
  absl::Status Reserve(int device, int64_t bytes);
  // Gives [offset, offset + bytes) physical memory where it has none; new memory is not initialised.
  // RESOURCE_EXHAUSTED: the device has none left.
  absl::Status Map(int64_t offset, int64_t bytes);
  // Takes the memory of whole granules inside the range back.
  void Unmap(int64_t offset, int64_t bytes);

  char* data() const { return base_; }
  int64_t bytes() const { return bytes_; }
  int64_t granule_bytes() const { return granule_; }
  int64_t mapped_bytes() const { return mapped_; }

 private:
  char* base_ = nullptr;
  int64_t bytes_ = 0;
  int64_t granule_ = 0;
  int64_t mapped_ = 0;
  int device_ = 0;
  std::vector<uint64_t> handles_;  // per granule; 0: not mapped
};

// A range of equal pieces that are held and dropped one by one. Granules are larger than most pieces
// (a page of keys of one layer): one goes when the last piece in it does.
class PieceRange {
 public:
  absl::Status Reserve(int device, int64_t bytes) { return range_.Reserve(device, bytes); }
  // Gives the piece at `offset` memory if it has none. The first call fixes the size of all; pieces
  // lie at multiples of it, else INTERNAL. Errors: VirtualRange::Map's.
  absl::Status Hold(int64_t offset, int64_t bytes);
  // Drops the pieces that lie in [offset, offset + bytes); others there are not touched.
  void Drop(int64_t offset, int64_t bytes);

  char* data() const { return range_.data(); }
  int64_t bytes() const { return range_.bytes(); }

 private:
  VirtualRange range_;
  int64_t piece_ = 0;
  std::vector<bool> held_;               // per piece
  std::vector<int32_t> held_in_granule_;  // pieces that touch it
};

}  // namespace longstride::kernels::cuda

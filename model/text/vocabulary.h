// The two-way map between token texts and ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace longstride::model {

// Strings by id, with room for holes. Owns the bytes. Movable; reads are thread-safe once built.
class Vocabulary {
 public:
  static constexpr int32_t kMaxId = (1 << 24) - 1;

  // REQUIRES: 0 <= id <= kMaxId. A later text for the same id, or id for the same text, wins.
  void Add(int32_t id, std::string_view text);
  // -1 if no token has this text.
  int32_t Find(std::string_view text) const;
  // Empty for holes and for ids out of range.
  std::string_view Text(int32_t id) const {
    return Has(id) ? texts_[static_cast<size_t>(id)] : std::string_view();
  }
  bool Has(int32_t id) const {
    return id >= 0 && id < size() && texts_[static_cast<size_t>(id)].data() != nullptr;
  }
  // One more than the largest id.
  int32_t size() const { return static_cast<int32_t>(texts_.size()); }

 private:
  std::string_view Store(std::string_view text);

  std::vector<std::unique_ptr<char[]>> chunks_;
  size_t chunk_used_ = 0;
  size_t chunk_size_ = 0;
  std::vector<std::string_view> texts_;
  absl::flat_hash_map<std::string_view, int32_t> ids_;
};

}  // namespace longstride::model

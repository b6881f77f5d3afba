// The merge rules of a byte-pair encoding: (left id, right id) -> (rank, merged id).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace longstride::model {

struct MergeRule {
  uint32_t rank;  // lower merges first
  int32_t id;     // of the merged token; < 0: there is no such rule
};

// Open addressing over 16-byte entries. Reads are thread-safe once built.
class MergeTable {
 public:
  explicit MergeTable(size_t expected_rules = 0);

  // A pair that is there already keeps its rule unless `replace`. REQUIRES ids >= 0.
  void Add(int32_t left, int32_t right, MergeRule rule, bool replace);
  MergeRule Find(int32_t left, int32_t right) const {
    const uint64_t key = Key(left, right);
    for (size_t slot = Hash(key) & mask_;; slot = (slot + 1) & mask_) {
      if (entries_[slot].key == key) return entries_[slot].rule;
      if (entries_[slot].key == kEmpty) return {0, -1};
    }
  }
  size_t size() const { return size_; }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // ids are not negative, so no pair has this key
  struct Entry {
    uint64_t key;
    MergeRule rule;
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  static size_t Hash(uint64_t key) {
    key *= 0x9E3779B97F4A7C15u;
    return static_cast<size_t>(key ^ (key >> 32));
  }
  void Grow(size_t slots);

  std::vector<Entry> entries_;
  size_t mask_ = 0;
  size_t size_ = 0;
};

}  // namespace longstride::model

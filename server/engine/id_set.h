#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "config/base/check.h"

namespace longstride::engine {

// A set of ids 0 .. capacity-1 as a tree of bitmaps: insert, erase and the lowest or highest member
// take one word per level (4 levels hold 16 million ids).
class IdSet {
 public:
  explicit IdSet(int32_t capacity = 0, bool full = false) : capacity_(capacity) {
    size_t words = static_cast<size_t>(capacity);
    do {
      words = (words + 63) / 64;
      levels_.emplace_back(words, uint64_t{0});
    } while (words > 1);
    if (full) {
      for (int32_t id = 0; id < capacity; ++id) Insert(id);
    }
  }

  int32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  bool Contains(int32_t id) const {
    return (levels_[0][static_cast<size_t>(id) / 64] >> (id % 64) & 1) != 0;
  }

  void Insert(int32_t id) {
    LS_CHECK(id >= 0 && id < capacity_ && !Contains(id));
    size_t index = static_cast<size_t>(id);
    for (auto& level : levels_) {
      uint64_t& word = level[index / 64];
      const bool was_empty = word == 0;
      word |= uint64_t{1} << (index % 64);
      if (!was_empty) break;
      index /= 64;
    }
    ++size_;
  }

  void Erase(int32_t id) {
    LS_CHECK(id >= 0 && id < capacity_ && Contains(id));
    size_t index = static_cast<size_t>(id);
    for (auto& level : levels_) {
      uint64_t& word = level[index / 64];
      word &= ~(uint64_t{1} << (index % 64));
      if (word != 0) break;
      index /= 64;
    }
    --size_;
  }

  // -1 if empty.
  int32_t Lowest() const {
    if (empty()) return -1;
    size_t index = 0;
    for (size_t level = levels_.size(); level-- > 0;) {
      index = index * 64 + static_cast<size_t>(std::countr_zero(levels_[level][index]));
    }
    return static_cast<int32_t>(index);
  }
  int32_t Highest() const {
    if (empty()) return -1;
    size_t index = 0;
    for (size_t level = levels_.size(); level-- > 0;) {
      index = index * 64 + 63 - static_cast<size_t>(std::countl_zero(levels_[level][index]));
    }
    return static_cast<int32_t>(index);
  }

 private:
  int32_t capacity_ = 0;
  int32_t size_ = 0;
  std::vector<std::vector<uint64_t>> levels_;  // [0]: one bit per id; [l]: one per word of l-1
};

}  // namespace longstride::engine

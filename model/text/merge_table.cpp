#include "model/text/merge_table.h"

#include <algorithm>
#include <bit>

namespace longstride::model {

MergeTable::MergeTable(size_t expected_rules) { Grow(std::bit_ceil(expected_rules * 2 + 16)); }

void MergeTable::Grow(size_t slots) {
  std::vector<Entry> old(slots, Entry{kEmpty, {0, -1}});
  old.swap(entries_);
  mask_ = slots - 1;
  for (const Entry& entry : old) {
    if (entry.key == kEmpty) continue;
    size_t slot = Hash(entry.key) & mask_;
    while (entries_[slot].key != kEmpty) slot = (slot + 1) & mask_;
    entries_[slot] = entry;
  }
}

void MergeTable::Add(int32_t left, int32_t right, MergeRule rule, bool replace) {
  if ((size_ + 1) * 2 > entries_.size()) Grow(entries_.size() * 2);
  const uint64_t key = Key(left, right);
  size_t slot = Hash(key) & mask_;
  while (entries_[slot].key != kEmpty && entries_[slot].key != key) slot = (slot + 1) & mask_;
  if (entries_[slot].key == key && !replace) return;
  if (entries_[slot].key == kEmpty) ++size_;
  entries_[slot] = {key, rule};
}

}  // namespace longstride::model

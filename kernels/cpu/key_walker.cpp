#include "kernels/cpu/key_walker.h"

#include <algorithm>

namespace longstride::kernels::cpu {
namespace {

// Bits [low, high] of 64, clipped.
uint64_t BitRange(int64_t low, int64_t high) {
  low = std::max<int64_t>(low, 0);
  high = std::min<int64_t>(high, kKeyBlock - 1);
  if (low > high) return 0;
  return (~uint64_t{0} >> (kKeyBlock - 1 - high)) & (~uint64_t{0} << low);
}

}  // namespace

int64_t KeyWalker::Peek() {
  while (cursor_ < count_ && entries_[cursor_] == kNoEntry) ++cursor_;
  if (cursor_ == count_) return -1;
  const int64_t entry = entries_[cursor_];
  if (entry < last_ || (entry == last_ && half_ == 0)) {
    bad_order_ = true;
    return -1;
  }
  return entry;
}

bool KeyWalker::Next(KeyBlock* block) {
  return entry_tokens_ == 1 ? NextOfTokens(block) : NextOfBlocks(block);
}

bool KeyWalker::NextOfTokens(KeyBlock* block) {
  block->tokens = true;
  block->count = 0;
  while (block->count < kKeyBlock) {
    const int64_t position = Peek();
    if (position < 0) break;
    const int64_t segment = position / kAttentionSegment;
    if (block->count == 0) block->segment = segment;
    if (segment != block->segment) break;
    block->positions[block->count] = static_cast<int32_t>(position);
    block->ranks[block->count] = static_cast<int32_t>(cursor_);
    ++block->count;
    last_ = position;
    ++cursor_;
  }
  return block->count > 0 && !bad_order_;
}

bool KeyWalker::NextOfBlocks(KeyBlock* block) {
  block->tokens = false;
  block->exists = 0;
  block->count = kKeyBlock;
  int64_t entry = Peek();
  if (entry < 0) return false;
  if (entry_tokens_ > kKeyBlock) {
    block->base = entry * entry_tokens_ + half_ * kKeyBlock;
    block->exists = ~uint64_t{0};
    last_ = entry;
    if (++half_ == entry_tokens_ / kKeyBlock) {
      half_ = 0;
      ++cursor_;
    }
  } else {
    const int64_t per_block = kKeyBlock / entry_tokens_;
    const int64_t page = entry / per_block;
    block->base = page * kKeyBlock;
    while (entry >= 0 && entry / per_block == page) {
      const int64_t first = entry % per_block * entry_tokens_;
      block->exists |= BitRange(first, first + entry_tokens_ - 1);
      last_ = entry;
      ++cursor_;
      entry = Peek();
    }
  }
  block->segment = block->base / kAttentionSegment;
  return !bad_order_;
}

uint64_t VisibleKeys(const KeyBlock& block, const VisibleRange& r, int32_t limit) {
  if (!block.tokens) {
    return (BitRange(r.low - block.base, r.high - block.base) |
            BitRange(r.sink_low - block.base, r.sink_high - block.base)) &
           block.exists;
  }
  const int32_t* begin = block.positions;
  const int32_t* end = begin + block.count;
  const auto index = [&](int64_t position) {
    return std::lower_bound(begin, end, position) - begin;
  };
  const int64_t ranked =
      std::lower_bound(block.ranks, block.ranks + block.count, limit) - block.ranks;
  return (BitRange(index(r.low), index(r.high + 1) - 1) |
          BitRange(index(r.sink_low), index(r.sink_high + 1) - 1)) &
         BitRange(0, ranked - 1);
}

}  // namespace longstride::kernels::cpu

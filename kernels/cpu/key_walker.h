// Turns the lists of a KvSelection into blocks of at most 64 keys, the unit in which the attention
// loops work. Blocks never cross a segment of kAttentionSegment positions.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/op_params.h"

namespace longstride::kernels::cpu {

// The positions that one query row may see by its edge rule: [low, high], and [chunk_low,
// sink_high] for the sink tokens. Empty where the first is above the second.
struct VisibleRange {
  int64_t low, high;
  int64_t sink_low, sink_high;
};

inline VisibleRange RangeOf(const EdgeRule& edge, int64_t position, int64_t kv_len) {
  VisibleRange r;
  r.high = kv_len - 1;
  if (edge.causal && position < r.high) r.high = position;
  r.sink_low = 0;
  if (edge.chunk > 0) {
    r.sink_low = position / edge.chunk * edge.chunk;
    const int64_t chunk_high = r.sink_low + edge.chunk - 1;
    if (chunk_high < r.high) r.high = chunk_high;
  }
  r.low = r.sink_low;
  if (!edge.causal && position < edge.sink_tokens) {
    r.sink_high = -1;
    return r;
  }
  if (edge.window > 0 && position - edge.window + 1 > r.low) r.low = position - edge.window + 1;
  r.sink_high = edge.window > 0 && edge.sink_tokens > 0 ? edge.sink_tokens - 1 : -1;
  if (r.sink_high > r.high) r.sink_high = r.high;
  if (edge.window > 0 && position + edge.window - 1 < r.high) r.high = position + edge.window - 1;
  return r;
}

// Up to 64 keys. With block entries key k is position base + k and exists where its bit is set;
// with token entries the keys are positions[0 .. count), ascending, and `ranks` are their places in
// the list.
struct KeyBlock {
  int64_t segment = 0;
  bool tokens = false;
  int64_t base = 0;
  uint64_t exists = 0;
  int32_t count = 0;
  int32_t positions[kKeyBlock];
  int32_t ranks[kKeyBlock];
};

// Walks one list, [entries, entries + count). Entries must ascend; kNoEntry is skipped.
class KeyWalker {
 public:
  KeyWalker(const int32_t* entries, int64_t count, int32_t entry_tokens)
      : entries_(entries), count_(count), entry_tokens_(entry_tokens) {}

  // Fills the next block; false at the end of the list. After false, `bad_order` tells whether the
  // list ended or an entry did not ascend.
  bool Next(KeyBlock* block);
  bool bad_order() const { return bad_order_; }

 private:
  bool NextOfTokens(KeyBlock* block);
  bool NextOfBlocks(KeyBlock* block);
  // The entry at the cursor, kNoEntry skipped; -1 at the end.
  int64_t Peek();

  const int32_t* entries_;
  int64_t count_;
  int32_t entry_tokens_;
  int64_t cursor_ = 0;
  int64_t last_ = -1;
  int64_t half_ = 0;  // pages of the current 128-token entry already handed out
  bool bad_order_ = false;
};

// Bit k: the row with range `r` sees key k; rows of a token list see ranks below `limit` only.
uint64_t VisibleKeys(const KeyBlock& block, const VisibleRange& r, int32_t limit);

}  // namespace longstride::kernels::cpu

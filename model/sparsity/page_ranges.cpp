#include <algorithm>
#include <numeric>

#include "model/sparsity/patterns.h"

namespace longstride::model {

void SelectPageRanges(int32_t sink_tokens, KeyRangeFn range, int64_t argument,
                      SelectionBuilder* out) {
  const int64_t entry = out->entry_tokens;
  const auto keys_of = [&](size_t t) { return range(out->tiles[t], out->kv_lens[t], argument); };
  int64_t end_entry = 0;
  for (size_t t = 0; t < out->tiles.size(); ++t) {
    end_entry = std::max(end_entry, (keys_of(t).end + entry - 1) / entry);
  }
  out->entries.resize(static_cast<size_t>(end_entry));
  std::iota(out->entries.begin(), out->entries.end(), 0);
  const int64_t sink_entries = (sink_tokens + entry - 1) / entry;
  for (size_t t = 0; t < out->tiles.size(); ++t) {
    const KeyRange keys = keys_of(t);
    const int64_t begin = keys.begin / entry;
    const int64_t end = (keys.end + entry - 1) / entry;
    const auto tile = static_cast<int32_t>(t);
    if (begin <= sink_entries) {
      // The sinks' pages touch the range (or there are none before it).
      const int64_t first = sink_entries > 0 ? 0 : begin;
      out->SetList(0, tile, first, end - first);
      continue;
    }
    if (sink_entries == 0) {
      out->SetList(0, tile, begin, end - begin);
      continue;
    }
    const auto list = static_cast<int64_t>(out->entries.size());
    for (int64_t e = 0; e < sink_entries; ++e) out->entries.push_back(static_cast<int32_t>(e));
    for (int64_t e = begin; e < end; ++e) out->entries.push_back(static_cast<int32_t>(e));
    out->SetList(0, tile, list, sink_entries + end - begin);
  }
}

}  // namespace longstride::model

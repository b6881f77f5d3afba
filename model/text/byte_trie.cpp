#include "model/text/byte_trie.h"

#include <algorithm>

namespace longstride::model {

ByteTrie::ByteTrie(std::vector<std::pair<std::string_view, int32_t>> entries) {
  roots_.fill(kNone);
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  // Breadth first over ranges of the sorted strings, so that a node's edges lie together.
  struct Range {
    size_t begin, end, depth;
    uint32_t node;
  };
  std::vector<Range> queue;
  nodes_.push_back({});
  queue.push_back({0, entries.size(), 0, 0});
  for (size_t head = 0; head < queue.size(); ++head) {
    const Range range = queue[head];
    size_t i = range.begin;
    while (i < range.end && entries[i].first.size() == range.depth) {
      if (range.depth > 0) nodes_[range.node].value = entries[i].second;
      ++i;
    }
    nodes_[range.node].first_edge = static_cast<uint32_t>(edges_.size());
    while (i < range.end) {
      const auto byte = static_cast<unsigned char>(entries[i].first[range.depth]);
      size_t j = i;
      while (j < range.end && static_cast<unsigned char>(entries[j].first[range.depth]) == byte) ++j;
      const auto child = static_cast<uint32_t>(nodes_.size());
      nodes_.push_back({});
      edges_.push_back({byte, child});
      ++nodes_[range.node].num_edges;
      if (range.depth == 0) roots_[byte] = child;
      queue.push_back({i, j, range.depth + 1, child});
      i = j;
    }
  }
}

uint32_t ByteTrie::Child(uint32_t node, unsigned char byte) const {
  const auto begin = edges_.begin() + nodes_[node].first_edge;
  const auto end = begin + nodes_[node].num_edges;
  const auto it =
      std::lower_bound(begin, end, byte, [](const Edge& e, unsigned char b) { return e.byte < b; });
  return it == end || it->byte != byte ? kNone : it->node;
}

}  // namespace longstride::model

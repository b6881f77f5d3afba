// A compact trie over byte strings, for longest-match searches.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace longstride::model {

// Looking for strings at every place of a text takes the text's length times the longest string's:
// those that come from a file may not be longer.
inline constexpr size_t kMaxSearchedBytes = 1024;

// Built once; reads are thread-safe. The empty string is not stored.
class ByteTrie {
 public:
  static constexpr uint32_t kNone = 0;  // no node

  ByteTrie() { roots_.fill(kNone); }
  // Of equal strings the last one counts. Values must be >= 0.
  explicit ByteTrie(std::vector<std::pair<std::string_view, int32_t>> entries);

  bool empty() const { return nodes_.size() <= 1; }
  // The node after the first byte, and after one byte more; kNone if no string goes on so.
  uint32_t Root(unsigned char byte) const { return roots_[byte]; }
  uint32_t Child(uint32_t node, unsigned char byte) const;
  // The value of the string that ends here, or -1.
  int32_t Value(uint32_t node) const { return nodes_[node].value; }

 private:
  struct Node {
    int32_t value = -1;
    uint32_t first_edge = 0;
    uint16_t num_edges = 0;
  };
  struct Edge {
    unsigned char byte;
    uint32_t node;
  };
  std::array<uint32_t, 256> roots_;
  std::vector<Node> nodes_;  // nodes_[0] is the root
  std::vector<Edge> edges_;
};

}  // namespace longstride::model

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longstride::engine {

// Finds stop strings in a text that comes in pieces, however it is cut: the hit is the stop string
// that is complete first; of several that end together, the longest. One automaton
// (Knuth-Morris-Pratt) per stop string. `stops` must outlive the matcher.
class StopMatcher {
 public:
  // Precomputed from a request's stop strings, shared by its choices. Empty strings are ignored.
  class Table {
   public:
    explicit Table(std::vector<std::string> stops);
    const std::vector<std::string>& stops() const { return stops_; }

   private:
    friend class StopMatcher;
    std::vector<std::string> stops_;
    std::vector<std::vector<int32_t>> failure_;
  };
  struct Hit {
    int32_t index = 0;  // into stops()
    int64_t begin = 0;  // offsets into the text pushed so far
    int64_t end = 0;
  };

  explicit StopMatcher(const Table* table)
      : table_(table), matched_(table->stops_.size(), 0) {}

  // Text behind a hit is not looked at.
  std::optional<Hit> Push(std::string_view text);
  // Goes past text that cannot be part of a hit, and forgets partial matches.
  void Skip(size_t bytes);
  // Text before this offset is in no hit to come.
  int64_t safe_end() const;

 private:
  const Table* table_;
  std::vector<int32_t> matched_;  // bytes of each stop string matched at the end of the text
  int64_t consumed_ = 0;
};

}  // namespace longstride::engine

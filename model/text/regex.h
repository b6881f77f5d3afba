// Splitting text by the regular expressions of pre-tokenisers: PCRE2 with JIT, bounded.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace longstride::model {

// One piece of a text: [begin, end) in bytes, and whether the expression matched it.
struct RegexPiece {
  size_t begin;
  size_t end;
  bool is_match;
};

// A compiled expression. Immutable and thread-safe.
//
// Patterns are written for Oniguruma. Constructs that it reads otherwise than PCRE2 does (\w, \b,
// \h, \R, \X, POSIX classes, && in classes, script properties, inline options but "i") are refused
// by name rather than silently misread.
class Regex {
 public:
  static absl::StatusOr<std::unique_ptr<Regex>> Compile(std::string_view pattern);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // Cuts `subject` into matches and what lies between them, in order, covering it; appends to
  // `pieces`. An empty match cuts and yields no piece. REQUIRES valid UTF-8.
  // ResourceExhausted if matching exceeds the limits (a pattern that backtracks without end).
  absl::Status Split(std::string_view subject, std::vector<RegexPiece>* pieces) const;

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);
  std::unique_ptr<Code> code_;
};

}  // namespace longstride::model

// Strings that remember which of their bytes the template wrote and which came from its input.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace longstride::model::jinja {

enum class Origin { kTemplate, kInput };

// UTF-8 with an origin per byte, kept as the places where the origin flips.
class Text {
 public:
  Text() = default;
  Text(std::string bytes, Origin origin) : bytes_(std::move(bytes)), first_(origin) {}

  const std::string& bytes() const { return bytes_; }
  std::string_view view() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  bool HasInput() const { return !bytes_.empty() && (first_ == Origin::kInput || !flips_.empty()); }
  // What a result that mixes all bytes of this text counts as.
  Origin MixedOrigin() const { return HasInput() ? Origin::kInput : Origin::kTemplate; }

  void Append(const Text& other) { AppendSlice(other, 0, other.size()); }
  void Append(std::string_view bytes, Origin origin);
  // Appends the bytes [begin, end) of `other`. REQUIRES begin <= end <= other.size().
  void AppendSlice(const Text& other, size_t begin, size_t end);
  Text Slice(size_t begin, size_t end) const;

  struct Span {
    std::string_view bytes;
    Origin origin;
  };
  // Maximal stretches of one origin, in order; none is empty.
  std::vector<Span> Spans() const;

 private:
  static Origin Other(Origin o) { return o == Origin::kInput ? Origin::kTemplate : Origin::kInput; }
  Origin Last() const { return flips_.size() % 2 == 0 ? first_ : Other(first_); }

  std::string bytes_;
  Origin first_ = Origin::kTemplate;
  std::vector<size_t> flips_;  // ascending offsets, each in (0, size)
};

}  // namespace longstride::model::jinja

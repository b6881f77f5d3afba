#include "model/text/jinja/text.h"

#include <algorithm>

namespace longstride::model::jinja {

void Text::Append(std::string_view bytes, Origin origin) {
  if (bytes.empty()) return;
  if (bytes_.empty()) {
    first_ = origin;
    flips_.clear();
  } else if (Last() != origin) {
    flips_.push_back(bytes_.size());
  }
  bytes_ += bytes;
}

void Text::AppendSlice(const Text& other, size_t begin, size_t end) {
  auto flip = std::upper_bound(other.flips_.begin(), other.flips_.end(), begin);
  Origin origin =
      (flip - other.flips_.begin()) % 2 == 0 ? other.first_ : Other(other.first_);
  while (begin < end) {
    const size_t stop = flip == other.flips_.end() ? end : std::min(end, *flip);
    Append(std::string_view(other.bytes_).substr(begin, stop - begin), origin);
    begin = stop;
    if (flip != other.flips_.end()) ++flip;
    origin = Other(origin);
  }
}

Text Text::Slice(size_t begin, size_t end) const {
  Text out;
  out.AppendSlice(*this, begin, end);
  return out;
}

std::vector<Text::Span> Text::Spans() const {
  std::vector<Span> spans;
  size_t begin = 0;
  Origin origin = first_;
  for (size_t i = 0; i <= flips_.size(); ++i) {
    const size_t end = i < flips_.size() ? flips_[i] : bytes_.size();
    if (begin < end) spans.push_back({std::string_view(bytes_).substr(begin, end - begin), origin});
    begin = end;
    origin = Other(origin);
  }
  return spans;
}

}  // namespace longstride::model::jinja

#include "server/engine/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace longstride::engine {

StopMatcher::Table::Table(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    if (stop.empty()) continue;
    std::vector<int32_t> failure(stop.size(), 0);
    for (size_t i = 1, k = 0; i < stop.size(); ++i) {
      while (k > 0 && stop[i] != stop[k]) k = static_cast<size_t>(failure[k - 1]);
      if (stop[i] == stop[k]) ++k;
      failure[i] = static_cast<int32_t>(k);
    }
    stops_.push_back(std::move(stop));
    failure_.push_back(std::move(failure));
  }
}

std::optional<StopMatcher::Hit> StopMatcher::Push(std::string_view text) {
  if (table_->stops_.empty()) {
    consumed_ += static_cast<int64_t>(text.size());
    return std::nullopt;
  }
  for (const char c : text) {
    ++consumed_;
    std::optional<Hit> hit;
    for (size_t i = 0; i < matched_.size(); ++i) {
      const std::string& stop = table_->stops_[i];
      auto k = static_cast<size_t>(matched_[i]);
      while (k > 0 && (k == stop.size() || stop[k] != c)) {
        k = static_cast<size_t>(table_->failure_[i][k - 1]);
      }
      if (stop[k] == c) ++k;
      matched_[i] = static_cast<int32_t>(k);
      if (k < stop.size()) continue;
      const int64_t begin = consumed_ - static_cast<int64_t>(stop.size());
      if (!hit || begin < hit->begin) {
        hit = Hit{.index = static_cast<int32_t>(i), .begin = begin, .end = consumed_};
      }
    }
    if (hit) return hit;
  }
  return std::nullopt;
}

void StopMatcher::Skip(size_t bytes) {
  consumed_ += static_cast<int64_t>(bytes);
  std::fill(matched_.begin(), matched_.end(), 0);
}

int64_t StopMatcher::safe_end() const {
  int32_t held = 0;
  for (const int32_t matched : matched_) held = std::max(held, matched);
  return consumed_ - held;
}

}  // namespace longstride::engine

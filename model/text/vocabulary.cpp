#include "model/text/vocabulary.h"

#include <algorithm>
#include <cstring>

#include "config/base/check.h"

namespace longstride::model {

std::string_view Vocabulary::Store(std::string_view text) {
  constexpr size_t kChunk = 256 * 1024;
  if (chunk_size_ - chunk_used_ < text.size() + 1) {
    chunk_size_ = std::max(kChunk, text.size() + 1);
    chunk_used_ = 0;
    chunks_.push_back(std::make_unique<char[]>(chunk_size_));
  }
  char* place = chunks_.back().get() + chunk_used_;
  if (!text.empty()) std::memcpy(place, text.data(), text.size());
  chunk_used_ += text.size() + 1;  // one byte more, so that an empty text has a place of its own
  return {place, text.size()};
}

void Vocabulary::Add(int32_t id, std::string_view text) {
  LS_CHECK(id >= 0 && id <= kMaxId);
  if (id >= size()) texts_.resize(static_cast<size_t>(id) + 1);
  const std::string_view stored = Store(text);
  texts_[static_cast<size_t>(id)] = stored;
  ids_[stored] = id;
}

int32_t Vocabulary::Find(std::string_view text) const {
  const auto it = ids_.find(text);
  return it == ids_.end() ? -1 : it->second;
}

}  // namespace longstride::model

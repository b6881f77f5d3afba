#include "model/text/added_tokens.h"

#include <algorithm>

#include "model/text/unicode.h"

namespace longstride::model {
namespace {

// Start of the character that ends at `end`. REQUIRES end > 0.
size_t PreviousCharacter(std::string_view text, size_t end) {
  size_t start = end - 1;
  while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
  return start;
}

bool WordEndsAt(std::string_view text, size_t pos) {
  if (pos == 0) return false;
  size_t start = PreviousCharacter(text, pos);
  return IsWordCharacter(DecodeUtf8(text, &start));
}

bool WordStartsAt(std::string_view text, size_t pos) {
  return pos < text.size() && IsWordCharacter(DecodeUtf8(text, &pos));
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::vector<std::pair<std::string_view, int32_t>> all, plain;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    if (tokens_[i].content.empty()) continue;
    all.emplace_back(tokens_[i].content, static_cast<int32_t>(i));
    if (!tokens_[i].special) plain.emplace_back(tokens_[i].content, static_cast<int32_t>(i));
    has_special_ = has_special_ || tokens_[i].special;
  }
  if (!all.empty()) all_ = ByteTrie(std::move(all));
  if (!plain.empty()) plain_ = ByteTrie(std::move(plain));
}

// `trusted_end`: end of the trusted range that `pos` lies in, or 0.
const AddedToken* AddedTokenMatcher::LongestAt(std::string_view text, size_t pos,
                                               size_t trusted_end) const {
  const ByteTrie& trie = trusted_end > 0 ? all_ : plain_;
  int32_t found = -1;
  uint32_t node = trie.Root(static_cast<unsigned char>(text[pos]));
  for (size_t end = pos + 1; node != ByteTrie::kNone; ++end) {
    const int32_t value = trie.Value(node);
    if (value >= 0 && (end <= trusted_end || !tokens_[static_cast<size_t>(value)].special)) {
      found = value;
    }
    if (end >= text.size()) break;
    node = trie.Child(node, static_cast<unsigned char>(text[end]));
  }
  return found < 0 ? nullptr : &tokens_[static_cast<size_t>(found)];
}

std::vector<TextSegment> AddedTokenMatcher::Split(std::string_view text,
                                                  const TrustedRanges& trusted) const {
  std::vector<TextSegment> segments;
  size_t done = 0;  // everything before is in a segment
  size_t pos = 0;
  auto range = trusted.begin();
  while (pos < text.size() && !empty()) {
    if (all_.Root(static_cast<unsigned char>(text[pos])) == ByteTrie::kNone) {
      ++pos;
      continue;
    }
    while (range != trusted.end() && range->second <= pos) ++range;
    const bool inside = range != trusted.end() && range->first <= pos;
    const AddedToken* token = LongestAt(text, pos, inside ? range->second : 0);
    if (token == nullptr) {
      ++pos;
      continue;
    }
    size_t begin = pos;
    size_t end = pos + token->content.size();
    pos = end;
    if (token->single_word && (WordEndsAt(text, begin) || WordStartsAt(text, end))) continue;
    while (token->lstrip && begin > done) {
      const size_t start = PreviousCharacter(text, begin);
      size_t next = start;
      if (!IsWhiteSpace(DecodeUtf8(text, &next))) break;
      begin = std::max(start, done);
    }
    while (token->rstrip && end < text.size()) {
      size_t next = end;
      if (!IsWhiteSpace(DecodeUtf8(text, &next))) break;
      end = next;
    }
    if (done < begin) segments.push_back({done, begin, -1});
    segments.push_back({begin, end, token->id});
    done = pos = end;
  }
  if (done < text.size()) segments.push_back({done, text.size(), -1});
  return segments;
}

}  // namespace longstride::model

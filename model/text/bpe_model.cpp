#include "model/text/bpe_model.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "config/base/check.h"
#include "model/text/unicode.h"

namespace longstride::model {
namespace {

constexpr size_t kLowChars = 0x3000;
constexpr size_t kSmallPiece = 48;  // up to here scanning for the least rank beats a heap
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();

// Scans for the least rank at every step: quadratic, but quickest for words.
void MergeSmall(const MergeTable& merges, int32_t* ids, size_t* count) {
  uint32_t rank[kSmallPiece];
  int32_t merged[kSmallPiece];
  size_t n = *count;
  const auto refresh = [&](size_t i) {
    const MergeRule rule = merges.Find(ids[i], ids[i + 1]);
    rank[i] = rule.id < 0 ? kNoRank : rule.rank;
    merged[i] = rule.id;
  };
  for (size_t i = 0; i + 1 < n; ++i) refresh(i);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (rank[i] < rank[best]) best = i;
    }
    if (rank[best] == kNoRank) break;
    ids[best] = merged[best];
    const size_t tail = n - best - 2;
    std::memmove(ids + best + 1, ids + best + 2, tail * sizeof *ids);
    if (tail > 0) {
      std::memmove(rank + best + 1, rank + best + 2, (tail - 1) * sizeof *rank);
      std::memmove(merged + best + 1, merged + best + 2, (tail - 1) * sizeof *merged);
    }
    --n;
    if (best > 0) refresh(best - 1);
    if (best + 1 < n) refresh(best);
  }
  *count = n;
}

// A doubly linked list of symbols and a heap of candidate merges, some of them out of date.
class LargeMerger {
 public:
  LargeMerger(const MergeTable& merges, std::vector<int32_t>* ids) : merges_(merges), ids_(*ids) {}

  void Run() {
    const auto n = static_cast<int32_t>(ids_.size());
    next_.resize(ids_.size());
    previous_.resize(ids_.size());
    for (int32_t i = 0; i < n; ++i) {
      next_[static_cast<size_t>(i)] = i + 1 < n ? i + 1 : -1;
      previous_[static_cast<size_t>(i)] = i - 1;
    }
    for (int32_t i = 0; i + 1 < n; ++i) AddCandidate(i, i + 1, /*sift=*/false);
    std::make_heap(heap_.begin(), heap_.end(), Later);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), Later);
      const Candidate top = heap_.back();
      heap_.pop_back();
      Apply(top);
    }
    std::erase(ids_, kRemoved);
  }

 private:
  static constexpr int32_t kRemoved = -1;
  struct Candidate {
    uint64_t order;  // rank, then position
    int32_t left, right;
  };
  static bool Later(const Candidate& a, const Candidate& b) { return a.order > b.order; }
  int32_t& At(std::vector<int32_t>& v, int32_t i) { return v[static_cast<size_t>(i)]; }

  void AddCandidate(int32_t position, int32_t next, bool sift) {
    const int32_t left = At(ids_, position), right = At(ids_, next);
    const MergeRule rule = merges_.Find(left, right);
    if (rule.id < 0) return;
    heap_.push_back({static_cast<uint64_t>(rule.rank) << 32 | static_cast<uint32_t>(position), left,
                     right});
    if (sift) std::push_heap(heap_.begin(), heap_.end(), Later);
  }

  void Apply(const Candidate& top) {
    const auto position = static_cast<int32_t>(top.order & 0xFFFFFFFFu);
    if (At(ids_, position) != top.left) return;
    const int32_t second = At(next_, position);
    if (second < 0 || At(ids_, second) != top.right) return;
    At(ids_, position) = merges_.Find(top.left, top.right).id;
    At(ids_, second) = kRemoved;
    const int32_t after = At(next_, second);
    At(next_, position) = after;
    if (after >= 0) {
      At(previous_, after) = position;
      AddCandidate(position, after, /*sift=*/true);
    }
    const int32_t before = At(previous_, position);
    if (before >= 0) AddCandidate(before, position, /*sift=*/true);
  }

  const MergeTable& merges_;
  std::vector<int32_t>& ids_;
  std::vector<int32_t> next_, previous_;
  std::vector<Candidate> heap_;
};

}  // namespace

BpeModel::BpeModel(BpeSpec spec) : spec_(std::move(spec)) {
  if (spec_.byte_level) return;
  low_chars_.assign(kLowChars, -1);
  for (const auto& [c, id] : spec_.char_ids) {
    if (c < kLowChars) low_chars_[c] = id;
  }
  // A cut may not change what becomes of unknown characters: they must all become bytes.
  const bool all_bytes = spec_.byte_fallback &&
                         std::all_of(spec_.byte_ids.begin(), spec_.byte_ids.end(),
                                     [](int32_t id) { return id >= 0; });
  if (!all_bytes || spec_.inner_pairs.empty() || !spec_.whole_pieces.empty()) return;
  inner_pairs_ = std::make_unique<std::bitset<kPairBits>>();
  for (const auto& [a, b] : spec_.inner_pairs) inner_pairs_->set(PairHash(a, b));
  spec_.inner_pairs = {};
}

int32_t BpeModel::CharId(char32_t c) const {
  if (c < kLowChars) return low_chars_[c];
  const auto it = spec_.char_ids.find(c);
  return it == spec_.char_ids.end() ? -1 : it->second;
}

void BpeModel::AppendSymbols(std::string_view piece, std::vector<int32_t>* symbols) const {
  // An unknown token waits until the next known character, so that unknown runs can be fused.
  bool pending = false;
  const auto flush = [&] {
    if (pending) symbols->push_back(*spec_.unknown_id);
    pending = false;
  };
  size_t pos = 0;
  while (pos < piece.size()) {
    const size_t start = pos;
    int32_t id;
    if (spec_.byte_level) {
      id = spec_.byte_ids[static_cast<unsigned char>(piece[pos++])];
    } else {
      id = CharId(DecodeUtf8(piece, &pos));
    }
    if (id >= 0) {
      flush();
      symbols->push_back(id);
      continue;
    }
    if (spec_.byte_fallback && !spec_.byte_level) {
      const std::string_view bytes = piece.substr(start, pos - start);
      const auto has_token = [this](char b) {
        return spec_.byte_ids[static_cast<unsigned char>(b)] >= 0;
      };
      if (std::all_of(bytes.begin(), bytes.end(), has_token)) {
        for (char b : bytes) symbols->push_back(spec_.byte_ids[static_cast<unsigned char>(b)]);
        continue;
      }
    }
    if (!spec_.unknown_id.has_value()) continue;  // dropped, as Hugging Face does
    if (!spec_.fuse_unknown) flush();
    pending = true;
  }
  flush();
}

void BpeModel::Merge(const MergeTable& merges, std::vector<int32_t>* symbols) {
  LS_CHECK(symbols->size() <= static_cast<size_t>(std::numeric_limits<int32_t>::max()));
  if (symbols->size() <= kSmallPiece) {
    size_t count = symbols->size();
    MergeSmall(merges, symbols->data(), &count);
    symbols->resize(count);
  } else {
    LargeMerger(merges, symbols).Run();
  }
}

absl::Status BpeModel::Encode(std::string_view piece, std::vector<int32_t>* ids) const {
  if (!spec_.whole_pieces.empty()) {
    const auto it = spec_.whole_pieces.find(absl::string_view(piece.data(), piece.size()));
    if (it != spec_.whole_pieces.end()) {
      ids->push_back(it->second);
      return absl::OkStatus();
    }
  }
  const size_t base = ids->size();
  AppendSymbols(piece, ids);
  size_t count = ids->size() - base;
  if (count <= kSmallPiece) {
    MergeSmall(spec_.merges, ids->data() + base, &count);
    ids->resize(base + count);
    return absl::OkStatus();
  }
  std::vector<int32_t> symbols(ids->begin() + static_cast<std::ptrdiff_t>(base), ids->end());
  Merge(spec_.merges, &symbols);
  ids->resize(base);
  ids->insert(ids->end(), symbols.begin(), symbols.end());
  return absl::OkStatus();
}

size_t BpeModel::IndependentPrefix(std::string_view text) const {
  if (inner_pairs_ == nullptr) return text.size();
  size_t pos = 0;
  char32_t left = DecodeUtf8(text, &pos);
  while (pos < text.size()) {
    const size_t boundary = pos;
    const char32_t right = DecodeUtf8(text, &pos);
    // No token that merging can make holds this pair, so no merge ever crosses here.
    if (!inner_pairs_->test(PairHash(left, right))) return boundary;
    left = right;
  }
  return text.size();
}

}  // namespace longstride::model

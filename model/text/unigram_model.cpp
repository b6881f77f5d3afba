#include "model/text/unigram_model.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_format.h"
#include "config/base/status.h"
#include "model/text/unicode.h"

namespace longstride::model {
namespace {

constexpr double kUnknownPenalty = 10.0;  // below the worst token, as SentencePiece has it

}  // namespace

absl::StatusOr<std::unique_ptr<UnigramModel>> UnigramModel::Create(Spec spec) {
  for (const auto& [text, score] : spec.pieces) {
    if (!std::isfinite(score)) {
      return absl::InvalidArgumentError("the unigram vocabulary has a score that is not finite");
    }
    if (text.size() > kMaxSearchedBytes) {
      return absl::InvalidArgumentError(StrCat("the unigram vocabulary has a token of ", text.size(),
                                               " bytes; at most ", kMaxSearchedBytes, " are allowed"));
    }
  }
  if (spec.pieces.empty()) return absl::InvalidArgumentError("the unigram vocabulary is empty");
  if (spec.unknown_id.has_value() &&
      (*spec.unknown_id < 0 || static_cast<size_t>(*spec.unknown_id) >= spec.pieces.size())) {
    return absl::InvalidArgumentError(
        StrCat("the unigram vocabulary's unk_id is ", *spec.unknown_id, "; it has ",
                     spec.pieces.size(), " tokens"));
  }
  return std::unique_ptr<UnigramModel>(new UnigramModel(std::move(spec)));
}

UnigramModel::UnigramModel(Spec spec) : spec_(std::move(spec)) {
  double worst = std::numeric_limits<double>::infinity();
  by_text_.reserve(spec_.pieces.size());
  for (size_t i = 0; i < spec_.pieces.size(); ++i) {
    by_text_[spec_.pieces[i].first] = static_cast<int32_t>(i);
    worst = std::min(worst, spec_.pieces[i].second);
  }
  unknown_score_ = worst - kUnknownPenalty;
  for (int b = 0; b < 256; ++b) {
    const auto it = by_text_.find(absl::StrFormat("<0x%02X>", b));
    byte_ids_[static_cast<size_t>(b)] = it == by_text_.end() ? -1 : it->second;
  }
  trie_ = ByteTrie({by_text_.begin(), by_text_.end()});
}

void UnigramModel::AppendUnknown(std::string_view text, std::vector<int32_t>* ids) const {
  if (const auto it = by_text_.find(text); it != by_text_.end()) {
    ids->push_back(it->second);
    return;
  }
  const bool bytes = spec_.byte_fallback && std::all_of(text.begin(), text.end(), [this](char b) {
                       return byte_ids_[static_cast<unsigned char>(b)] >= 0;
                     });
  if (!bytes) {
    ids->push_back(*spec_.unknown_id);
    return;
  }
  for (char b : text) ids->push_back(byte_ids_[static_cast<unsigned char>(b)]);
}

absl::Status UnigramModel::Encode(std::string_view text, std::vector<int32_t>* ids) const {
  constexpr int32_t kUnknown = -2, kUnreached = -1;
  struct Best {  // of the segmentations that end here
    double score = 0;
    int32_t token = kUnreached;
    uint32_t length = 0;
  };
  std::vector<Best> best(text.size() + 1);
  const auto offer = [&best](size_t end, double score, int32_t token, size_t length) {
    Best& at = best[end];
    if (at.token == kUnreached || score > at.score) {
      at = {score, token, static_cast<uint32_t>(length)};
    }
  };
  size_t start = 0;
  while (start < text.size()) {
    size_t next = start;
    (void)DecodeUtf8(text, &next);
    bool single = false;
    uint32_t node = trie_.Root(static_cast<unsigned char>(text[start]));
    for (size_t end = start + 1; node != ByteTrie::kNone; ++end) {
      if (const int32_t token = trie_.Value(node); token >= 0) {
        offer(end, spec_.pieces[static_cast<size_t>(token)].second + best[start].score, token,
              end - start);
        single = single || end == next;
      }
      if (end >= text.size()) break;
      node = trie_.Child(node, static_cast<unsigned char>(text[end]));
    }
    if (!single) {
      if (!spec_.unknown_id.has_value()) {
        return absl::InvalidArgumentError(
            "the text has a character that the tokenizer's vocabulary lacks, and the vocabulary "
            "has no unknown token");
      }
      offer(next, unknown_score_ + best[start].score, kUnknown, next - start);
    }
    start = next;
  }
  // Backwards; runs of unknown characters are one unknown text.
  std::vector<std::pair<size_t, size_t>> spans;
  std::vector<int32_t> tokens;
  for (size_t end = text.size(); end > 0;) {
    const Best& at = best[end];
    const size_t begin = end - at.length;
    const bool unknown = at.token == kUnknown || at.token == spec_.unknown_id;
    if (unknown && !tokens.empty() && tokens.back() == kUnknown) {
      spans.back().first = begin;
    } else {
      spans.emplace_back(begin, end);
      tokens.push_back(unknown ? kUnknown : at.token);
    }
    end = begin;
  }
  for (size_t i = spans.size(); i-- > 0;) {
    if (tokens[i] == kUnknown) {
      AppendUnknown(text.substr(spans[i].first, spans[i].second - spans[i].first), ids);
    } else {
      ids->push_back(tokens[i]);
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::model

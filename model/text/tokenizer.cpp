#include "model/text/tokenizer.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/hash/hash.h"
#include "config/base/status.h"
#include "model/text/stream_decoder.h"
#include "model/text/tokenizer_parts.h"
#include "model/text/unicode.h"

namespace longstride::model {
namespace {

enum TokenFlag : uint8_t { kSpecialFlag = 1, kByteFlag = 2, kEndFlag = 4 };

// Remembers, within one call, the ids of words that came before. It points at those ids where they
// stand in the output, so that a hit costs one comparison and one copy.
class WordCache {
 public:
  explicit WordCache(size_t text_bytes)
      : slots_(std::bit_ceil(std::clamp<size_t>(text_bytes / 8, 16, 16384))),
        mask_(slots_.size() - 1) {}

  struct Slot {
    const char* word = nullptr;
    uint32_t length = 0;
    uint32_t num_ids = 0;
    size_t first_id = 0;
  };
  Slot& At(std::string_view word) { return slots_[absl::Hash<std::string_view>{}(word) & mask_]; }

 private:
  std::vector<Slot> slots_;
  size_t mask_;
};

}  // namespace

// One call of Encode.
struct Tokenizer::Encoder {
  const TokenizerParts& parts;
  std::vector<int32_t>* ids;
  WordCache cache;
  // Texts that cached words point into; they live as long as the call.
  std::vector<std::unique_ptr<PreTokenizedText>> texts;

  absl::Status EncodeAll(std::string_view text, const TrustedRanges& trusted) {
    auto range = trusted.begin();
    for (const TextSegment& segment : parts.raw_matcher.Split(text, trusted)) {
      if (segment.token >= 0) {
        ids->push_back(segment.token);
        continue;
      }
      TrustedRanges local;  // the part of `trusted` that lies in the segment
      while (range != trusted.end() && range->second <= segment.begin) ++range;
      for (auto r = range; r != trusted.end() && r->first < segment.end; ++r) {
        local.emplace_back(std::max(r->first, segment.begin) - segment.begin,
                           std::min(r->second, segment.end) - segment.begin);
      }
      RETURN_IF_ERROR(EncodeNormalized(
          std::string(text.substr(segment.begin, segment.end - segment.begin)), local,
          segment.begin == 0));
    }
    return absl::OkStatus();
  }

  absl::Status EncodeNormalized(std::string text, TrustedRanges trusted, bool at_start) {
    if (!parts.normalizer.empty()) {
      if (parts.normalized_matcher.has_special()) {
        ASSIGN_OR_RETURN(trusted, MapTrusted(text, trusted));
      }
      RETURN_IF_ERROR(parts.normalizer.Apply(&text));
    }
    if (parts.normalized_matcher.empty()) return EncodeText(std::move(text), at_start);
    for (const TextSegment& segment : parts.normalized_matcher.Split(text, trusted)) {
      if (segment.token >= 0) {
        ids->push_back(segment.token);
      } else {
        RETURN_IF_ERROR(EncodeText(text.substr(segment.begin, segment.end - segment.begin),
                                   at_start && segment.begin == 0));
      }
    }
    return absl::OkStatus();
  }

  // The trusted ranges of `text` after normalisation: each stretch is normalised by itself. Where
  // that does not add up to the normalised whole, nothing is trusted.
  absl::StatusOr<TrustedRanges> MapTrusted(const std::string& text, const TrustedRanges& trusted) {
    if (trusted.empty()) return trusted;
    std::string joined;
    TrustedRanges mapped;
    size_t done = 0;
    const auto add = [&](size_t end) -> absl::Status {
      std::string stretch = text.substr(done, end - done);
      RETURN_IF_ERROR(parts.normalizer.Apply(&stretch, /*continues=*/done > 0));
      joined += stretch;
      done = end;
      return absl::OkStatus();
    };
    for (const auto& [begin, end] : trusted) {
      if (begin > done) RETURN_IF_ERROR(add(begin));
      const size_t from = joined.size();
      RETURN_IF_ERROR(add(end));
      mapped.emplace_back(from, joined.size());
    }
    if (done < text.size()) RETURN_IF_ERROR(add(text.size()));
    std::string whole = text;
    RETURN_IF_ERROR(parts.normalizer.Apply(&whole));
    return whole == joined ? mapped : TrustedRanges();
  }

  absl::Status EncodeText(std::string text, bool at_start) {
    ASSIGN_OR_RETURN(PreTokenizedText split, parts.pre_tokenizer.Split(std::move(text), at_start));
    texts.push_back(std::make_unique<PreTokenizedText>(std::move(split)));
    const std::string_view whole = texts.back()->text;
    for (const PreTokenizedText::Piece& piece : texts.back()->pieces) {
      std::string_view rest = whole.substr(piece.begin, piece.end - piece.begin);
      while (!rest.empty()) {
        const size_t cut = parts.model->IndependentPrefix(rest);
        RETURN_IF_ERROR(EncodeWord(rest.substr(0, cut)));
        rest.remove_prefix(cut);
      }
    }
    std::vector<PreTokenizedText::Piece>().swap(texts.back()->pieces);
    return absl::OkStatus();
  }

  absl::Status EncodeWord(std::string_view word) {
    constexpr size_t kLongestCached = 256;
    if (word.size() > kLongestCached) return parts.model->Encode(word, ids);
    WordCache::Slot& slot = cache.At(word);
    if (slot.length == word.size() && std::memcmp(slot.word, word.data(), word.size()) == 0) {
      const size_t size = ids->size();
      ids->resize(size + slot.num_ids);
      std::copy_n(ids->begin() + static_cast<std::ptrdiff_t>(slot.first_id), slot.num_ids,
                  ids->begin() + static_cast<std::ptrdiff_t>(size));
      return absl::OkStatus();
    }
    const size_t first = ids->size();
    RETURN_IF_ERROR(parts.model->Encode(word, ids));
    slot = {word.data(), static_cast<uint32_t>(word.size()),
            static_cast<uint32_t>(ids->size() - first), first};
    return absl::OkStatus();
  }
};

Tokenizer::Tokenizer(TokenizerParts parts)
    : parts_(std::make_unique<const TokenizerParts>(std::move(parts))) {
  BuildTokenBytes();
}

Tokenizer::~Tokenizer() = default;

void Tokenizer::BuildTokenBytes() {
  const DecoderSpec& spec = parts_->decoder;
  const int32_t size = vocab_size();
  flags_.resize(static_cast<size_t>(size), 0);
  // Added tokens that are found in normalised text are spelled so.
  std::vector<const AddedToken*> added(static_cast<size_t>(size), nullptr);
  for (const AddedToken& token : parts_->added) added[static_cast<size_t>(token.id)] = &token;
  offsets_.push_back(0);
  for (int32_t id = 0; id < size; ++id) {
    const auto i = static_cast<size_t>(id);
    if (parts_->is_special[i]) flags_[i] |= kSpecialFlag;
    std::string text(parts_->vocab.Text(id));
    if (added[i] != nullptr && added[i]->normalized) {
      if (!parts_->normalizer.Apply(&text).ok()) text = parts_->vocab.Text(id);
    }
    const int byte = spec.byte_fallback ? ParseByteToken(text) : -1;
    if (added[i] != nullptr && spec.added_tokens_are_text) {
      bytes_ += text;
    } else if (byte >= 0) {
      flags_[i] |= kByteFlag;
      bytes_.push_back(static_cast<char>(byte));
    } else if (spec.byte_level) {
      bytes_ += AlphabetToBytes(text).value_or(text);
    } else {
      const size_t max_bytes = GrowthLimit(text.size());
      for (const ReplaceStep& step : spec.replacements) {
        auto replaced = ApplyReplace(step, text, max_bytes);
        if (replaced.ok()) text = *std::move(replaced);
      }
      if (!spec.metaspace.empty()) text = ReplaceAll(text, spec.metaspace, " ");
      bytes_ += text;
    }
    offsets_.push_back(bytes_.size());
  }
  for (const int32_t id : parts_->eog) flags_[static_cast<size_t>(id)] |= kEndFlag;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       EncodeOptions options) const {
  const TextSpan span{text, options.parse_special};
  return Encode(std::span<const TextSpan>(&span, 1), options);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::span<const TextSpan> spans,
                                                       EncodeOptions options) const {
  size_t size = 0;
  for (const TextSpan& span : spans) {
    if (span.text.size() > kMaxTextBytes - size) {
      return absl::InvalidArgumentError(StrCat("the text has more than ", kMaxTextBytes,
                                                     " bytes, which is the most that is tokenised"));
    }
    size += span.text.size();
  }
  std::string joined;
  std::string_view text;
  TrustedRanges trusted;
  if (spans.size() == 1) {
    text = spans[0].text;
    if (spans[0].parse_special && size > 0) trusted.emplace_back(0, size);
  } else {
    joined.reserve(size);
    for (const TextSpan& span : spans) {
      if (span.parse_special && !span.text.empty()) {
        if (!trusted.empty() && trusted.back().second == joined.size()) {
          trusted.back().second += span.text.size();
        } else {
          trusted.emplace_back(joined.size(), joined.size() + span.text.size());
        }
      }
      joined += span.text;
    }
    text = joined;
  }
  if (const size_t bad = FirstInvalidUtf8(text); bad != std::string_view::npos) {
    return absl::InvalidArgumentError(
        StrCat("the text is not valid UTF-8 at byte ", bad, "; send UTF-8"));
  }
  std::vector<int32_t> ids;
  ids.reserve(size / 4 + 8);
  if (options.add_special) ids = parts_->prefix_ids;
  Encoder encoder{*parts_, &ids, WordCache(size), {}};
  RETURN_IF_ERROR(encoder.EncodeAll(text, trusted));
  if (options.add_special) {
    ids.insert(ids.end(), parts_->suffix_ids.begin(), parts_->suffix_ids.end());
  }
  return ids;
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids,
                                              bool skip_special) const {
  StreamDecoderOptions options;
  options.skip_special = skip_special;
  StreamDecoder decoder(*this, std::move(options));
  std::string text;
  for (const int32_t id : ids) {
    ASSIGN_OR_RETURN(const std::string part, decoder.Push(id));
    text += part;
  }
  return text + decoder.Flush();
}

absl::Status Tokenizer::CheckId(int32_t id) const {
  if (id >= 0 && id < vocab_size()) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("token id ", id, " is out of range; ids of this model are 0 to ",
                                                 vocab_size() - 1));
}

absl::StatusOr<std::string_view> Tokenizer::TokenBytes(int32_t id) const {
  RETURN_IF_ERROR(CheckId(id));
  const auto i = static_cast<size_t>(id);
  return std::string_view(bytes_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
}

absl::StatusOr<std::string_view> Tokenizer::TokenText(int32_t id) const {
  RETURN_IF_ERROR(CheckId(id));
  return parts_->vocab.Text(id);
}

std::optional<int32_t> Tokenizer::FindToken(std::string_view text) const {
  const int32_t id = parts_->vocab.Find(text);
  return id < 0 ? std::nullopt : std::optional(id);
}

int32_t Tokenizer::vocab_size() const { return parts_->vocab.size(); }
std::optional<int32_t> Tokenizer::bos_id() const { return parts_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return parts_->eos; }
std::optional<int32_t> Tokenizer::unk_id() const { return parts_->unk; }
std::optional<int32_t> Tokenizer::pad_id() const { return parts_->pad; }
std::span<const int32_t> Tokenizer::eog_ids() const { return parts_->eog; }
std::span<const int32_t> Tokenizer::prefix_ids() const { return parts_->prefix_ids; }
std::span<const int32_t> Tokenizer::suffix_ids() const { return parts_->suffix_ids; }
const DecoderSpec& Tokenizer::decoder() const { return parts_->decoder; }

bool Tokenizer::IsSpecial(int32_t id) const {
  return CheckId(id).ok() && (flags_[static_cast<size_t>(id)] & kSpecialFlag) != 0;
}
bool Tokenizer::IsEndOfGeneration(int32_t id) const {
  return CheckId(id).ok() && (flags_[static_cast<size_t>(id)] & kEndFlag) != 0;
}
bool Tokenizer::IsByte(int32_t id) const {
  return CheckId(id).ok() && (flags_[static_cast<size_t>(id)] & kByteFlag) != 0;
}

}  // namespace longstride::model

#include "model/text/stream_decoder.h"

#include <algorithm>
#include <utility>

#include "config/base/status.h"
#include "model/text/normalizer.h"
#include "model/text/tokenizer.h"
#include "model/text/tokenizer_parts.h"
#include "model/text/unicode.h"

namespace longstride::model {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, StreamDecoderOptions options)
    : tokenizer_(&tokenizer), options_(std::move(options)) {
  (void)Flush();
}

absl::StatusOr<std::string> StreamDecoder::Push(int32_t id) {
  RETURN_IF_ERROR(tokenizer_->CheckId(id));
  if (options_.skip_special && tokenizer_->IsSpecial(id) &&
      std::find(options_.keep.begin(), options_.keep.end(), id) == options_.keep.end()) {
    return std::string();
  }
  AppendToken(id);
  return TakeComplete(/*at_end=*/false);
}

std::string StreamDecoder::Flush() {
  std::string rest = TakeComplete(/*at_end=*/true);
  pending_.clear();
  first_token_ = options_.at_text_start;
  blanks_to_strip_ = options_.at_text_start ? tokenizer_->decoder().strip_left_count : 0;
  return rest;
}

void StreamDecoder::AppendToken(int32_t id) {
  const DecoderSpec& spec = tokenizer_->decoder();
  std::string_view bytes = *tokenizer_->TokenBytes(id);
  std::string first;
  if (first_token_ && spec.metaspace_drops_first) {
    first = ReplaceAll(*tokenizer_->TokenText(id), spec.metaspace, "");
    bytes = first;
  }
  if (spec.join_with_blanks && !first_token_) pending_ += ' ';
  first_token_ = false;
  while (blanks_to_strip_ > 0 && !bytes.empty()) {
    if (bytes[0] != spec.strip_left) {
      blanks_to_strip_ = 0;
    } else {
      bytes.remove_prefix(1);
      --blanks_to_strip_;
    }
  }
  pending_ += bytes;
}

std::string StreamDecoder::TakeComplete(bool at_end) {
  // Byte fallback replaces every byte by itself, byte-level decoding every maximal ill-formed part.
  const bool per_byte = tokenizer_->decoder().byte_fallback;
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Prefix prefix = ClassifyUtf8Prefix(rest);
    if (prefix.kind == Utf8Prefix::kIncomplete && !at_end) break;
    if (prefix.kind == Utf8Prefix::kComplete) {
      out.append(rest, 0, static_cast<size_t>(prefix.length));
    } else {
      for (int i = 0; i < (per_byte ? prefix.length : 1); ++i) out += kReplacementCharacter;
    }
    rest.remove_prefix(static_cast<size_t>(prefix.length));
  }
  pending_.erase(0, pending_.size() - rest.size());
  return out;
}

}  // namespace longstride::model

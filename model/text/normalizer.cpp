#include "model/text/normalizer.h"

#include "config/base/status.h"

namespace longstride::model {
namespace {

std::string_view StripBlanks(std::string_view text, StripStep step) {
  size_t begin = 0;
  if (step.left) {
    while (begin < text.size()) {
      size_t next = begin;
      if (!IsWhiteSpace(DecodeUtf8(text, &next))) break;
      begin = next;
    }
  }
  size_t end = text.size();
  if (step.right) {
    while (end > begin) {
      size_t start = end - 1;
      while (start > begin && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
      size_t next = start;
      if (!IsWhiteSpace(DecodeUtf8(text, &next))) break;
      end = start;
    }
  }
  return text.substr(begin, end - begin);
}

absl::Status TooLong(size_t max_bytes) {
  return absl::ResourceExhaustedError(
      StrCat("the tokenizer's replacements make a text longer than ", max_bytes,
             " bytes: its file is damaged or hostile"));
}

// False, before `out` is longer than `max_bytes`.
bool AppendReplaced(std::string_view text, std::string_view from, std::string_view to,
                    size_t max_bytes, std::string* out) {
  out->reserve(text.size() + text.size() / 4);
  size_t pos = 0;
  while (true) {
    const size_t hit = text.find(from, pos);
    const std::string_view between = text.substr(pos, hit - pos);
    const std::string_view then = hit == std::string_view::npos ? std::string_view() : to;
    if (between.size() + then.size() > max_bytes - out->size()) return false;
    out->append(between).append(then);
    if (hit == std::string_view::npos) return true;
    pos = hit + from.size();
  }
}

struct Applier {
  std::string* text;
  bool continues;
  size_t max_bytes;

  absl::Status operator()(NormalizationForm form) const {
    ASSIGN_OR_RETURN(*text, NormalizeUnicode(*text, form));
    return absl::OkStatus();
  }
  absl::Status operator()(LowercaseStep) const {
    *text = LowercaseUnicode(*text);
    return absl::OkStatus();
  }
  absl::Status operator()(StripStep step) const {
    *text = std::string(StripBlanks(*text, step));
    return absl::OkStatus();
  }
  absl::Status operator()(const PrependStep& step) const {
    if (text->empty() || continues) return absl::OkStatus();
    if (text->size() + step.prefix.size() > max_bytes) return TooLong(max_bytes);
    text->insert(0, step.prefix);
    return absl::OkStatus();
  }
  absl::Status operator()(const ReplaceStep& step) const {
    ASSIGN_OR_RETURN(*text, ApplyReplace(step, *text, max_bytes));
    return absl::OkStatus();
  }
};

}  // namespace

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  AppendReplaced(text, from, to, out.max_size(), &out);
  return out;
}

absl::StatusOr<std::string> ApplyReplace(const ReplaceStep& step, std::string_view text,
                                         size_t max_bytes) {
  std::string out;
  if (step.regex == nullptr) {
    if (!AppendReplaced(text, step.pattern, step.content, max_bytes, &out)) return TooLong(max_bytes);
    return out;
  }
  std::vector<RegexPiece> pieces;
  RETURN_IF_ERROR(step.regex->Split(text, &pieces));
  for (const RegexPiece& piece : pieces) {
    const size_t size = piece.is_match ? step.content.size() : piece.end - piece.begin;
    if (out.size() + size > max_bytes) return TooLong(max_bytes);
    out.append(piece.is_match ? std::string_view(step.content)
                              : text.substr(piece.begin, piece.end - piece.begin));
  }
  return out;
}

absl::Status Normalizer::Apply(std::string* text, bool continues) const {
  const size_t max_bytes = GrowthLimit(text->size());
  for (const NormalizerStep& step : steps_) {
    RETURN_IF_ERROR(std::visit(Applier{text, continues, max_bytes}, step));
  }
  return absl::OkStatus();
}

}  // namespace longstride::model

#include "model/text/tokenizer_parts.h"

#include <algorithm>
#include <array>

#include "absl/container/flat_hash_set.h"
#include "config/base/status.h"
#include "model/text/unicode.h"

namespace longstride::model {
namespace {

// Ends of a turn or of a text, as the families spell them.
constexpr std::string_view kEndsOfGeneration[] = {
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>",   "<end_of_turn>",        "<turn|>",
    "<|eot|>",    "<|eom|>",    "<|return|>", "<|call|>",  "<|END_OF_TURN_TOKEN|>", "<|endoftext|>",
    "<|end_of_text|>",
};

struct Alphabet {
  std::array<char32_t, 256> by_byte;
  std::array<int16_t, 512> by_char;
  Alphabet() {
    by_char.fill(-1);
    char32_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      by_byte[b] = printable ? b : next++;
      by_char[by_byte[b]] = static_cast<int16_t>(b);
    }
  }
};
const Alphabet& GetAlphabet() {
  static const Alphabet alphabet;
  return alphabet;
}

// Ends of turn are ends of generation, but for <|end|> where a model also has <|return|> and
// <|call|>: there it ends one message of several.
void CompleteEndsOfGeneration(TokenizerParts* parts) {
  const auto special = [parts](std::string_view text) {
    const int32_t id = parts->vocab.Find(text);
    return id >= 0 && parts->is_special[static_cast<size_t>(id)] ? id : -1;
  };
  const bool harmony = special("<|return|>") >= 0 && special("<|call|>") >= 0;
  for (const std::string_view text : kEndsOfGeneration) {
    const int32_t id = special(text);
    if (id < 0 || (harmony && text == "<|end|>")) continue;
    parts->eog.push_back(id);
  }
  if (parts->eos.has_value()) parts->eog.push_back(*parts->eos);
  std::sort(parts->eog.begin(), parts->eog.end());
  parts->eog.erase(std::unique(parts->eog.begin(), parts->eog.end()), parts->eog.end());
}

}  // namespace

char32_t ByteToAlphabet(unsigned char byte) { return GetAlphabet().by_byte[byte]; }

int AlphabetToByte(char32_t c) { return c < 512 ? GetAlphabet().by_char[c] : -1; }

std::optional<std::string> AlphabetToBytes(std::string_view text) {
  std::string bytes;
  size_t pos = 0;
  while (pos < text.size()) {
    const int byte = AlphabetToByte(DecodeUtf8(text, &pos));
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

int ParseByteToken(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  int value = 0;
  for (const char c : text.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

absl::Status FinishParts(TokenizerParts* parts) {
  parts->is_special.resize(static_cast<size_t>(parts->vocab.size()), false);
  // By text: a vocabulary may have the same text twice.
  absl::flat_hash_set<std::string_view> special;
  for (const AddedToken& token : parts->added) {
    if (token.special) special.insert(token.content);
  }
  for (int32_t id = 0; id < parts->vocab.size() && !special.empty(); ++id) {
    parts->is_special[static_cast<size_t>(id)] = special.contains(parts->vocab.Text(id));
  }
  std::vector<AddedToken> raw, normalized;
  for (const AddedToken& token : parts->added) {
    if (!token.normalized || parts->normalizer.empty()) {
      (token.normalized ? normalized : raw).push_back(token);
      continue;
    }
    AddedToken changed = token;
    RETURN_IF_ERROR(parts->normalizer.Apply(&changed.content));
    normalized.push_back(std::move(changed));
  }
  for (const std::vector<AddedToken>* tokens : {&raw, &normalized}) {
    for (const AddedToken& token : *tokens) {
      if (token.content.size() > kMaxSearchedBytes) {
        return absl::InvalidArgumentError(StrCat("the tokenizer has an added token of ",
                                                 token.content.size(), " bytes; at most ",
                                                 kMaxSearchedBytes, " are allowed"));
      }
    }
  }
  parts->raw_matcher = AddedTokenMatcher(std::move(raw));
  parts->normalized_matcher = AddedTokenMatcher(std::move(normalized));
  CompleteEndsOfGeneration(parts);
  return absl::OkStatus();
}

}  // namespace longstride::model

#include "model/text/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/locid.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>
#include <unicode/unistr.h>

#include <array>
#include <bitset>
#include <cstring>

#include "config/base/status.h"

namespace longstride::model {
namespace {

// Range of the second byte for a lead byte (table 3-7 of the Unicode standard).
struct SecondByte {
  unsigned char low, high;
};
SecondByte SecondByteRange(unsigned char lead) {
  switch (lead) {
    case 0xE0: return {0xA0, 0xBF};
    case 0xED: return {0x80, 0x9F};
    case 0xF0: return {0x90, 0xBF};
    case 0xF4: return {0x80, 0x8F};
    default: return {0x80, 0xBF};
  }
}

enum YoungClass : uint8_t { kLu, kLl, kLm, kLo, kMark, kNumber, kPunct, kSymbol };
struct YoungRange {
  char32_t first, last;
  YoungClass cls;
};
// Code points assigned in Unicode 15.0 to 16.0, by the classes that tokenizers distinguish.
constexpr YoungRange kYoung[] = {
    {0x897, 0x897, kMark},      {0xCF3, 0xCF3, kMark},      {0xECE, 0xECE, kMark},
    {0x1B4E, 0x1B4F, kPunct},   {0x1B7F, 0x1B7F, kPunct},   {0x1C89, 0x1C89, kLu},
    {0x1C8A, 0x1C8A, kLl},      {0x2427, 0x2429, kSymbol},  {0x2FFC, 0x2FFF, kSymbol},
    {0x31E4, 0x31E5, kSymbol},  {0x31EF, 0x31EF, kSymbol},  {0xA7CB, 0xA7CC, kLu},
    {0xA7CD, 0xA7CD, kLl},      {0xA7DA, 0xA7DA, kLu},      {0xA7DB, 0xA7DB, kLl},
    {0xA7DC, 0xA7DC, kLu},      {0x105C0, 0x105F3, kLo},    {0x10D40, 0x10D49, kNumber},
    {0x10D4A, 0x10D4D, kLo},    {0x10D4E, 0x10D4E, kLm},    {0x10D4F, 0x10D4F, kLo},
    {0x10D50, 0x10D65, kLu},    {0x10D69, 0x10D6D, kMark},  {0x10D6E, 0x10D6E, kPunct},
    {0x10D6F, 0x10D6F, kLm},    {0x10D70, 0x10D85, kLl},    {0x10D8E, 0x10D8F, kSymbol},
    {0x10EC2, 0x10EC4, kLo},    {0x10EFC, 0x10EFF, kMark},  {0x1123F, 0x11240, kLo},
    {0x11241, 0x11241, kMark},  {0x11380, 0x11389, kLo},    {0x1138B, 0x1138B, kLo},
    {0x1138E, 0x1138E, kLo},    {0x11390, 0x113B5, kLo},    {0x113B7, 0x113B7, kLo},
    {0x113B8, 0x113C0, kMark},  {0x113C2, 0x113C2, kMark},  {0x113C5, 0x113C5, kMark},
    {0x113C7, 0x113CA, kMark},  {0x113CC, 0x113D0, kMark},  {0x113D1, 0x113D1, kLo},
    {0x113D2, 0x113D2, kMark},  {0x113D3, 0x113D3, kLo},    {0x113D4, 0x113D5, kPunct},
    {0x113D7, 0x113D8, kPunct}, {0x113E1, 0x113E2, kMark},  {0x116D0, 0x116E3, kNumber},
    {0x11B00, 0x11B09, kPunct}, {0x11BC0, 0x11BE0, kLo},    {0x11BE1, 0x11BE1, kPunct},
    {0x11BF0, 0x11BF9, kNumber}, {0x11F00, 0x11F01, kMark}, {0x11F02, 0x11F02, kLo},
    {0x11F03, 0x11F03, kMark},  {0x11F04, 0x11F10, kLo},    {0x11F12, 0x11F33, kLo},
    {0x11F34, 0x11F3A, kMark},  {0x11F3E, 0x11F42, kMark},  {0x11F43, 0x11F4F, kPunct},
    {0x11F50, 0x11F59, kNumber}, {0x11F5A, 0x11F5A, kMark}, {0x1342F, 0x1342F, kLo},
    {0x13440, 0x13440, kMark},  {0x13441, 0x13446, kLo},    {0x13447, 0x13455, kMark},
    {0x13460, 0x143FA, kLo},    {0x16100, 0x1611D, kLo},    {0x1611E, 0x1612F, kMark},
    {0x16130, 0x16139, kNumber}, {0x16D40, 0x16D42, kLm},   {0x16D43, 0x16D6A, kLo},
    {0x16D6B, 0x16D6C, kLm},    {0x16D6D, 0x16D6F, kPunct}, {0x16D70, 0x16D79, kNumber},
    {0x18CFF, 0x18CFF, kLo},    {0x1B132, 0x1B132, kLo},    {0x1B155, 0x1B155, kLo},
    {0x1CC00, 0x1CCEF, kSymbol}, {0x1CCF0, 0x1CCF9, kNumber}, {0x1CD00, 0x1CEB3, kSymbol},
    {0x1D2C0, 0x1D2D3, kNumber}, {0x1DF25, 0x1DF2A, kLl},   {0x1E030, 0x1E06D, kLm},
    {0x1E08F, 0x1E08F, kMark},  {0x1E4D0, 0x1E4EA, kLo},    {0x1E4EB, 0x1E4EB, kLm},
    {0x1E4EC, 0x1E4EF, kMark},  {0x1E4F0, 0x1E4F9, kNumber}, {0x1E5D0, 0x1E5ED, kLo},
    {0x1E5EE, 0x1E5EF, kMark},  {0x1E5F0, 0x1E5F0, kLo},    {0x1E5F1, 0x1E5FA, kNumber},
    {0x1E5FF, 0x1E5FF, kPunct}, {0x1F6DC, 0x1F6DC, kSymbol}, {0x1F774, 0x1F776, kSymbol},
    {0x1F77B, 0x1F77F, kSymbol}, {0x1F7D9, 0x1F7D9, kSymbol}, {0x1F8B2, 0x1F8BB, kSymbol},
    {0x1F8C0, 0x1F8C1, kSymbol}, {0x1FA75, 0x1FA77, kSymbol}, {0x1FA87, 0x1FA89, kSymbol},
    {0x1FA8F, 0x1FA8F, kSymbol}, {0x1FAAD, 0x1FAAF, kSymbol}, {0x1FABB, 0x1FABF, kSymbol},
    {0x1FAC6, 0x1FAC6, kSymbol}, {0x1FACE, 0x1FACF, kSymbol}, {0x1FADA, 0x1FADC, kSymbol},
    {0x1FADF, 0x1FADF, kSymbol}, {0x1FAE8, 0x1FAE9, kSymbol}, {0x1FAF7, 0x1FAF8, kSymbol},
    {0x1FBCB, 0x1FBEF, kSymbol}, {0x2B739, 0x2B739, kLo},   {0x2EBF0, 0x2EE5D, kLo},
    {0x31350, 0x323AF, kLo},
};
constexpr char32_t kMongolianVowelSeparator = 0x180E;

// Old members of each class, three and four bytes long in UTF-8.
constexpr char32_t kOldThreeByte[] = {0x1E00, 0x1E01, 0x2C7C, 0x0905, 0x093C, 0x0966, 0x2010, 0x2200};
constexpr char32_t kOldFourByte[] = {0x10400, 0x10428, 0x16B40, 0x10000,
                                     0x1D167, 0x1D7CE, 0x10100, 0x1F600};

constexpr size_t kBlocks = 0x110000 >> 8;
std::bitset<kBlocks> MakeYoungBlocks() {
  std::bitset<kBlocks> blocks;
  blocks.set(kMongolianVowelSeparator >> 8);
  for (const YoungRange& range : kYoung) {
    for (char32_t block = range.first >> 8; block <= range.last >> 8; ++block) blocks.set(block);
  }
  return blocks;
}

// `c` itself unless it is young.
char32_t OldEquivalent(char32_t c) {
  static const std::bitset<kBlocks> blocks = MakeYoungBlocks();
  if (c >= 0x110000 || !blocks.test(c >> 8)) return c;
  if (c == kMongolianVowelSeparator) return 0x200B;  // category Cf, like it
  for (const YoungRange& range : kYoung) {
    if (c < range.first) return c;
    if (c <= range.last) return c < 0x10000 ? kOldThreeByte[range.cls] : kOldFourByte[range.cls];
  }
  return c;
}

const icu::Normalizer2* NormalizerFor(NormalizationForm form, UErrorCode* error) {
  switch (form) {
    case NormalizationForm::kNfc: return icu::Normalizer2::getNFCInstance(*error);
    case NormalizationForm::kNfd: return icu::Normalizer2::getNFDInstance(*error);
    case NormalizationForm::kNfkc: return icu::Normalizer2::getNFKCInstance(*error);
    case NormalizationForm::kNfkd: return icu::Normalizer2::getNFKDInstance(*error);
  }
  return nullptr;
}

// The code points that tokenizers normalise: those of Unicode 11.
const icu::UnicodeSet& NormalizedSet() {
  static const icu::UnicodeSet* const set = [] {
    UErrorCode error = U_ZERO_ERROR;
    auto* made = new icu::UnicodeSet(u"[:age=11.0:]", error);
    if (U_SUCCESS(error)) made->freeze();
    return made;
  }();
  return *set;
}

bool IsAscii(std::string_view text) {
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, 8);
    if (word & 0x8080808080808080u) return false;
  }
  for (; i < text.size(); ++i) {
    if (static_cast<unsigned char>(text[i]) >= 0x80) return false;
  }
  return true;
}

}  // namespace

int Utf8SequenceLength(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

Utf8Prefix ClassifyUtf8Prefix(std::string_view bytes) {
  const auto lead = static_cast<unsigned char>(bytes[0]);
  const int length = Utf8SequenceLength(lead);
  if (length == 0) return {Utf8Prefix::kInvalid, 1};
  for (int i = 1; i < length; ++i) {
    if (i >= static_cast<int>(bytes.size())) return {Utf8Prefix::kIncomplete, i};
    const auto byte = static_cast<unsigned char>(bytes[i]);
    const SecondByte range = i == 1 ? SecondByteRange(lead) : SecondByte{0x80, 0xBF};
    if (byte < range.low || byte > range.high) return {Utf8Prefix::kInvalid, i};
  }
  return {Utf8Prefix::kComplete, length};
}

size_t FirstInvalidUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      uint64_t word;
      if (i + 8 <= text.size()) {
        std::memcpy(&word, text.data() + i, 8);
        if (!(word & 0x8080808080808080u)) {
          i += 8;
          continue;
        }
      }
      ++i;
      continue;
    }
    const Utf8Prefix prefix = ClassifyUtf8Prefix(text.substr(i));
    if (prefix.kind != Utf8Prefix::kComplete) return i;
    i += prefix.length;
  }
  return std::string_view::npos;
}

char32_t DecodeUtf8(std::string_view text, size_t* pos) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data()) + *pos;
  if (p[0] < 0x80) {
    *pos += 1;
    return p[0];
  }
  if (p[0] < 0xE0) {
    *pos += 2;
    return static_cast<char32_t>((p[0] & 0x1F) << 6 | (p[1] & 0x3F));
  }
  if (p[0] < 0xF0) {
    *pos += 3;
    return static_cast<char32_t>((p[0] & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F));
  }
  *pos += 4;
  return static_cast<char32_t>((p[0] & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 |
                               (p[3] & 0x3F));
}

void AppendUtf8(char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (c >> 6)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (c >> 12)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (c >> 18)));
    out->push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const Utf8Prefix prefix = ClassifyUtf8Prefix(bytes);
    out.append(prefix.kind == Utf8Prefix::kComplete ? bytes.substr(0, prefix.length)
                                                    : kReplacementCharacter);
    bytes.remove_prefix(prefix.length);
  }
  return out;
}

bool IsWhiteSpace(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsNumeric(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  return (U_MASK(u_charType(static_cast<UChar32>(OldEquivalent(c)))) &
          (U_GC_ND_MASK | U_GC_NL_MASK | U_GC_NO_MASK)) != 0;
}

bool IsPunctuation(char32_t c) {
  if (c < 0x80) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
  }
  return (U_MASK(u_charType(static_cast<UChar32>(OldEquivalent(c)))) & U_GC_P_MASK) != 0;
}

bool IsWordCharacter(char32_t c) {
  const auto old = static_cast<UChar32>(OldEquivalent(c));
  return u_hasBinaryProperty(old, UCHAR_ALPHABETIC) ||
         (U_MASK(u_charType(old)) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0 ||
         u_hasBinaryProperty(old, UCHAR_JOIN_CONTROL);
}

bool MapYoungCodePoints(std::string_view text, std::string* out) {
  bool copied = false;
  size_t i = 0;
  while (i < text.size()) {
    if (static_cast<unsigned char>(text[i]) < 0xE0) {  // young ones take three bytes or more
      ++i;
      continue;
    }
    const size_t start = i;
    const char32_t c = DecodeUtf8(text, &i);
    const char32_t old = OldEquivalent(c);
    if (old == c) continue;
    if (!copied) {
      out->assign(text);
      copied = true;
    }
    std::string encoded;
    AppendUtf8(old, &encoded);
    std::memcpy(out->data() + start, encoded.data(), encoded.size());
  }
  return copied;
}

absl::StatusOr<std::string> NormalizeUnicode(std::string_view text, NormalizationForm form) {
  if (IsAscii(text)) return std::string(text);
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = NormalizerFor(form, &error);
  if (U_FAILURE(error) || normalizer == nullptr) {
    return absl::InternalError(
        StrCat("Unicode normalisation is not available: ", u_errorName(error)));
  }
  const icu::FilteredNormalizer2 filtered(*normalizer, NormalizedSet());
  std::string out;
  out.reserve(text.size());
  icu::StringByteSink<std::string> sink(&out);
  filtered.normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())),
                            sink, nullptr, error);
  if (U_FAILURE(error)) {
    return absl::InternalError(StrCat("Unicode normalisation failed: ", u_errorName(error)));
  }
  return out;
}

std::string LowercaseUnicode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  size_t i = 0;
  while (i < text.size()) {
    const char32_t c = DecodeUtf8(text, &i);
    if (c < 0x80) {
      out.push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c));
    } else if (u_tolower(static_cast<UChar32>(c)) == static_cast<UChar32>(c) && c != 0x130) {
      AppendUtf8(c, &out);
    } else {
      icu::UnicodeString one(static_cast<UChar32>(c));
      one.toLower(icu::Locale::getRoot()).toUTF8String(out);
    }
  }
  return out;
}

}  // namespace longstride::model

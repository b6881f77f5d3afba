#include "model/text/unicode.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace longstride::model {
namespace {

TEST(Unicode, FindsTheFirstInvalidByte) {
  EXPECT_EQ(FirstInvalidUtf8(""), std::string_view::npos);
  EXPECT_EQ(FirstInvalidUtf8("plain ascii, longer than eight bytes"), std::string_view::npos);
  EXPECT_EQ(FirstInvalidUtf8("h\xC3\xA9llo \xF0\x9F\x98\x80"), std::string_view::npos);
  EXPECT_EQ(FirstInvalidUtf8("abc\x80"), 3u);              // a lone continuation
  EXPECT_EQ(FirstInvalidUtf8("ab\xC0\xAF"), 2u);           // overlong
  EXPECT_EQ(FirstInvalidUtf8("\xED\xA0\x80"), 0u);         // surrogate
  EXPECT_EQ(FirstInvalidUtf8("\xF4\x90\x80\x80"), 0u);     // beyond U+10FFFF
  EXPECT_EQ(FirstInvalidUtf8("12345678\xE2\x82"), 8u);     // cut short
}

TEST(Unicode, DecodesWhatItEncodes) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    AppendUtf8(c, &text);
    ASSERT_EQ(FirstInvalidUtf8(text), std::string_view::npos) << static_cast<uint32_t>(c);
    size_t pos = 0;
    ASSERT_TRUE(DecodeUtf8(text, &pos) == c) << static_cast<uint32_t>(c);
    ASSERT_EQ(pos, text.size());
    ASSERT_EQ(Utf8SequenceLength(static_cast<unsigned char>(text[0])), static_cast<int>(pos));
  }
}

TEST(Unicode, ReplacesEachMaximalIllFormedPart) {
  // The examples of the Unicode standard, section 3.9, table 3-8.
  EXPECT_EQ(ReplaceInvalidUtf8("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
  EXPECT_EQ(ReplaceInvalidUtf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"
            "A");
}

TEST(Unicode, MapsYoungCodePointsToOldOnesOfEqualLength) {
  std::string out;
  EXPECT_FALSE(MapYoungCodePoints("ab\xC3\xA9\xE4\xBD\xA0", &out));
  EXPECT_TRUE(MapYoungCodePoints("a\U00031350b", &out));  // CJK extension H, Unicode 15
  EXPECT_EQ(out, "a\U00010000b");
  EXPECT_TRUE(MapYoungCodePoints("\u180E", &out));
  EXPECT_EQ(out, "\u200B");
}

TEST(Unicode, KnowsClasses) {
  EXPECT_TRUE(IsWhiteSpace(0x85));
  EXPECT_FALSE(IsWhiteSpace(0x180E));
  EXPECT_FALSE(IsWhiteSpace(0x200B));
  EXPECT_TRUE(IsNumeric(U'\u00B2'));       // superscript two
  EXPECT_TRUE(IsNumeric(0x11F50));         // Unicode 15
  EXPECT_TRUE(IsWordCharacter(U'_'));
  EXPECT_FALSE(IsWordCharacter(U'-'));
  EXPECT_TRUE(IsPunctuation(U'$'));        // ASCII symbols count
  EXPECT_FALSE(IsPunctuation(U'\u20AC'));  // the euro sign is a symbol
}

TEST(Unicode, LowercasesEachCharacterByItself) {
  EXPECT_EQ(LowercaseUnicode("ÀB\u0130Σ"), "àbi\u0307σ");
}

TEST(Unicode, Normalizes) {
  EXPECT_EQ(*NormalizeUnicode("e\u0301", NormalizationForm::kNfc), "\u00E9");
  EXPECT_EQ(*NormalizeUnicode("\u00E9", NormalizationForm::kNfd), "e\u0301");
  EXPECT_EQ(*NormalizeUnicode("\uFB01", NormalizationForm::kNfkc), "fi");
}

}  // namespace
}  // namespace longstride::model

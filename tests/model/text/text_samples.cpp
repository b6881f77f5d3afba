#include "tests/model/text/text_samples.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "model/text/unicode.h"

namespace longstride::model {
namespace {

struct Range {
  char32_t first, last;
};
constexpr Range kRanges[] = {
    {0x20, 0x7E},       {0x20, 0x7E},       {0x01, 0x1F},       {0x80, 0xFF},
    {0x100, 0x24F},     {0x2B0, 0x36F},     {0x370, 0x3FF},     {0x400, 0x52F},
    {0x531, 0x5F4},     {0x600, 0x6FF},     {0x900, 0xDFF},     {0xE01, 0xEDF},
    {0x1000, 0x13FF},   {0x1780, 0x18AF},   {0x1E00, 0x1FFF},   {0x2000, 0x206F},
    {0x2070, 0x218F},   {0x2190, 0x2BFF},   {0x2C60, 0x2C7F},   {0x3000, 0x30FF},
    {0x3100, 0x33FF},   {0x3400, 0x9FFF},   {0xA640, 0xA7FF},   {0xAC00, 0xD7A3},
    {0xE000, 0xE0FF},   {0xF900, 0xFAFF},   {0xFB00, 0xFFFD},   {0x10000, 0x103FF},
    {0x10400, 0x1044F}, {0x11000, 0x11FFF}, {0x12000, 0x14400}, {0x1D400, 0x1D7FF},
    {0x1F300, 0x1FAFF}, {0x20000, 0x323AF}, {0xE0100, 0xE01EF}, {0x10FF00, 0x10FFFF},
};
constexpr std::string_view kBlanks[] = {" ",      " ",      " ",      "\n",     "\t",
                                        "\r\n",   "\u00A0", "\u3000", "\u2009", "\v"};

}  // namespace

uint64_t SampleStream::Next() {
  state_ += 0x9E3779B97F4A7C15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

std::string ReadFileOrEmpty(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  return text.str();
}

std::string ReadTestData(std::string_view name) {
  const std::string path =
      std::string(LONGSTRIDE_SOURCE_DIR) + "/tests/parity/text/data/" + std::string(name);
  std::string text = ReadFileOrEmpty(path);
  EXPECT_FALSE(text.empty()) << path;
  return text;
}

std::vector<std::string> SampleFragments() {
  std::vector<std::string> fragments;
  std::istringstream lines(ReadTestData("fragments.txt"));
  for (std::string line; std::getline(lines, line);) fragments.push_back(line);
  return fragments;
}

std::string SampleText(uint64_t seed, uint64_t index, const std::vector<std::string>& fragments) {
  SampleStream rng(seed * 0x100000001u + index * 0x9E3779B1u);
  std::string out;
  for (uint64_t left = rng.Below(13); left > 0; --left) {
    const uint64_t kind = rng.Below(8);
    if (kind < 4) {
      out += fragments[rng.Below(fragments.size())];
    } else if (kind == 4) {
      const Range range = kRanges[rng.Below(std::size(kRanges))];
      for (uint64_t n = 1 + rng.Below(4); n > 0; --n) {
        AppendUtf8(range.first + static_cast<char32_t>(rng.Below(range.last - range.first + 1)),
                   &out);
      }
    } else if (kind == 5) {
      const std::string_view blank = kBlanks[rng.Below(std::size(kBlanks))];
      const uint64_t most = rng.Below(8) != 0 ? 5 : 40;
      for (uint64_t n = 1 + rng.Below(most); n > 0; --n) out += blank;
    } else if (kind == 6) {
      for (uint64_t n = 1 + rng.Below(9); n > 0; --n) out += static_cast<char>('0' + rng.Below(10));
    } else {
      const char letter = static_cast<char>('a' + rng.Below(26));
      out.append(1 + rng.Below(12), letter);
    }
  }
  return out;
}

std::vector<std::vector<char32_t>> SweepBlocks() {
  std::vector<std::vector<char32_t>> blocks;
  for (char32_t first = 0; first < 0x110000; first += 4096) {
    const bool dense = first < 0x20000 || (first >= 0x2F000 && first < 0x33000) ||
                       (first >= 0xE0000 && first < 0xE1000);
    std::vector<char32_t> block;
    for (char32_t c = first; c < first + 4096; c += dense ? 1 : 64) {
      if (c < 0xD800 || c > 0xDFFF) block.push_back(c);
    }
    blocks.push_back(std::move(block));
  }
  return blocks;
}

std::string SweepText(char32_t c) {
  std::string ch;
  AppendUtf8(c, &ch);
  return "a" + ch + "b " + ch + "1" + ch + ch + "\n" + ch + ". ";
}

uint64_t Fnv(uint64_t hash, int32_t value) {
  for (int shift = 0; shift < 32; shift += 8) {
    hash = (hash ^ (static_cast<uint32_t>(value) >> shift & 255)) * 0x100000001B3u;
  }
  return hash;
}

}  // namespace longstride::model

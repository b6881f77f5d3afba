// The strings of the tokenizer goldens, drawn as tests/parity/text/text_samples.py draws them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longstride::model {

// SplitMix64.
class SampleStream {
 public:
  explicit SampleStream(uint64_t seed) : state_(seed) {}
  uint64_t Next();
  uint64_t Below(uint64_t n) { return Next() % n; }

 private:
  uint64_t state_;
};

// tests/parity/text/data/NAME; fails the test if it cannot be read.
std::string ReadTestData(std::string_view name);
// The same, or an empty string if the file does not exist.
std::string ReadFileOrEmpty(const std::string& path);

std::vector<std::string> SampleFragments();
std::string SampleText(uint64_t seed, uint64_t index, const std::vector<std::string>& fragments);

// The code points of the sweep, in blocks of 4096.
std::vector<std::vector<char32_t>> SweepBlocks();
std::string SweepText(char32_t c);

// FNV-1a over 32-bit little-endian values.
inline constexpr uint64_t kFnvStart = 0xCBF29CE484222325u;
uint64_t Fnv(uint64_t hash, int32_t value);

}  // namespace longstride::model

// Runs a target without libFuzzer: on the files that the command line names, or on the seeds and, for
// half a second at most, on mutations of them that are the same in every run.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>

#include "tests/fuzz/fuzz_target.h"

namespace longstride::fuzz {
namespace {

constexpr int kMutations = 20000;
constexpr auto kTime = std::chrono::milliseconds(500);

class Mutator {
 public:
  explicit Mutator(std::vector<std::string> seeds) : seeds_(std::move(seeds)) {}

  std::string Next() {
    std::string input = AnySeed();
    for (size_t edits = 1 + Below(4); edits > 0; --edits) Edit(&input);
    return input;
  }

 private:
  size_t Below(size_t n) { return static_cast<size_t>(random_() % n); }
  const std::string& AnySeed() { return seeds_[Below(seeds_.size())]; }

  void Edit(std::string* input) {
    using namespace std::string_view_literals;
    static constexpr std::string_view kTokens[] = {
        "\xff\xff\xff\xff", "\0\0\0\x80"sv, "\0"sv, "\"", "{", "}", "[", "]", ",", ":", "\\", "%",
        "-1", "1e308", "9223372036854775807", "null", "\r\n", "\xf0\x9f", "\xed\xa0\x80", "{{", "%}"};
    const size_t at = Below(input->size() + 1);
    const size_t size = std::min(Below(16), input->size() - at);
    switch (Below(6)) {
      case 0:
        if (at < input->size()) (*input)[at] = static_cast<char>(Below(256));
        break;
      case 1:
        if (at < input->size()) (*input)[at] = static_cast<char>((*input)[at] ^ (1 << Below(8)));
        break;
      case 2:
        input->erase(at, size);
        break;
      case 3:
        input->insert(at, kTokens[Below(std::size(kTokens))]);
        break;
      case 4: {
        const std::string& other = AnySeed();
        const std::string piece = other.substr(Below(other.size() + 1), Below(64));
        input->replace(at, size, piece);
        break;
      }
      default:
        input->resize(at);
    }
  }

  const std::vector<std::string> seeds_;
  std::mt19937_64 random_{1};
};

// A copy of the exact size, so that sanitizers see reads past the end.
void Run(const std::string& input) {
  const std::vector<char> bytes(input.begin(), input.end());
  RunInput({bytes.data(), bytes.size()});
}

int Main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    std::ifstream in(argv[i], std::ios::binary);
    Run({std::istreambuf_iterator<char>(in), {}});
  }
  if (argc > 1) return 0;
  const std::vector<std::string> seeds = Seeds();
  Run("");
  for (const std::string& seed : seeds) Run(seed);
  Mutator mutator(seeds);
  const auto end = std::chrono::steady_clock::now() + kTime;
  int mutations = 0;
  while (mutations < kMutations && std::chrono::steady_clock::now() < end) {
    Run(mutator.Next());
    ++mutations;
  }
  std::printf("%zu seeds, %d mutations\n", seeds.size(), mutations);
  return 0;
}

}  // namespace
}  // namespace longstride::fuzz

int main(int argc, char** argv) { return longstride::fuzz::Main(argc, argv); }

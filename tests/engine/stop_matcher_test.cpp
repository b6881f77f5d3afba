#include "server/engine/stop_matcher.h"

#include <random>

#include "gtest/gtest.h"

namespace longstride::engine {
namespace {

struct Found {
  int64_t begin = -1, end = -1;
};

Found Naive(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    Found best;
    for (const std::string& stop : stops) {
      if (stop.empty() || stop.size() > end) continue;
      if (text.compare(end - stop.size(), stop.size(), stop) != 0) continue;
      const auto begin = static_cast<int64_t>(end - stop.size());
      if (best.begin < 0 || begin < best.begin) best = {begin, static_cast<int64_t>(end)};
    }
    if (best.begin >= 0) return best;
  }
  return {};
}

// All texts of up to 9 letters over {a, b} cut at every pair of places.
TEST(StopMatcher, FindsTheSameStopHoweverTheTextIsCut) {
  const std::vector<std::vector<std::string>> sets = {
      {"ab"}, {"aab", "ab"}, {"aba"}, {"bb", "abba"}, {"aaa", "aab", "b"}, {"ababb", "bab"}};
  for (const auto& stops : sets) {
    const StopMatcher::Table table(stops);
    for (int bits = 0; bits < 1 << 9; ++bits) {
      std::string text;
      for (int i = 0; i < 9; ++i) text += (bits >> i & 1) != 0 ? 'b' : 'a';
      const Found expected = Naive(text, stops);
      for (size_t first = 0; first <= text.size(); ++first) {
        for (size_t second = first; second <= text.size(); ++second) {
          StopMatcher matcher(&table);
          const std::string pieces[] = {text.substr(0, first), text.substr(first, second - first),
                                        text.substr(second)};
          std::optional<StopMatcher::Hit> hit;
          for (const std::string& piece : pieces) {
            if (!hit) hit = matcher.Push(piece);
          }
          ASSERT_EQ(hit.has_value(), expected.begin >= 0) << text;
          if (hit) {
            ASSERT_EQ(hit->begin, expected.begin) << text;
            ASSERT_EQ(hit->end, expected.end) << text;
          }
        }
      }
    }
  }
}

// What was declared safe never turns out to be part of a stop, and nothing is held without reason.
TEST(StopMatcher, HoldsBackExactlyWhatMayBeginAStop) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stops;
    for (uint64_t i = 0; i <= random() % 3; ++i) {
      std::string stop;
      for (uint64_t k = 0; k <= random() % 5; ++k) stop += static_cast<char>('a' + random() % 2);
      stops.push_back(stop);
    }
    const StopMatcher::Table table(stops);
    StopMatcher matcher(&table);
    std::string text;
    for (int i = 0; i < 20; ++i) {
      const char c = static_cast<char>('a' + random() % 2);
      text += c;
      const auto hit = matcher.Push({&c, 1});
      if (hit) break;
      size_t held = 0;  // the longest end of the text that begins a stop
      for (const std::string& stop : stops) {
        for (size_t n = 1; n < stop.size() && n <= text.size(); ++n) {
          if (text.compare(text.size() - n, n, stop, 0, n) == 0) held = std::max(held, n);
        }
      }
      ASSERT_EQ(matcher.safe_end(), static_cast<int64_t>(text.size() - held)) << text;
    }
  }
}

TEST(StopMatcher, SkippedTextIsInNoHit) {
  const StopMatcher::Table table({"ab"});
  StopMatcher matcher(&table);
  EXPECT_FALSE(matcher.Push("a"));
  matcher.Skip(2);
  EXPECT_FALSE(matcher.Push("b"));
  const auto hit = matcher.Push("xab");
  ASSERT_TRUE(hit);
  EXPECT_EQ(hit->begin, 5);
}

}  // namespace
}  // namespace longstride::engine

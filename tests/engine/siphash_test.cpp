#include "server/engine/siphash.h"

#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace longstride::engine {
namespace {

std::string Hex(const Hash128& hash) {
  std::string text;
  for (const uint64_t word : {hash.lo, hash.hi}) {
    for (int i = 0; i < 8; ++i) {
      char byte[3];
      std::snprintf(byte, sizeof(byte), "%02X", static_cast<unsigned>(word >> (8 * i) & 0xff));
      text += byte;
    }
  }
  return text;
}

// Key 00..0f, message 00, 01, 02, …: the vectors published with SipHash.
TEST(SipHash128, MatchesThePublishedVectors) {
  const Hash128 key{.lo = 0x0706050403020100, .hi = 0x0f0e0d0c0b0a0908};
  std::vector<unsigned char> message(64);
  std::iota(message.begin(), message.end(), static_cast<unsigned char>(0));
  const auto hash = [&](size_t size) { return Hex(SipHash128(key, message.data(), size)); };
  EXPECT_EQ(hash(0), "A3817F04BA25A8E66DF67214C7550293");
  EXPECT_EQ(hash(1), "DA87C1D86B99AF44347659119B22FC45");
  EXPECT_EQ(hash(3), "9C70B60C5267A94E5F33B6B02985ED51");
  EXPECT_EQ(hash(7), "A1F1EBBED8DBC153C0B84AA61FF08239");
  EXPECT_EQ(hash(8), "3B62A9BA6258F5610F83E264F31497B4");
  EXPECT_EQ(hash(15), "5493E99933B0A8117E08EC0F97CFC3D9");
}

TEST(SipHash128, DependsOnEveryByteAndOnTheKey) {
  std::vector<unsigned char> message(272, 3);
  const Hash128 key{.lo = 1, .hi = 2};
  const Hash128 hash = SipHash128(key, message.data(), message.size());
  for (size_t i = 0; i < message.size(); ++i) {
    message[i] ^= 1;
    EXPECT_FALSE(SipHash128(key, message.data(), message.size()) == hash);
    message[i] ^= 1;
  }
  EXPECT_FALSE(SipHash128({.lo = 1, .hi = 3}, message.data(), message.size()) == hash);
}

}  // namespace
}  // namespace longstride::engine

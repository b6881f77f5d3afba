#include "server/engine/siphash.h"

#include <bit>
#include <cstring>

namespace longstride::engine {
namespace {

struct SipState {
  uint64_t v0, v1, v2, v3;

  void Round() {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  }
  void Absorb(uint64_t word) {
    v3 ^= word;
    Round();
    Round();
    v0 ^= word;
  }
  uint64_t Squeeze() {
    for (int i = 0; i < 4; ++i) Round();
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

}  // namespace

Hash128 SipHash128(const Hash128& key, const void* data, size_t size) {
  static_assert(std::endian::native == std::endian::little);
  SipState s{key.lo ^ 0x736f6d6570736575u, key.hi ^ 0x646f72616e646f6du ^ 0xee,
             key.lo ^ 0x6c7967656e657261u, key.hi ^ 0x7465646279746573u};
  const auto* bytes = static_cast<const unsigned char*>(data);
  size_t left = size;
  for (; left >= 8; left -= 8, bytes += 8) {
    uint64_t word;
    std::memcpy(&word, bytes, 8);
    s.Absorb(word);
  }
  uint64_t last = static_cast<uint64_t>(size) << 56;
  for (size_t i = 0; i < left; ++i) last |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  s.Absorb(last);
  s.v2 ^= 0xee;
  Hash128 hash;
  hash.lo = s.Squeeze();
  s.v1 ^= 0xdd;
  hash.hi = s.Squeeze();
  return hash;
}

}  // namespace longstride::engine

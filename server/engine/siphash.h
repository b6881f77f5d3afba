#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace longstride::engine {

struct Hash128 {
  uint64_t lo = 0;
  uint64_t hi = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

// SipHash-2-4 with 128-bit output (Aumasson and Bernstein, 2012): a keyed hash, so that who does not
// know the key cannot make two prompts collide.
Hash128 SipHash128(const Hash128& key, const void* data, size_t size);

}  // namespace longstride::engine

template <>
struct std::hash<longstride::engine::Hash128> {
  size_t operator()(const longstride::engine::Hash128& h) const noexcept {
    return static_cast<size_t>(h.lo);  // already uniform
  }
};

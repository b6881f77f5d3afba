#include "model/sparsity/hash.h"

#include <openssl/sha.h>

namespace longstride::model {

std::string Digest128(std::string_view bytes) { return Sha256Hex(bytes).substr(0, 32); }

std::string Sha256Hex(std::string_view bytes) {
  constexpr char kHex[] = "0123456789abcdef";
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest);
  std::string hex;
  for (const unsigned char byte : digest) {
    hex += kHex[byte >> 4];
    hex += kHex[byte & 15];
  }
  return hex;
}

}  // namespace longstride::model

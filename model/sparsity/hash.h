// 128-bit digests (hex) of what is being served: SHA-256, truncated.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longstride::model {

std::string Digest128(std::string_view bytes);
// All of SHA-256, as sha256sum prints it.
std::string Sha256Hex(std::string_view bytes);

}  // namespace longstride::model

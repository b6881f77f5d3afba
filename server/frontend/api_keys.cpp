#include "server/frontend/api_keys.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"

namespace longstride::frontend {
namespace {

std::array<uint8_t, 32> Hash(std::string_view key) {
  std::array<uint8_t, 32> hash;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), hash.data());
  return hash;
}

bool IsHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isxdigit(c); });
}

bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '_' || c == '-' || c == '.';
  });
}

}  // namespace

std::string HashApiKey(std::string_view key) {
  const auto hash = Hash(key);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(hash.data()), hash.size()));
}

absl::StatusOr<ApiKeys> ApiKeys::Load(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  if (!in) {
    return absl::InvalidArgumentError(
        "the API key file cannot be read; give a file with one 'name:sha256' per line");
  }
  return Parse(text.str());
}

absl::StatusOr<ApiKeys> ApiKeys::Parse(std::string_view text) {
  ApiKeys keys;
  int32_t line_number = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line_number;
    line = ToStd(absl::StripAsciiWhitespace(ToAbsl(line.substr(0, line.find('#')))));
    if (line.empty()) continue;
    const std::size_t colon = line.rfind(':');
    const std::string_view name = line.substr(0, colon);
    const std::string_view hex =
        colon == std::string_view::npos ? std::string_view() : line.substr(colon + 1);
    if (!IsName(name) || hex.size() != 64 || !IsHex(hex)) {
      return absl::InvalidArgumentError(
          StrCat("line ", line_number,
                 " of the API key file is not 'name:sha256' (a name of 1 to 64 letters, digits, "
                 "'_', '-', '.', and 64 hex digits)"));
    }
    for (const Key& key : keys.keys_) {
      if (key.name == name) {
        return absl::InvalidArgumentError(
            StrCat("line ", line_number, " of the API key file repeats the name '", name, "'"));
      }
    }
    Key key;
    key.name = std::string(name);
    const std::string bytes = absl::HexStringToBytes(ToAbsl(hex));
    std::copy(bytes.begin(), bytes.end(), key.hash.begin());
    keys.keys_.push_back(std::move(key));
  }
  if (keys.keys_.empty()) {
    return absl::InvalidArgumentError(
        "the API key file holds no key; add lines 'name:sha256' or do not set the option");
  }
  return keys;
}

std::optional<std::string> ApiKeys::Check(std::string_view key) const {
  const auto hash = Hash(key);
  const Key* match = nullptr;
  for (const Key& candidate : keys_) {
    if (CRYPTO_memcmp(candidate.hash.data(), hash.data(), hash.size()) == 0) match = &candidate;
  }
  if (match == nullptr) return std::nullopt;
  return match->name;
}

std::optional<std::string> ApiKeys::CheckAuthorization(std::string_view value) const {
  constexpr std::string_view kScheme = "bearer ";
  if (value.size() <= kScheme.size() ||
      !absl::EqualsIgnoreCase(ToAbsl(value.substr(0, kScheme.size())), ToAbsl(kScheme))) {
    return std::nullopt;
  }
  return Check(ToStd(absl::StripAsciiWhitespace(ToAbsl(value.substr(kScheme.size())))));
}

}  // namespace longstride::frontend

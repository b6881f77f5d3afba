#include "tests/fuzz/fuzz_target.h"

#include <fstream>
#include <iterator>

#include "config/base/check.h"
#include "config/base/strings.h"

namespace longstride::fuzz {

uint8_t InputParts::Byte() {
  if (rest_.empty()) return 0;
  const auto byte = static_cast<uint8_t>(rest_[0]);
  rest_.remove_prefix(1);
  return byte;
}

std::string_view InputParts::Text() {
  const std::string_view text = rest_.substr(0, rest_.find('\0'));
  rest_.remove_prefix(text.size() < rest_.size() ? text.size() + 1 : text.size());
  return text;
}

std::string JoinTexts(const std::vector<std::string>& texts) {
  std::string joined;
  for (const std::string& text : texts) {
    if (&text != &texts.front()) joined += '\0';
    joined += text;
  }
  return joined;
}

std::string ReadFile(std::string_view path) {
  std::ifstream in(StrCat(LONGSTRIDE_SOURCE_DIR, "/", path), std::ios::binary);
  LS_CHECK(in.good());
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace longstride::fuzz

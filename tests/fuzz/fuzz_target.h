// The seam between a fuzz target and what drives it: libFuzzer (libfuzzer_driver.cpp) where the
// build has it (LONGSTRIDE_FUZZ), else a short replay of seeds and mutations (replay_driver.cpp).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longstride::fuzz {

// --- defined by each target
// Feeds one input to the code under test; aborts where that breaks a promise.
void RunInput(std::string_view input);
// Inputs to start from, valid ones above all.
std::vector<std::string> Seeds();

// --- for targets
// An input that holds several things: numbers of one byte (0 where the input is at its end), and
// texts that end with a NUL or the input.
class InputParts {
 public:
  explicit InputParts(std::string_view input) : rest_(input) {}
  uint8_t Byte();
  std::string_view Text();
  std::string_view rest() const { return rest_; }

 private:
  std::string_view rest_;
};

// Parts joined as InputParts::Text takes them.
std::string JoinTexts(const std::vector<std::string>& texts);
// A file of the repository.
std::string ReadFile(std::string_view path);

}  // namespace longstride::fuzz

#include "server/cli/prompt_source.h"

#include <unistd.h>

#include <iostream>
#include <iterator>

namespace longstride::cli {
namespace {

constexpr int64_t kMaxPromptBytes = int64_t{256} << 20;

}  // namespace

absl::StatusOr<std::string> ReadPrompt(const Invocation& invocation) {
  const bool has_argument = !invocation.plain.empty();
  const std::string file = invocation.Text("--file", "");
  if (has_argument && !file.empty()) {
    return absl::InvalidArgumentError(
        "The text is given twice, as an argument and by --file; keep one.");
  }
  if (has_argument) return invocation.plain[0];
  if (!file.empty() && file != "-") return ReadTextFile(file, "The file", kMaxPromptBytes);
  if (file.empty() && isatty(STDIN_FILENO) != 0) {
    return absl::InvalidArgumentError(
        "No text is given; pass it as an argument, by --file FILE, or on standard input.");
  }
  return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

}  // namespace longstride::cli

#include "server/cli/fidelity_progress.h"

#include <unistd.h>

#include <iostream>

#include "absl/strings/str_format.h"

namespace longstride::cli {

FidelityProgress::FidelityProgress() : terminal_(isatty(STDERR_FILENO) != 0) {}

void FidelityProgress::Update(const std::string& stage, int64_t done, int64_t total) {
  if (terminal_) {
    std::cerr << "\r\x1b[K" << stage;
    if (total > 0) std::cerr << absl::StrFormat(" %d%%", done * 100 / total);
    std::cerr << std::flush;
  } else if (stage != stage_) {
    std::cerr << stage << "\n";
  }
  stage_ = stage;
}

void FidelityProgress::Finish() {
  if (terminal_) std::cerr << "\r\x1b[K" << std::flush;
}

}  // namespace longstride::cli

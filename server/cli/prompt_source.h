// Where a command's text comes from: an argument, a file or standard input.
#pragma once

#include <string>

#include "server/cli/command.h"

namespace longstride::cli {

// The plain argument, or --file FILE ("-": standard input), or standard input where it is no
// terminal. INVALID_ARGUMENT: none of them, or more than one.
absl::StatusOr<std::string> ReadPrompt(const Invocation& invocation);

}  // namespace longstride::cli

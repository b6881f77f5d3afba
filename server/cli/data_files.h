// Files that commands read text from and write reports to.
#pragma once

#include <string>
#include <vector>

#include "model/fidelity/text_windows.h"
#include "server/cli/command.h"

namespace longstride::cli {

constexpr int kMaxDataFiles = 256;

// The file's name without its folder, as reports show it.
std::string BaseName(const std::string& path);

// The files of --data FILE [FILE...]. INVALID_ARGUMENT: none, or one that is empty or cannot be
// read.
absl::StatusOr<std::vector<model::fidelity::Document>> ReadData(const Invocation& invocation);

absl::Status WriteFile(const std::string& path, const std::string& text);

// Whether the files that these flags name can be written: found before minutes are spent.
absl::Status CheckWritable(const Invocation& invocation, const std::vector<std::string>& flags);

// The terminal is for a command's report: only what is wrong is logged, unless asked for.
void LogWarningsOnly(const Invocation& invocation);

}  // namespace longstride::cli

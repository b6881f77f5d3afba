#include "server/cli/data_files.h"

#include <filesystem>
#include <fstream>

#include "config/base/logging.h"
#include "config/nearest_name.h"
#include "server/cli/to_options.h"

namespace longstride::cli {
namespace {

constexpr int64_t kMaxDataBytes = int64_t{1} << 28;

}  // namespace

std::string BaseName(const std::string& path) {
  const std::filesystem::path file(path);
  const std::string name = file.filename().string();
  return name.empty() ? file.parent_path().filename().string() : name;
}

absl::StatusOr<std::vector<model::fidelity::Document>> ReadData(const Invocation& invocation) {
  if (!invocation.Has("--data")) {
    return absl::InvalidArgumentError(
        "No data is given; name one or more text files with --data FILE [FILE...].");
  }
  std::vector<std::string> files = {invocation.Text("--data", "")};
  files.insert(files.end(), invocation.plain.begin(), invocation.plain.end());
  std::vector<model::fidelity::Document> data;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(std::string text, ReadTextFile(file, "The data file", kMaxDataBytes));
    if (text.empty()) {
      return absl::InvalidArgumentError(
          StrCat("The data file ", Quoted(file), " is empty; give one with text."));
    }
    data.push_back({.name = BaseName(file), .text = std::move(text)});
  }
  return data;
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out) {
    return absl::InvalidArgumentError(StrCat(
        "The file ", Quoted(path), " cannot be written; check its folder and the space left."));
  }
  return absl::OkStatus();
}

absl::Status CheckWritable(const Invocation& invocation, const std::vector<std::string>& flags) {
  for (const std::string& flag : flags) {
    if (!invocation.Has(flag)) continue;
    const std::string path = invocation.Text(flag, "");
    const bool existed = std::filesystem::exists(path);
    if (!std::ofstream(path, std::ios::app)) {
      return absl::InvalidArgumentError(
          StrCat(flag, ": the file ", Quoted(path), " cannot be written; check its folder."));
    }
    if (!existed) std::filesystem::remove(path);
  }
  return absl::OkStatus();
}

void LogWarningsOnly(const Invocation& invocation) {
  const bool chosen = invocation.loaded.sources.at("log.level") != "default";
  InitLogging(chosen ? ToLogLevel(invocation.config()) : LogLevel::kWarning,
              ToLogFormat(invocation.config()));
}

}  // namespace longstride::cli

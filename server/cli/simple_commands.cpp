// Commands that need neither a model nor a server: config, audit, reference, hash-key.
#include <termios.h>
#include <unistd.h>

#include <fstream>
#include <iostream>
#include <string>

#include "config/config_docs.h"
#include "config/nearest_name.h"
#include "config/profiles.h"
#include "server/cli/commands.h"
#include "server/frontend/api_keys.h"
#include "server/frontend/audit_chain.h"
#include "server/metrics/metric_table.h"

namespace longstride::cli {
namespace {

constexpr size_t kMaxKeyBytes = 4096;
constexpr size_t kMinKeyBytes = 16;

absl::StatusOr<int> PrintConfig(const Invocation& invocation) {
  if (invocation.Has("--profiles")) {
    for (const Profile& profile : Profiles()) {
      std::cout << "// " << profile.name << "\n" << profile.text << "\n";
    }
    return kExitOk;
  }
  std::cout << EffectiveConfig(invocation.loaded);
  return kExitOk;
}

absl::StatusOr<int> PrintReference(const Invocation& invocation) {
  const std::vector<std::string> pages = {"options", "schema", "metrics"};
  const std::string page = invocation.plain.empty() ? "" : invocation.plain[0];
  if (page == "options") {
    std::cout << ConfigurationMarkdown();
  } else if (page == "schema") {
    std::cout << ConfigurationSchema();
  } else if (page == "metrics") {
    std::cout << metrics::MetricsMarkdown();
  } else {
    return absl::InvalidArgumentError(StrCat("Got the page ", Quoted(page), "; allowed is one of ",
                                             JoinNames(pages), ".", DidYouMean(page, pages)));
  }
  return kExitOk;
}

absl::StatusOr<int> Audit(const Invocation& invocation) {
  if (invocation.plain.size() != 2 || invocation.plain[0] != "verify") {
    return absl::InvalidArgumentError(
        "Which file is to be verified? Usage: longstride audit verify FILE [--head HASH]");
  }
  const std::string head = invocation.Text("--head", "");
  if (invocation.Has("--head") &&
      (head.size() != 64 || head.find_first_not_of("0123456789abcdef") != std::string::npos)) {
    return absl::InvalidArgumentError(
        StrCat("--head: got ", Quoted(head), "; allowed is a record's hash, 64 hex digits."));
  }
  const std::string& file = invocation.plain[1];
  std::ifstream in(file, std::ios::binary);
  if (!in) {
    return absl::InvalidArgumentError(StrCat("The audit log ", Quoted(file),
                                             " cannot be read; check that it exists and is "
                                             "readable."));
  }
  const auto summary = frontend::VerifyAuditLog(in, head);
  if (!summary.ok()) return Annotate(summary.status(), file);
  std::cout << file << ": " << summary->tail.seq << " records, all as they were written\n";
  if (summary->torn > 0) {
    std::cout << summary->torn << " of them cut off by a crash and kept\n";
  }
  if (!head.empty()) std::cout << summary->after_head << " records after the given hash\n";
  std::cout << "head " << summary->tail.hash << "\n";
  return kExitOk;
}

// Reads one line from stdin, without echo where it is a terminal.
std::string ReadSecret() {
  const bool terminal = isatty(STDIN_FILENO) != 0;
  termios saved{};
  if (terminal) {
    std::cerr << "API key: " << std::flush;
    tcgetattr(STDIN_FILENO, &saved);
    termios silent = saved;
    silent.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    tcsetattr(STDIN_FILENO, TCSANOW, &silent);
  }
  std::string line;
  std::getline(std::cin, line);
  if (terminal) {
    tcsetattr(STDIN_FILENO, TCSANOW, &saved);
    std::cerr << "\n";
  }
  return line;
}

absl::StatusOr<int> HashKey(const Invocation& invocation) {
  if (invocation.plain.empty()) {
    return absl::InvalidArgumentError(
        "No name is given; `longstride hash-key NAME` reads the key from standard input and prints "
        "a line for the api_keys file.");
  }
  const std::string& name = invocation.plain[0];
  const std::string key = ReadSecret();
  if (key.size() < kMinKeyBytes || key.size() > kMaxKeyBytes) {
    return absl::InvalidArgumentError(StrCat("The key has ", key.size(), " bytes; allowed is ",
                                             kMinKeyBytes, " to ", kMaxKeyBytes,
                                             ". `openssl rand -hex 32` makes a good one."));
  }
  const std::string line = StrCat(name, ":", frontend::HashApiKey(key));
  RETURN_IF_ERROR(frontend::ApiKeys::Parse(line).status());  // the name, too
  std::cout << line << "\n";
  return kExitOk;
}

}  // namespace

Command ConfigCommand() {
  return {.name = "config",
          .arguments = "[MODEL]",
          .summary = "prints the configuration in effect and where each value came from",
          .flags = {{"--profiles", "", "Print the built-in sparsity profiles instead."}},
          .first_is_model = true,
          .run = &PrintConfig};
}

Command AuditCommand() {
  return {.name = "audit",
          .arguments = "verify FILE",
          .summary = "checks that no record of an audit log was changed, removed or put in",
          .flags = {{"--head", "HASH", "A hash noted earlier: one record must have it."}},
          .takes_options = false,
          .max_plain = 2,
          .run = &Audit};
}

Command ReferenceCommand() {
  return {.name = "reference",
          .arguments = "options|schema|metrics",
          .summary = "prints the pages of docs/ that are made from the program's declarations",
          .flags = {},
          .takes_options = false,
          .max_plain = 1,
          .run = &PrintReference};
}

Command HashKeyCommand() {
  return {.name = "hash-key",
          .arguments = "NAME",
          .summary = "reads an API key from standard input, prints a line for the api_keys file",
          .flags = {},
          .takes_options = false,
          .max_plain = 1,
          .run = &HashKey};
}

}  // namespace longstride::cli

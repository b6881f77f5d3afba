// The operator's files: the configuration and sparsity plans, JSON with comments. The input is either.
#include "config/config_loader.h"
#include "config/profiles.h"
#include "config/sparsity_policy.h"
#include "tests/fuzz/fuzz_target.h"

namespace longstride::fuzz {

void RunInput(std::string_view input) {
  (void)LoadConfig({.file_text = std::string(input), .environment = {}, .flags = {}});
  (void)SparsityPolicy::Parse(std::string(input));
}

std::vector<std::string> Seeds() {
  std::vector<std::string> seeds = {
      R"({
  // Comments are allowed.
  "model": "m.gguf", "max_context": 8192, "device": "cpu", "threads": 4,
  "kv": {"dtype": "q8", "memory": "2GiB", "memory_fraction": 0.5},
  "prefix_cache": {"enabled": false, "fraction": 0.25},
  "scheduler": {"inter_token_bound": "250ms", "max_running": 8},
  "limits": {"slow_client_timeout": "1m30s"}, /* and these */
  "http": {"port": 8080, "max_body": "1MiB"}, "log": {"level": "debug", "format": "json"}
})",
      R"({
  "name": "long-logs", "default": {"pattern": "native"},
  "layers": [
    {"layers": "0-5,9", "pattern": "window", "window": 1024, "sink_tokens": 4},
    {"layers": "6", "heads": "0-3", "pattern": "strided", "stride": 128},
    {"layers": "full", "pattern": "block_sparse", "block": 64, "rows": [[0], [0, 1], []]},
    {"layers": "windowed", "pattern": "fixed", "rows": [[[0, 1]], [[2]]], "x": 0.5, "y": true}
  ]
})"};
  for (const Profile& profile : Profiles()) seeds.emplace_back(profile.text);
  return seeds;
}

}  // namespace longstride::fuzz

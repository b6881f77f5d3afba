// tokenizer.json as it stands: the big tables apart from the rest. Internal to model/text.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace longstride::model {

struct TokenizerJsonFile {
  nlohmann::json rest;  // everything but the tables below, which are null in it
  std::vector<std::pair<std::string, int64_t>> vocab;            // model.vocab of BPE
  std::vector<std::pair<std::string, double>> unigram;           // model.vocab of unigram
  std::vector<std::pair<std::string, std::string>> merges;       // model.merges
};

// A vocabulary of 262,144 tokens has 33 MB of JSON: it is read as a stream, without a tree.
absl::StatusOr<TokenizerJsonFile> ParseTokenizerJson(std::string_view json);

}  // namespace longstride::model

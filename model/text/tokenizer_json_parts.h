// The pipeline components of tokenizer.json: normalizer, pre_tokenizer, decoder, post_processor.
// Internal to model/text.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "absl/status/statusor.h"
#include "model/text/tokenizer_parts.h"

namespace longstride::model {

// GPT-2's expression, which ByteLevel uses.
extern const std::string_view kGpt2Pattern;

// Each takes the JSON of its component (null: absent). Unimplemented names a component that is not
// known and lists those that are.
absl::StatusOr<std::vector<NormalizerStep>> ParseNormalizer(const nlohmann::json& json);
absl::StatusOr<std::vector<PreTokenizerStep>> ParsePreTokenizer(const nlohmann::json& json);
absl::StatusOr<DecoderSpec> ParseDecoder(const nlohmann::json& json);

struct Template {
  std::vector<int32_t> prefix_ids, suffix_ids;
};
absl::StatusOr<Template> ParsePostProcessor(const nlohmann::json& json);

}  // namespace longstride::model

// One request at a time, nothing cached, nothing shared, text searched from the start each time: what
// the engine's output must equal.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "server/engine/request.h"
#include "server/engine/siphash.h"

namespace longstride::engine {

struct NaiveChoice {
  std::string text;      // up to the stop
  std::string all_text;  // with what a stop cuts off
  std::vector<TokenOutput> tokens;  // all sampled ones but a stop token
  int32_t num_sampled = 0;
  FinishReason reason = FinishReason::kLength;
  std::string stop_string;
  std::optional<int32_t> stop_token;
};

NaiveChoice NaiveGenerate(const GenerationRequest& request, int32_t choice, const Hash128& root_key,
                          uint8_t rope_variant, int32_t vocab_size);

std::vector<float> NaiveEmbedding(const GenerationRequest& request, const Hash128& root_key,
                                  uint8_t rope_variant, int32_t dim);

}  // namespace longstride::engine

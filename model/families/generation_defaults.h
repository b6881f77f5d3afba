// What a checkpoint says about generating with it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "config/base/status.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

// Absent values were not stated by the checkpoint.
struct GenerationDefaults {
  std::vector<int32_t> eos_ids;  // ascending, without duplicates; any of them ends a generation
  std::optional<int32_t> bos_id;
  std::optional<int32_t> pad_id;
  std::optional<float> temperature;  // 0 where the checkpoint asks for greedy decoding
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
};

// From generation_config.json (and, for ids, config.json) of a Hugging Face folder, or from GGUF
// metadata. Ids must lie in [0, vocab_size). INVALID_ARGUMENT names the key at fault.
absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const WeightsFile& file,
                                                          int32_t vocab_size);

}  // namespace longstride::model

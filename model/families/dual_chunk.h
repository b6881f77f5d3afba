// Dual chunk attention of the long-context Qwen checkpoints: config key
// dual_chunk_attention_config.
#pragma once

#include "config/base/status.h"
#include "model/families/config_reader.h"
#include "model/families/rope_tables.h"
#include "model/model_spec.h"

namespace longstride::model {

// Sets ModelSpec::dual_chunk where the key is there, after the family's one rotary table was added.
//
// Beyond original_max_position_embeddings = N (0: never) a prompt of n tokens has its queries and
// keys multiplied by 0.1 ln(n / N) + 1. Keys would then depend on n, and no two prompts could share
// pages: here n is rounded to the middle of a sixteenth of a doubling, each a variant of the table.
//
// INVALID_ARGUMENT: bad sizes. UNIMPLEMENTED: sizes or options that cannot be served.
absl::Status ReadDualChunk(const ConfigReader& config, const RopeConfig& rope, ModelSpec* spec);

}  // namespace longstride::model

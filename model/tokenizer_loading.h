// The tokenizer of a checkpoint, from whichever form it carries.
#pragma once

#include <memory>
#include <string>

#include "config/base/status.h"
#include "model/text/tokenizer.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

// tokenizer.json of a Hugging Face folder, or the tokenizer arrays of a GGUF file. INVALID_ARGUMENT
// and UNIMPLEMENTED as Tokenizer's constructors say; NOT_FOUND where there is none.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const WeightsFile& weights);

// The chat template that the checkpoint carries; "" where it has none.
std::string CheckpointChatTemplate(const WeightsFile& weights);

}  // namespace longstride::model

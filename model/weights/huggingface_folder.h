// A Hugging Face checkpoint folder: config.json, safetensors (whole or sharded), text files.
#pragma once

#include <memory>
#include <string>

#include "config/base/status.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

absl::StatusOr<std::unique_ptr<WeightsFile>> OpenHuggingFaceFolder(const std::string& path);

}  // namespace longstride::model

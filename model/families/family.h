// The registry of architectures. A family is one file that turns a checkpoint's metadata and tensor
// names into a ModelSpec, from both checkpoint formats.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "model/model_spec.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

struct Family {
  std::string_view name;                             // "gemma3"
  std::vector<std::string_view> hf_model_types;      // config.json "model_type"
  std::vector<std::string_view> gguf_architectures;  // "general.architecture"
  absl::StatusOr<ModelSpec> (*load)(const WeightsFile& file);
};

const std::vector<Family>& Families();

// Reads the checkpoint's architecture, finds its family and loads the spec. UNIMPLEMENTED names the
// architecture and lists the supported ones; INVALID_ARGUMENT names a missing or misshapen tensor
// or key. Every weight's shape is checked against the spec.
absl::StatusOr<ModelSpec> LoadModelSpec(const WeightsFile& file);

}  // namespace longstride::model

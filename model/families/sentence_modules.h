// The modules that sentence-transformers puts behind a checkpoint: pooling and dense layers.
#pragma once

#include <string>

#include "config/base/status.h"
#include "model/families/config_reader.h"
#include "model/families/weight_binder.h"
#include "model/model_spec.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

// Fills spec->embedding_head from modules.json and its folders; without these it stays as it is (the
// mean of all tokens). UNIMPLEMENTED names a module, a way of pooling or an activation that is not
// computed.
absl::Status ReadSentenceModules(const WeightsFile& file, ModelSpec* spec);

// The activation named by `key`, in Hugging Face's spelling ("gelu") or as a class of PyTorch
// ("torch.nn.modules.activation.GELU").
absl::StatusOr<HeadActivation> ReadHeadActivation(const ConfigReader& config, std::string_view key,
                                                  std::string_view fallback);

// A linear layer of float32 copies, "<base>.weight" and, where the file has it, "<base>.bias".
absl::StatusOr<HeadLayer> BindHeadLayer(const std::string& base, int64_t out, int64_t in,
                                        WeightBinder* binder);

}  // namespace longstride::model

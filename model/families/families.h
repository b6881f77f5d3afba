// The families' loaders, listed in family.cpp, and what neighbouring generations of a family share.
// Each loader expects metadata whose architecture is its own.
#pragma once

#include <vector>

#include "config/base/status.h"
#include "model/families/config_reader.h"
#include "model/families/transformer.h"
#include "model/model_spec.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

absl::StatusOr<ModelSpec> LoadCohere2(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadDeepSeek(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadGemma2(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadGemma3(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadGptOss(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadLlama(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadLlama4(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadLongformer(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadMiniCpm(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadMistral(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadModernBert(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadNsa(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadOlmo2(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadOlmo3(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadPhi3(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadQwen2(const WeightsFile& file);
absl::StatusOr<ModelSpec> LoadQwen3(const WeightsFile& file);

// Qwen2 and Qwen3: activation and windows from config.json.
absl::Status SetQwenLayers(const ConfigReader& config, ModelSpec* spec);

// OLMo 2 and 3.
inline constexpr int32_t kOlmo3Period = 4;
absl::StatusOr<DecoderShape> ReadOlmoShape(const ConfigReader& config);
absl::Status BindOlmoHf(const ConfigReader& config, const DecoderShape& shape,
                        const WeightsFile& file, ModelSpec* spec);
// Full layers use `full_rope` (table 0), sliding ones its base without scaling (table 1).
absl::Status SetOlmo3Layers(const std::vector<LayerKind>& kinds, int32_t window,
                            const RopeConfig& full_rope, const DecoderShape& shape,
                            ModelSpec* spec);

}  // namespace longstride::model

// OLMo 3: OLMo 2 with three sliding layers to one full layer. A scaling of the rotary embedding
// (YaRN in the long-context checkpoints) belongs to the full layers only, also where the
// configuration states it once for all.
#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {

absl::Status SetOlmo3Layers(const std::vector<LayerKind>& kinds, int32_t window,
                            const RopeConfig& full_rope, const DecoderShape& shape,
                            ModelSpec* spec) {
  RopeConfig sliding_rope;
  sliding_rope.theta = full_rope.theta;
  sliding_rope.rotary_dim = full_rope.rotary_dim;
  sliding_rope.partial_rotary_factor = full_rope.partial_rotary_factor;
  RETURN_IF_ERROR(AddRope(full_rope, shape, /*interleaved=*/false, spec));
  RETURN_IF_ERROR(AddRope(sliding_rope, shape, /*interleaved=*/false, spec));
  for (size_t i = 0; i < kinds.size(); ++i) {
    spec->layers[i].attention.qk_norm = QkNorm::kFullWidth;
    spec->layers[i].attention.rope = kinds[i] == LayerKind::kSliding ? 1 : 0;
  }
  return SetWindows(kinds, window, spec);
}

absl::StatusOr<ModelSpec> LoadOlmo3(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadOlmoShape(config));
  ModelSpec spec = MakeSpec("olmo3", shape);
  ASSIGN_OR_RETURN(const std::vector<LayerKind> kinds,
                   ReadLayerTypes(config, shape.num_layers, [](int32_t i) {
                     return (i + 1) % kOlmo3Period != 0 ? LayerKind::kSliding : LayerKind::kFull;
                   }));
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(config, "sliding_window", 4096));
  constexpr double kTheta = 500000.0;
  ASSIGN_OR_RETURN(const RopeConfig full_rope, ReadHfRope(config, "full_attention", kTheta));
  if (config.IsObject("rope_parameters")) {
    // The new spelling may state a base of its own for the sliding layers.
    ASSIGN_OR_RETURN(const RopeConfig sliding, ReadHfRope(config, "sliding_attention", kTheta));
    if (sliding.theta != full_rope.theta) {
      return absl::UnimplementedError(
          "the checkpoint's sliding and full layers have different rotary bases, which this "
          "architecture does not define");
    }
  }
  RETURN_IF_ERROR(SetOlmo3Layers(kinds, window, full_rope, shape, &spec));
  RETURN_IF_ERROR(BindOlmoHf(config, shape, file, &spec));
  return spec;
}

}  // namespace longstride::model

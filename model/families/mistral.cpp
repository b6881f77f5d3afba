// Mistral: Llama's shape with one sliding window for all layers (absent where the key is null).
// GGUF files of it carry the architecture "llama". Source: arXiv 2310.06825.
#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {

absl::StatusOr<ModelSpec> LoadMistral(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  RETURN_IF_ERROR(RefuseKeys(config, {"layer_types"}));
  const HfKeys keys = {.defaults = {.num_kv_heads = 8, .max_positions = 131072}};
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadHfShape(config, keys));
  ModelSpec spec = MakeSpec("mistral", shape);
  constexpr int32_t kDefaultWindow = 4096;
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(config, "sliding_window", kDefaultWindow));
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_act", "silu"));
  for (LayerSpec& layer : spec.layers) {
    layer.attention.native.window = window;
    layer.mlp.activation = activation;
  }
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "full_attention", 10000.0));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(HfNames("model."), shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {"rotary_emb.inv_freq"}));
  return spec;
}

}  // namespace longstride::model

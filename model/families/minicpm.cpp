// MiniCPM 1, 2, 4 and 4.1: a Llama with scaled embeddings (scale_emb), branches (scale_depth /
// sqrt(layers)) and logits (dim_model_base / hidden_size). MiniCPM4 and 4.1 were trained with
// InfLLM-v2; a checkpoint is served so where its configuration has a "sparse_config", as its
// authors' code does. Sources: arXiv 2404.06395, 2506.07900.
#include <algorithm>
#include <cmath>

#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

constexpr int64_t kMaxBlocks = 1 << 20;

// A key of which one value is computed.
absl::Status RequireInt(const ConfigReader& config, std::string_view key, int64_t wanted) {
  ASSIGN_OR_RETURN(const int64_t value, config.IntOr(key, wanted, INT32_MIN, INT32_MAX));
  if (value == wanted) return absl::OkStatus();
  return absl::UnimplementedError(
      StrCat(config.Place(key), " is ", value, "; only ", wanted, " is supported"));
}

absl::StatusOr<InfLlmV2> ReadSparseConfig(const ConfigReader& config) {
  if (!config.Has("sparse_config")) return InfLlmV2{};
  ASSIGN_OR_RETURN(const ConfigReader sparse, config.Object("sparse_config"));
  RETURN_IF_ERROR(RequireInt(sparse, "kernel_size", 2 * kernels::kSegmentTokens));
  RETURN_IF_ERROR(RequireInt(sparse, "kernel_stride", kernels::kSegmentTokens));
  RETURN_IF_ERROR(RequireInt(sparse, "block_size", kernels::kPageTokens));
  RETURN_IF_ERROR(RequireBool(sparse, "use_nope", false));
  ASSIGN_OR_RETURN(const int64_t topk, sparse.IntOr("topk", 64, 1, kMaxBlocks));
  ASSIGN_OR_RETURN(const int64_t init, sparse.IntOr("init_blocks", 1, 0, kMaxBlocks));
  ASSIGN_OR_RETURN(const int64_t window,
                   sparse.IntOr("window_size", 2048, 0, kMaxBlocks * kernels::kPageTokens));
  // -1: always sparse.
  ASSIGN_OR_RETURN(const int64_t dense_len, sparse.IntOr("dense_len", 8192, -1, kMaxPositions));
  if (topk <= init) {
    return absl::InvalidArgumentError(StrCat(
        sparse.Place("topk"), " is ", topk, ", but the first ", init,
        " blocks and the query's own are read in any case: ", init + 1, " or more is allowed"));
  }
  return InfLlmV2{.topk = static_cast<int32_t>(topk),
                  .init_blocks = static_cast<int32_t>(init),
                  .window = static_cast<int32_t>(window),
                  .dense_len = static_cast<int32_t>(std::max<int64_t>(dense_len, 0))};
}

absl::StatusOr<float> ReadScale(const ConfigReader& config, std::string_view key) {
  ASSIGN_OR_RETURN(const double value, config.NumberOr(key, 1.0));
  if (value > 0) return static_cast<float>(value);
  return absl::InvalidArgumentError(
      StrCat(config.Place(key), " is ", value, "; a number above 0 is allowed"));
}

}  // namespace

absl::StatusOr<ModelSpec> LoadMiniCpm(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  // Experts; the layers of MiniCPM-SALA, which are not all attention.
  RETURN_IF_ERROR(RequireInt(config, "num_experts", 0));
  RETURN_IF_ERROR(RefuseKeys(config, {"layer_types", "sliding_window", "mixer_types"}));
  RETURN_IF_ERROR(RequireBool(config, "attention_bias", false));
  RETURN_IF_ERROR(RequireBool(config, "use_output_gate", false));
  ASSIGN_OR_RETURN(
      const DecoderShape shape,
      ReadHfShape(config, {.defaults = {.max_positions = 2048, .tied_embedding = true}}));
  ModelSpec spec = MakeSpec("minicpm", shape);
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_act", "silu"));
  ASSIGN_OR_RETURN(const InfLlmV2 sparse, ReadSparseConfig(config));
  for (LayerSpec& layer : spec.layers) {
    layer.mlp.activation = activation;
    layer.attention.native.infllm_v2 = sparse;
  }
  ASSIGN_OR_RETURN(spec.embedding_scale, ReadScale(config, "scale_emb"));
  ASSIGN_OR_RETURN(const float depth, ReadScale(config, "scale_depth"));
  spec.residual_scale = depth / std::sqrt(static_cast<float>(shape.num_layers));
  ASSIGN_OR_RETURN(const float base, ReadScale(config, "dim_model_base"));
  spec.logit_scale = base / static_cast<float>(shape.dim);
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "full_attention", 10000.0));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(HfNames("model."), shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {"rotary_emb.inv_freq"}));
  return spec;
}

}  // namespace longstride::model

// NSA (native sparse attention, arXiv 2502.11089) as github.com/fla-org/native-sparse-attention
// trains it: a Llama whose layers sum three attentions by gates; see model/sparsity/nsa.cpp. No
// checkpoint is public.
//
// Read as that code computes, not as its configuration reads: heads have the size that the weights
// have, because the model does not hand `head_dim` on to its layers. Its decoding, which forgets
// keys behind the window, is not the function that is trained, and is not computed.
#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

constexpr int64_t kMaxBlocks = 1 << 20;
constexpr int64_t kMaxRatio = 1024;
constexpr int64_t kFfnMultiple = 256;

TensorNames Names() {
  TensorNames names = HfNames("model.");
  names.embedding = "model.embeddings";
  names.attn_norm = "attn_norm";
  names.wq = "attn.q_proj";
  names.wk = "attn.k_proj";
  names.wv = "attn.v_proj";
  names.wo = "attn.o_proj";
  names.attn_gates = "attn.g_proj";
  names.mlp_norm = "mlp_norm";
  return names;
}

// A key whose default a null does not mean.
absl::StatusOr<int32_t> ReadCount(const ConfigReader& config, std::string_view key,
                                  int32_t fallback, int64_t min, int64_t max) {
  if (config.IsNull(key)) {
    return absl::InvalidArgumentError(
        StrCat(config.Place(key), " is null; ", min, " to ", max, " is allowed"));
  }
  ASSIGN_OR_RETURN(const int64_t value, config.IntOr(key, fallback, min, max));
  return static_cast<int32_t>(value);
}

absl::StatusOr<Nsa> ReadNsa(const ConfigReader& config) {
  ASSIGN_OR_RETURN(const int32_t block,
                   ReadCount(config, "block_size", kernels::kPageTokens, 1, kMaxPositions));
  if (block != kernels::kPageTokens) {
    return absl::UnimplementedError(StrCat(config.Place("block_size"), " is ", block, "; only ",
                                           kernels::kPageTokens, " is supported"));
  }
  Nsa nsa;
  ASSIGN_OR_RETURN(nsa.block_counts, ReadCount(config, "block_counts", 16, 1, kMaxBlocks));
  ASSIGN_OR_RETURN(nsa.window, ReadCount(config, "window_size", 512, 0, kMaxPositions));
  return nsa;
}

// What intermediate_size is where the configuration leaves it out.
absl::StatusOr<int32_t> DerivedFfn(const ConfigReader& config, int32_t fallback_dim) {
  ASSIGN_OR_RETURN(const int64_t dim, config.IntOr("hidden_size", fallback_dim, 1, kMaxPositions));
  ASSIGN_OR_RETURN(const int64_t ratio, config.IntOr("hidden_ratio", 4, 1, kMaxRatio));
  const int64_t wanted = dim * ratio * 2 / 3;
  return static_cast<int32_t>(
      std::min(kMaxPositions, (wanted + kFfnMultiple - 1) / kFfnMultiple * kFfnMultiple));
}

absl::StatusOr<DecoderShape> ReadShape(const ConfigReader& config, const WeightsFile& file) {
  HfKeys keys = {.defaults = {.num_layers = 24,
                              .dim = 2048,
                              .num_heads = 64,
                              .num_kv_heads = config.IsNull("num_kv_heads") ? 0 : 4,
                              .head_dim = 32,
                              .vocab_size = 32000,
                              .max_positions = 2048},
                 .num_heads = "num_heads",
                 .num_kv_heads = "num_kv_heads",
                 .norm_eps = "norm_eps"};
  ASSIGN_OR_RETURN(keys.defaults.ffn_dim, DerivedFfn(config, keys.defaults.dim));
  ASSIGN_OR_RETURN(DecoderShape shape, ReadHfShape(config, keys));
  ASSIGN_OR_RETURN(const kernels::TensorView wk, file.Tensor("model.layers.0.attn.k_proj.weight"));
  if (wk.rank != 2 || wk.shape[0] < shape.num_kv_heads || wk.shape[0] % shape.num_kv_heads != 0 ||
      wk.shape[0] > kMaxPositions) {
    return absl::InvalidArgumentError(StrCat("tensor \"model.layers.0.attn.k_proj.weight\" has ",
                                             wk.rank == 2 ? wk.shape[0] : int64_t{0},
                                             " rows, which are not those of ", shape.num_kv_heads,
                                             " key/value heads"));
  }
  shape.head_dim = static_cast<int32_t>(wk.shape[0] / shape.num_kv_heads);
  return shape;
}

}  // namespace

absl::StatusOr<ModelSpec> LoadNsa(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  RETURN_IF_ERROR(RefuseKeys(config, {"rope_scaling", "sliding_window", "layer_types"}));
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadShape(config, file));
  ModelSpec spec = MakeSpec("nsa", shape);
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_act", "swish"));
  ASSIGN_OR_RETURN(const Nsa nsa, ReadNsa(config));
  for (LayerSpec& layer : spec.layers) {
    layer.mlp.activation = activation;
    layer.attention.gates = Nsa::kParts;
    layer.attention.native.nsa = nsa;
  }
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfRope(config, "full_attention", 10000.0));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  TensorNames names = Names();
  ASSIGN_OR_RETURN(const bool bias, config.BoolOr("qkv_bias", false));
  names.qkv_bias = bias ? BiasRule::kRequired : BiasRule::kNone;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindTransformer(names, shape.tied_embedding, &binder, &spec));
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {"rotary.inv_freq"}));
  spec.notes.emplace_back(
      "parity only: no checkpoint of the architecture \"nsa\" is public; it is tested with a tiny "
      "one against a brute force from the formula.");
  return spec;
}

}  // namespace longstride::model

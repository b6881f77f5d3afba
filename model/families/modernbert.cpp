// ModernBERT: an encoder. Every third layer reads the whole document, the others a window to both
// sides, each kind with a rotary base of its own; LayerNorm without bias (none before the first
// layer's attention, whose input the embedding norm made), a gated MLP. Source: arXiv 2412.13663 and
// the checkpoints' configuration.
#include "model/families/classifier.h"
#include "model/families/families.h"
#include "model/families/sentence_modules.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

constexpr int64_t kPeriod = 3;
constexpr double kGlobalTheta = 160000.0;
constexpr double kLocalTheta = 10000.0;
constexpr std::string_view kClassifierClass = "ModernBertForSequenceClassification";

// The table of one kind of layer in both spellings: rope_parameters, or a base for each kind.
absl::StatusOr<RopeConfig> ReadRope(const ConfigReader& config, std::string_view layer_type,
                                    std::string_view base_key, double default_theta) {
  ASSIGN_OR_RETURN(const double theta, config.NumberOr(base_key, default_theta));
  return ReadHfRope(config, layer_type, theta);
}

// RoPE table 0 is the full layers', table 1 the windowed ones'.
absl::Status SetLayers(const ConfigReader& config, const DecoderShape& shape, ModelSpec* spec) {
  ASSIGN_OR_RETURN(const int64_t period,
                   config.IntOr("global_attn_every_n_layers", kPeriod, 1, kMaxLayers));
  ASSIGN_OR_RETURN(const std::vector<LayerKind> kinds,
                   ReadLayerTypes(config, shape.num_layers, [&](int32_t i) {
                     return i % period != 0 ? LayerKind::kSliding : LayerKind::kFull;
                   }));
  // The width of the window, of which half lies to either side of the query.
  ASSIGN_OR_RETURN(const int64_t width, config.IntOr("local_attention", 128, 1, kMaxPositions));
  RETURN_IF_ERROR(SetWindows(kinds, static_cast<int32_t>(width / 2 + 1), spec));
  ASSIGN_OR_RETURN(const RopeConfig global,
                   ReadRope(config, "full_attention", "global_rope_theta", kGlobalTheta));
  // An older spelling of "as in the full layers" is null.
  ASSIGN_OR_RETURN(const RopeConfig local,
                   ReadRope(config, "sliding_attention", "local_rope_theta",
                            config.IsNull("local_rope_theta") ? global.theta : kLocalTheta));
  RETURN_IF_ERROR(AddRope(global, shape, /*interleaved=*/false, spec));
  RETURN_IF_ERROR(AddRope(local, shape, /*interleaved=*/false, spec));
  ASSIGN_OR_RETURN(const kernels::Activation activation,
                   ReadActivation(config, "hidden_activation", "gelu"));
  for (size_t i = 0; i < spec->layers.size(); ++i) {
    spec->layers[i].attention.rope = kinds[i] == LayerKind::kSliding ? 1 : 0;
    spec->layers[i].mlp.activation = activation;
  }
  return absl::OkStatus();
}

absl::Status BindEncoder(const std::string& prefix, WeightBinder* binder, ModelSpec* spec) {
  TensorNames names;
  names.embedding = prefix + "embeddings.tok_embeddings";
  names.output_norm = prefix + "final_norm";
  names.layer_prefix = prefix + "layers.";
  names.fused_qkv = "attn.Wqkv";
  names.wo = "attn.Wo";
  names.mlp_norm = "mlp_norm";
  names.fused_gate_up = "mlp.Wi";
  names.down = "mlp.Wo";
  RETURN_IF_ERROR(BindGlobals(names, /*tied=*/true, binder, spec));
  ASSIGN_OR_RETURN(spec->embedding_norm,
                   binder->Vector(prefix + "embeddings.norm.weight", spec->dim));
  for (int32_t layer = 0; layer < static_cast<int32_t>(spec->layers.size()); ++layer) {
    names.attn_norm = layer == 0 ? "" : "attn_norm";
    RETURN_IF_ERROR(BindAttention(names, layer, binder, spec));
    RETURN_IF_ERROR(BindMlp(names, layer, binder, spec));
  }
  return absl::OkStatus();
}

absl::StatusOr<Classifier> BindClassifier(const ConfigReader& config, WeightBinder* binder,
                                          int32_t dim) {
  Classifier classifier;
  ASSIGN_OR_RETURN(const std::string pooling, config.StringOr("classifier_pooling", "cls"));
  if (pooling != "cls" && pooling != "mean") {
    return absl::UnimplementedError(StrCat(config.Place("classifier_pooling"), " is \"",
                                           pooling.substr(0, 80), "\"; supported are cls and mean"));
  }
  classifier.head.pooling = pooling == "cls" ? Pooling::kFirst : Pooling::kMean;
  RETURN_IF_ERROR(ReadClasses(config, &classifier));
  ASSIGN_OR_RETURN(HeadLayer dense, BindHeadLayer("head.dense", dim, dim, binder));
  ASSIGN_OR_RETURN(dense.activation, ReadHeadActivation(config, "classifier_activation", "gelu"));
  ASSIGN_OR_RETURN(dense.norm, binder->Vector("head.norm.weight", dim));
  ASSIGN_OR_RETURN(HeadLayer scores,
                   BindHeadLayer("classifier", static_cast<int64_t>(classifier.labels.size()), dim,
                                 binder));
  classifier.head.layers = {dense, scores};
  return classifier;
}

}  // namespace

absl::StatusOr<ModelSpec> LoadModernBert(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckQuantization(config));
  for (const std::string_view key : {"attention_bias", "mlp_bias", "norm_bias"}) {
    RETURN_IF_ERROR(RequireBool(config, key, false));
  }
  const DecoderShape defaults = {.num_layers = 22,
                                 .dim = 768,
                                 .num_heads = 12,
                                 .ffn_dim = 1152,
                                 .vocab_size = 50368,
                                 .max_positions = 8192,
                                 .norm_eps = 1e-5f,
                                 .tied_embedding = true};
  ASSIGN_OR_RETURN(const DecoderShape shape,
                   ReadHfShape(config, {.defaults = defaults, .norm_eps = "norm_eps"}));
  ModelSpec spec = MakeSpec("modernbert", shape);
  spec.causal = false;
  spec.norm = NormKind::kLayerNorm;
  RETURN_IF_ERROR(SetLayers(config, shape, &spec));
  WeightBinder binder(file, &spec);
  const bool bare = file.Has("embeddings.tok_embeddings.weight");
  RETURN_IF_ERROR(BindEncoder(bare ? "" : "model.", &binder, &spec));
  ASSIGN_OR_RETURN(const bool classifies,
                   Classifies(config, file, "classifier.weight", kClassifierClass));
  if (classifies) {
    ASSIGN_OR_RETURN(spec.classifier, BindClassifier(config, &binder, spec.dim));
    RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
    return spec;
  }
  // The head that it was trained with, for masked tokens.
  RETURN_IF_ERROR(binder.CheckAllUsed({"head.", "decoder."}, {}));
  return spec;
}

}  // namespace longstride::model

#include "model/families/bert_encoder.h"

#include <utility>

#include "model/families/classifier.h"
#include "model/families/sentence_modules.h"

namespace longstride::model {
namespace {

constexpr int64_t kMaxTokenTypes = 1 << 16;

absl::Status RequireAbsolutePositions(const ConfigReader& config) {
  constexpr std::string_view kKey = "position_embedding_type";
  if (!config.Has(kKey)) return absl::OkStatus();
  const absl::StatusOr<std::string> kind = config.String(kKey);
  RETURN_IF_ERROR(kind.status());
  if (*kind == "absolute") return absl::OkStatus();
  return absl::UnimplementedError(StrCat(config.Place(kKey), " is \"", kind->substr(0, 80),
                                         "\"; the only one supported is absolute"));
}

// The rows of the table that texts have, each with the type's embedding in it.
absl::Status BindPositions(const std::string& prefix, const ConfigReader& config,
                           int32_t first_position, WeightBinder* binder, ModelSpec* spec) {
  const int64_t rows = int64_t{spec->max_positions} + first_position;
  ASSIGN_OR_RETURN(const kernels::TensorView table,
                   binder->SmallMatrix(prefix + "position_embeddings.weight", rows, spec->dim));
  ASSIGN_OR_RETURN(const int64_t num_types, config.IntOr("type_vocab_size", 2, 1, kMaxTokenTypes));
  ASSIGN_OR_RETURN(
      const kernels::TensorView types,
      binder->SmallMatrix(prefix + "token_type_embeddings.weight", num_types, spec->dim));
  spec->position_embedding = RowRange(table, first_position, spec->max_positions);
  for (int64_t r = 0; r < spec->max_positions; ++r) {
    auto* row = spec->position_embedding.row<float>(r);
    for (int64_t c = 0; c < spec->dim; ++c) row[c] += types.row<float>(0)[c];
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelSpec> ReadBertSpec(std::string_view family, const ConfigReader& config,
                                       const DecoderShape& defaults, std::string_view activation,
                                       int32_t first_position) {
  RETURN_IF_ERROR(CheckQuantization(config));
  for (const std::string_view key : {"is_decoder", "add_cross_attention"}) {
    RETURN_IF_ERROR(RequireBool(config, key, false));
  }
  RETURN_IF_ERROR(RequireAbsolutePositions(config));
  ASSIGN_OR_RETURN(DecoderShape shape,
                   ReadHfShape(config, {.defaults = defaults, .norm_eps = "layer_norm_eps"}));
  if (shape.max_positions <= first_position) {
    return absl::InvalidArgumentError(StrCat(config.Place("max_position_embeddings"), " is ",
                                             shape.max_positions, ", but positions begin at ",
                                             first_position));
  }
  shape.max_positions -= first_position;
  ModelSpec spec = MakeSpec(family, shape);
  spec.causal = false;
  spec.norm = NormKind::kLayerNorm;
  spec.norm_sums = true;
  ASSIGN_OR_RETURN(const kernels::Activation mlp, ReadActivation(config, "hidden_act", activation));
  for (LayerSpec& layer : spec.layers) {
    layer.attention.rope = -1;
    layer.mlp.activation = mlp;
  }
  return spec;
}

absl::Status BindBert(const std::string& prefix, const ConfigReader& config, BiasRule qkv_bias,
                      int32_t first_position, WeightBinder* binder, ModelSpec* spec) {
  TensorNames names;
  names.embedding = prefix + "embeddings.word_embeddings";
  names.layer_prefix = prefix + "encoder.layer.";
  names.wq = "attention.self.query";
  names.wk = "attention.self.key";
  names.wv = "attention.self.value";
  names.wo = "attention.output.dense";
  names.post_attn_norm = "attention.output.LayerNorm";
  names.gate = "intermediate.dense";
  names.down = "output.dense";
  names.post_mlp_norm = "output.LayerNorm";
  names.qkv_bias = qkv_bias;
  names.wo_bias = names.mlp_bias = names.norm_bias = BiasRule::kRequired;
  RETURN_IF_ERROR(BindTransformer(names, /*tied=*/true, binder, spec));
  const std::string embeddings = prefix + "embeddings.";
  RETURN_IF_ERROR(BindPositions(embeddings, config, first_position, binder, spec));
  ASSIGN_OR_RETURN(spec->embedding_norm,
                   binder->Vector(embeddings + "LayerNorm.weight", spec->dim));
  ASSIGN_OR_RETURN(spec->embedding_norm_bias,
                   binder->Vector(embeddings + "LayerNorm.bias", spec->dim));
  for (const std::string_view buffer : {"position_ids", "token_type_ids"}) {
    binder->MarkUsed(StrCat(embeddings, buffer));  // 0, 1, 2, ... and 0, 0, 0, ...
  }
  return absl::OkStatus();
}

absl::StatusOr<Classifier> BindBertClassifier(const ConfigReader& config, HeadActivation activation,
                                              WeightBinder* binder, int32_t dim) {
  Classifier classifier;
  classifier.head.pooling = Pooling::kFirst;
  RETURN_IF_ERROR(ReadClasses(config, &classifier));
  ASSIGN_OR_RETURN(HeadLayer dense, BindHeadLayer("classifier.dense", dim, dim, binder));
  dense.activation = activation;
  ASSIGN_OR_RETURN(HeadLayer scores,
                   BindHeadLayer("classifier.out_proj",
                                 static_cast<int64_t>(classifier.labels.size()), dim, binder));
  classifier.head.layers = {dense, scores};
  return classifier;
}

}  // namespace longstride::model

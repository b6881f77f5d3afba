// Longformer: an encoder of BERT's kind. Every layer reads a window to both sides, and where the
// checkpoint classifies the first token is global: all read it, and it reads the whole text in
// projections of its own. Bare encoders have no global token, as in Hugging Face's class. Source:
// arXiv 2004.05150 and the checkpoints' configuration.
#include <tuple>

#include "model/families/bert_encoder.h"
#include "model/families/classifier.h"
#include "model/families/families.h"

namespace longstride::model {
namespace {

constexpr std::string_view kClassifierClass = "LongformerForSequenceClassification";

// "attention_window": the width of the window, of which half lies to either side of the query; one
// for all layers, or one for each.
absl::Status SetWindows(const ConfigReader& config, ModelSpec* spec) {
  std::vector<int64_t> widths = {512};
  if (config.Has("attention_window")) {
    ASSIGN_OR_RETURN(widths, config.Ints("attention_window"));
  }
  const size_t num_layers = spec->layers.size();
  if (!config.IsList("attention_window") && widths.size() == 1) {
    widths.resize(num_layers, widths[0]);
  }
  if (widths.size() != num_layers) {
    return absl::InvalidArgumentError(StrCat(config.Place("attention_window"), " has ",
                                             widths.size(), " windows for ", num_layers,
                                             " layers"));
  }
  for (size_t l = 0; l < num_layers; ++l) {
    const int64_t width = widths[l];
    if (width < 2 || width % 2 != 0 || width > kMaxPositions) {
      return absl::InvalidArgumentError(
          StrCat(config.Place("attention_window"), " has a window of ", width,
                 "; an even number of tokens from 2 to ", kMaxPositions, " is needed"));
    }
    spec->layers[l].attention.native.window = static_cast<int32_t>(width / 2 + 1);
  }
  return absl::OkStatus();
}

absl::Status BindGlobal(const std::string& prefix, WeightBinder* binder, ModelSpec* spec) {
  for (size_t l = 0; l < spec->layers.size(); ++l) {
    LayerSpec& layer = spec->layers[l];
    LayerWeights& w = layer.weights;
    layer.attention.native.global_tokens = 1;
    const std::string self = StrCat(prefix, "encoder.layer.", l, ".attention.self.");
    for (const auto& [name, weight, bias] :
         {std::tuple("query_global", &w.global_wq, &w.global_bq),
          std::tuple("key_global", &w.global_wk, &w.global_bk),
          std::tuple("value_global", &w.global_wv, &w.global_bv)}) {
      ASSIGN_OR_RETURN(*weight,
                       binder->Matrix(StrCat(self, name, ".weight"), spec->dim, spec->dim));
      ASSIGN_OR_RETURN(*bias, binder->Vector(StrCat(self, name, ".bias"), spec->dim));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelSpec> LoadLongformer(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  const DecoderShape defaults = {.num_layers = 12,
                                 .dim = 768,
                                 .num_heads = 12,
                                 .ffn_dim = 3072,
                                 .vocab_size = 30522,
                                 .max_positions = 512,
                                 .norm_eps = 1e-12f};
  // Row pad_token_id of the position table is padding's, and those before it are nobody's.
  ASSIGN_OR_RETURN(const int64_t padding, config.IntOr("pad_token_id", 1, 0, kMaxPositions));
  const auto first = static_cast<int32_t>(padding + 1);
  ASSIGN_OR_RETURN(ModelSpec spec, ReadBertSpec("longformer", config, defaults, "gelu", first));
  RETURN_IF_ERROR(SetWindows(config, &spec));
  WeightBinder binder(file, &spec);
  const bool bare = file.Has("embeddings.word_embeddings.weight");
  const std::string prefix = bare ? "" : "longformer.";
  RETURN_IF_ERROR(BindBert(prefix, config, BiasRule::kRequired, first, &binder, &spec));
  ASSIGN_OR_RETURN(const bool classifies,
                   Classifies(config, file, "classifier.out_proj.weight", kClassifierClass));
  if (classifies) {
    RETURN_IF_ERROR(BindGlobal(prefix, &binder, &spec));
    ASSIGN_OR_RETURN(spec.classifier,
                     BindBertClassifier(config, HeadActivation::kTanh, &binder, spec.dim));
    RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
    return spec;
  }
  // The head that it was trained with, for masked tokens, and what only global tokens use.
  RETURN_IF_ERROR(binder.CheckAllUsed({"lm_head.", "pooler.", "longformer.pooler."},
                                      {"_global.weight", "_global.bias"}));
  return spec;
}

}  // namespace longstride::model

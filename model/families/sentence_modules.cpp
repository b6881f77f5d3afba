#include "model/families/sentence_modules.h"

#include "model/families/transformer.h"

namespace longstride::model {
namespace {

constexpr int64_t kMaxFeatures = 1 << 16;

absl::StatusOr<ConfigReader> ModuleConfig(const WeightsFile& file, const CheckpointModule& module) {
  const std::string name = StrCat(module.folder, "/config.json");
  const std::optional<std::string> text = file.TextFile(name);
  if (module.folder.empty() || !text) {
    return absl::InvalidArgumentError(
        StrCat("modules.json: the module \"", module.type, "\" has no config.json in a folder of its own"));
  }
  return ConfigReader::Parse(*text, name);
}

// "pooling_mode": "mean", or in the older spelling one of several booleans.
absl::StatusOr<Pooling> ReadPooling(const ConfigReader& config) {
  struct Mode {
    std::string_view name, key;
  };
  static constexpr Mode kModes[] = {{"cls", "pooling_mode_cls_token"},
                                    {"mean", "pooling_mode_mean_tokens"},
                                    {"lasttoken", "pooling_mode_lasttoken"},
                                    {"max", "pooling_mode_max_tokens"},
                                    {"mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"},
                                    {"weightedmean", "pooling_mode_weightedmean_tokens"}};
  RETURN_IF_ERROR(RequireBool(config, "include_prompt", true));
  std::string chosen;
  if (config.Has("pooling_mode")) {
    ASSIGN_OR_RETURN(chosen, config.String("pooling_mode"));
  } else {
    for (const Mode& mode : kModes) {
      ASSIGN_OR_RETURN(const bool on, config.BoolOr(mode.key, false));
      if (on) StrAppend(&chosen, chosen.empty() ? "" : " and ", mode.name);
    }
  }
  if (chosen.empty() || chosen == "mean") return Pooling::kMean;
  if (chosen == "cls") return Pooling::kFirst;
  if (chosen == "lasttoken") return Pooling::kLast;
  return absl::UnimplementedError(StrCat(config.Place("pooling_mode"), " is \"", chosen.substr(0, 80),
                                         "\"; supported are cls, mean and lasttoken"));
}

absl::StatusOr<HeadLayer> ReadDense(const ConfigReader& config, const std::string& folder,
                                    int64_t in, WeightBinder* binder) {
  ASSIGN_OR_RETURN(const int64_t wanted, config.Int("in_features", 1, kMaxFeatures));
  ASSIGN_OR_RETURN(const int64_t out, config.Int("out_features", 1, kMaxFeatures));
  if (wanted != in) {
    return absl::InvalidArgumentError(StrCat(config.Place("in_features"), " is ", wanted,
                                             ", but the step before gives ", in));
  }
  RETURN_IF_ERROR(RequireBool(config, "use_residual", false));
  ASSIGN_OR_RETURN(HeadLayer layer, BindHeadLayer(folder + "/linear", out, in, binder));
  ASSIGN_OR_RETURN(layer.activation, ReadHeadActivation(config, "activation_function", "Tanh"));
  return layer;
}

}  // namespace

absl::StatusOr<HeadActivation> ReadHeadActivation(const ConfigReader& config, std::string_view key,
                                                  std::string_view fallback) {
  ASSIGN_OR_RETURN(const std::string text, config.StringOr(key, fallback));
  const std::string_view name = std::string_view(text).substr(text.find_last_of('.') + 1);
  if (name == "Identity") return HeadActivation::kNone;
  if (name == "gelu" || name == "GELU") return HeadActivation::kGelu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return HeadActivation::kGeluTanh;
  if (name == "relu" || name == "ReLU") return HeadActivation::kRelu;
  if (name == "silu" || name == "swish" || name == "SiLU") return HeadActivation::kSilu;
  if (name == "tanh" || name == "Tanh") return HeadActivation::kTanh;
  return absl::UnimplementedError(StrCat(config.Place(key), " is \"", text.substr(0, 80),
                                         "\"; supported are identity, gelu, gelu_pytorch_tanh, relu, "
                                         "silu and tanh"));
}

absl::StatusOr<HeadLayer> BindHeadLayer(const std::string& base, int64_t out, int64_t in,
                                        WeightBinder* binder) {
  HeadLayer layer;
  ASSIGN_OR_RETURN(layer.weight, binder->SmallMatrix(base + ".weight", out, in));
  ASSIGN_OR_RETURN(layer.bias, BindBias(base, out, BiasRule::kIfPresent, binder));
  return layer;
}

absl::Status ReadSentenceModules(const WeightsFile& file, ModelSpec* spec) {
  WeightBinder binder(file, spec);
  int64_t width = spec->dim;
  for (const CheckpointModule& module : file.modules()) {
    if (module.type == "Transformer" || module.type == "Normalize") continue;
    if (module.type == "Pooling") {
      ASSIGN_OR_RETURN(const ConfigReader config, ModuleConfig(file, module));
      ASSIGN_OR_RETURN(spec->embedding_head.pooling, ReadPooling(config));
    } else if (module.type == "Dense") {
      ASSIGN_OR_RETURN(const ConfigReader config, ModuleConfig(file, module));
      ASSIGN_OR_RETURN(HeadLayer layer, ReadDense(config, module.folder, width, &binder));
      width = layer.weight.shape[0];
      spec->embedding_head.layers.push_back(layer);
    } else {
      return absl::UnimplementedError(StrCat("modules.json: the module \"", module.type.substr(0, 80),
                                             "\" is not supported; supported are Transformer, "
                                             "Pooling, Dense and Normalize"));
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::model

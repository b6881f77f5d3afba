#include "model/families/family.h"

#include <cmath>

#include "model/families/families.h"
#include "model/families/sentence_modules.h"

namespace longstride::model {
namespace {

bool Contains(const std::vector<std::string_view>& names, std::string_view name) {
  for (const std::string_view candidate : names) {
    if (candidate == name) return true;
  }
  return false;
}

std::string SupportedNames(CheckpointFormat format) {
  std::string out;
  for (const Family& family : Families()) {
    for (const std::string_view name :
         format == CheckpointFormat::kGguf ? family.gguf_architectures : family.hf_model_types) {
      StrAppend(&out, out.empty() ? "" : ", ", name);
    }
  }
  return out;
}

// general.file_type of a GGUF file, or the dtype that config.json names.
std::string GgufWeightsType(int64_t file_type) {
  switch (file_type) {
    case 0:
      return "F32";
    case 1:
      return "F16";
    case 2:
      return "Q4_0";
    case 3:
      return "Q4_1";
    case 7:
      return "Q8_0";
    case 8:
      return "Q5_0";
    case 9:
      return "Q5_1";
    case 14:
      return "Q4_K_S";
    case 15:
      return "Q4_K_M";
    case 16:
      return "Q5_K_S";
    case 17:
      return "Q5_K_M";
    case 18:
      return "Q6_K";
    case 32:
      return "BF16";
    case 38:
      return "MXFP4";
    default:
      return "";
  }
}

absl::Status DescribeGguf(const ConfigReader& metadata, ModelSpec* spec) {
  ASSIGN_OR_RETURN(spec->name, metadata.StringOr("general.name", ""));
  ASSIGN_OR_RETURN(const int64_t file_type, metadata.IntOr("general.file_type", -1, 0, INT32_MAX));
  spec->weights_type = GgufWeightsType(file_type);
  return absl::OkStatus();
}

// Numbers of the configuration that are finite as read may not be so in float32.
absl::Status CheckFinite(const ModelSpec& spec) {
  bool finite = std::isfinite(spec.norm_eps) && std::isfinite(spec.logit_scale) &&
                std::isfinite(spec.logit_softcap) && std::isfinite(spec.embedding_scale) &&
                std::isfinite(spec.residual_scale);
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& a = layer.attention;
    finite &= std::isfinite(a.scale) && std::isfinite(a.softcap) &&
              std::isfinite(a.position_attn_scale) && std::isfinite(a.position_floor_scale) &&
              std::isfinite(layer.mlp.activation_limit) && std::isfinite(layer.mlp.expert_scale);
  }
  for (const RopeSpec& rope : spec.ropes) {
    for (const RopeTable& table : rope.variants) {
      finite &= std::isfinite(table.scale);
      for (const float frequency : table.inv_freq) finite &= std::isfinite(frequency);
    }
  }
  if (finite) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "the checkpoint's configuration has a scale, limit or rotary option that is too large for "
      "float32: it is damaged");
}

}  // namespace

const std::vector<Family>& Families() {
  static const std::vector<Family> families = {
      {"cohere2", {"cohere2"}, {"cohere2"}, LoadCohere2},
      {"deepseek", {"deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa"}, {}, LoadDeepSeek},
      {"gemma2", {"gemma2"}, {"gemma2"}, LoadGemma2},
      {"gemma3", {"gemma3_text", "gemma3"}, {"gemma3"}, LoadGemma3},
      {"gpt_oss", {"gpt_oss"}, {"gpt-oss"}, LoadGptOss},
      {"llama", {"llama"}, {"llama"}, LoadLlama},
      {"llama4_text", {"llama4_text", "llama4"}, {"llama4"}, LoadLlama4},
      {"longformer", {"longformer"}, {}, LoadLongformer},
      {"minicpm", {"minicpm"}, {}, LoadMiniCpm},
      {"mistral", {"mistral"}, {}, LoadMistral},
      {"modernbert", {"modernbert"}, {}, LoadModernBert},
      {"nsa", {"nsa"}, {}, LoadNsa},
      {"olmo2", {"olmo2"}, {"olmo2"}, LoadOlmo2},
      {"olmo3", {"olmo3"}, {}, LoadOlmo3},
      {"phi3", {"phi3"}, {"phi3"}, LoadPhi3},
      {"qwen2", {"qwen2"}, {"qwen2"}, LoadQwen2},
      {"qwen3", {"qwen3"}, {"qwen3"}, LoadQwen3},
  };
  return families;
}

absl::StatusOr<ModelSpec> LoadModelSpec(const WeightsFile& file) {
  const bool gguf = file.format() == CheckpointFormat::kGguf;
  ASSIGN_OR_RETURN(
      const ConfigReader metadata,
      ConfigReader::Parse(file.metadata_json(), gguf ? "GGUF metadata" : "config.json"));
  ASSIGN_OR_RETURN(const std::string arch,
                   metadata.String(gguf ? "general.architecture" : "model_type"));
  for (const Family& family : Families()) {
    if (!Contains(gguf ? family.gguf_architectures : family.hf_model_types, arch)) continue;
    ASSIGN_OR_RETURN(ModelSpec spec, family.load(file));
    RETURN_IF_ERROR(ReadSentenceModules(file, &spec));
    RETURN_IF_ERROR(CheckFinite(spec));
    if (gguf) RETURN_IF_ERROR(DescribeGguf(metadata, &spec));
    if (spec.name.empty()) spec.name = file.name();
    spec.digest = file.digest();
    if (spec.weights_type.empty()) {
      spec.weights_type = kernels::DTypeName(spec.layers.front().weights.wq.dtype);
    }
    return spec;
  }
  return absl::UnimplementedError(StrCat("the checkpoint's architecture \"", arch.substr(0, 80),
                                         "\" is not supported; supported are ",
                                         SupportedNames(file.format())));
}

}  // namespace longstride::model

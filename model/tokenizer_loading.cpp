#include "model/tokenizer_loading.h"

#include <optional>
#include <utility>

#include "nlohmann/json.hpp"

namespace longstride::model {
namespace {

using nlohmann::json;

std::string TextOf(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

std::optional<int32_t> IdOf(const json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_integer()) return std::nullopt;
  const auto id = it->get<int64_t>();
  if (id < 0 || id > INT32_MAX) return std::nullopt;  // the format's "none" is 2^32 - 1
  return static_cast<int32_t>(id);
}

std::optional<bool> FlagOf(const json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_boolean()) return std::nullopt;
  return it->get<bool>();
}

absl::StatusOr<json> Metadata(const WeightsFile& weights) {
  json metadata = json::parse(weights.metadata_json(), nullptr, /*allow_exceptions=*/false);
  if (!metadata.is_object()) {
    return absl::InvalidArgumentError("the checkpoint's metadata is not a JSON object.");
  }
  return metadata;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const WeightsFile& weights) {
  ASSIGN_OR_RETURN(const json metadata, Metadata(weights));
  GgufVocab vocab;
  vocab.model = TextOf(metadata, "tokenizer.ggml.model");
  if (vocab.model.empty()) {
    return absl::NotFoundError(
        "the file has no tokenizer (key tokenizer.ggml.model); convert the checkpoint with its "
        "vocabulary.");
  }
  vocab.pre = TextOf(metadata, "tokenizer.ggml.pre");
  vocab.architecture = TextOf(metadata, "general.architecture");
  vocab.tokens = weights.GgufStrings("tokenizer.ggml.tokens");
  vocab.scores = weights.GgufFloats("tokenizer.ggml.scores");
  vocab.merges = weights.GgufStrings("tokenizer.ggml.merges");
  for (const int64_t type : weights.GgufInts("tokenizer.ggml.token_type")) {
    vocab.token_types.push_back(static_cast<int32_t>(type));
  }
  vocab.bos = IdOf(metadata, "tokenizer.ggml.bos_token_id");
  vocab.eos = IdOf(metadata, "tokenizer.ggml.eos_token_id");
  vocab.eot = IdOf(metadata, "tokenizer.ggml.eot_token_id");
  vocab.eom = IdOf(metadata, "tokenizer.ggml.eom_token_id");
  vocab.unk = IdOf(metadata, "tokenizer.ggml.unknown_token_id");
  vocab.pad = IdOf(metadata, "tokenizer.ggml.padding_token_id");
  vocab.add_bos = FlagOf(metadata, "tokenizer.ggml.add_bos_token");
  vocab.add_eos = FlagOf(metadata, "tokenizer.ggml.add_eos_token");
  vocab.add_space_prefix = FlagOf(metadata, "tokenizer.ggml.add_space_prefix");
  return Tokenizer::FromGguf(vocab);
}

// "chat_template" of tokenizer_config.json: a text, or a list of named ones ("default" counts).
std::string TemplateOfConfig(const std::string& text) {
  const json config = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || !config.contains("chat_template")) return "";
  const json& value = config["chat_template"];
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return "";
  for (const json& named : value) {
    if (named.is_object() && TextOf(named, "name") == "default") return TextOf(named, "template");
  }
  return "";
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const WeightsFile& weights) {
  if (weights.format() == CheckpointFormat::kGguf) return FromGguf(weights);
  const std::optional<std::string> text = weights.TextFile("tokenizer.json");
  if (!text) {
    return absl::NotFoundError(
        "the folder has no tokenizer.json; save the checkpoint with a fast tokenizer.");
  }
  return Tokenizer::FromTokenizerJson(*text,
                                      weights.TextFile("tokenizer_config.json").value_or(""));
}

std::string CheckpointChatTemplate(const WeightsFile& weights) {
  if (weights.format() == CheckpointFormat::kGguf) {
    const auto metadata = Metadata(weights);
    return metadata.ok() ? TextOf(*metadata, "tokenizer.chat_template") : "";
  }
  if (auto text = weights.TextFile("chat_template.jinja")) return *std::move(text);
  const std::optional<std::string> config = weights.TextFile("tokenizer_config.json");
  return config ? TemplateOfConfig(*config) : "";
}

}  // namespace longstride::model

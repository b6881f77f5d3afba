#include "model/families/generation_defaults.h"

#include <algorithm>
#include <set>

#include "model/families/config_reader.h"
#include "model/weights/json_check.h"

namespace longstride::model {
namespace {

constexpr size_t kMaxBytes = size_t{1} << 20;
constexpr int kMaxDepth = 32;

// Adds the ids of a key that holds one id or a list; ids that the vocabulary lacks are an error.
absl::Status ReadIds(const ConfigReader& config, std::string_view key, int32_t vocab_size,
                     std::vector<int32_t>* ids) {
  if (!config.Has(key)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<int64_t> values, config.Ints(key));
  for (const int64_t value : values) {
    if (value < 0 || value >= vocab_size) {
      return absl::InvalidArgumentError(StrCat(config.Place(key), " has the token id ", value,
                                               "; the vocabulary has ", vocab_size, " tokens"));
    }
    ids->push_back(static_cast<int32_t>(value));
  }
  return absl::OkStatus();
}

absl::Status ReadId(const ConfigReader& config, std::string_view key, int32_t vocab_size,
                    std::optional<int32_t>* id) {
  // Some files write -1 (or a list, for several end ids) where there is no such token.
  if (!config.Has(key) || config.IsList(key)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<int64_t> values, config.Ints(key));
  if (values[0] == -1) return absl::OkStatus();
  std::vector<int32_t> ids;
  RETURN_IF_ERROR(ReadIds(config, key, vocab_size, &ids));
  *id = ids[0];
  return absl::OkStatus();
}

absl::Status ReadFraction(const ConfigReader& config, std::string_view key, double max,
                          std::optional<float>* out) {
  if (!config.Has(key)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const double value, config.Number(key));
  if (value < 0.0 || value > max) {
    return absl::InvalidArgumentError(
        StrCat(config.Place(key), " is ", value, "; 0 to ", max, " is allowed"));
  }
  *out = static_cast<float>(value);
  return absl::OkStatus();
}

absl::Status ReadSampling(const ConfigReader& config, GenerationDefaults* out) {
  RETURN_IF_ERROR(ReadFraction(config, "temperature", 100.0, &out->temperature));
  RETURN_IF_ERROR(ReadFraction(config, "top_p", 1.0, &out->top_p));
  RETURN_IF_ERROR(ReadFraction(config, "min_p", 1.0, &out->min_p));
  RETURN_IF_ERROR(ReadFraction(config, "repetition_penalty", 100.0, &out->repetition_penalty));
  if (config.Has("top_k")) {
    ASSIGN_OR_RETURN(const int64_t top_k, config.Int("top_k", 0, INT32_MAX));
    out->top_k = static_cast<int32_t>(top_k);
  }
  // The library's own default is greedy: sampling values count only where sampling is on.
  ASSIGN_OR_RETURN(const bool do_sample, config.BoolOr("do_sample", out->temperature.has_value()));
  if (!do_sample) {
    out->temperature = 0.0f;
    out->top_k.reset();
    out->top_p.reset();
    out->min_p.reset();
  }
  return absl::OkStatus();
}

absl::Status ReadHf(const WeightsFile& file, int32_t vocab_size, GenerationDefaults* out) {
  ASSIGN_OR_RETURN(ConfigReader config, ConfigReader::Parse(file.metadata_json(), "config.json"));
  if (!config.Has("eos_token_id") && config.IsObject("text_config")) {
    ASSIGN_OR_RETURN(config, config.Object("text_config"));
  }
  std::vector<ConfigReader> sources = {config};
  const std::optional<std::string> text = file.TextFile("generation_config.json");
  if (text.has_value()) {
    RETURN_IF_ERROR(CheckJsonLimits(*text, "generation_config.json", kMaxBytes, kMaxDepth));
    ASSIGN_OR_RETURN(const ConfigReader generation,
                     ConfigReader::Parse(*text, "generation_config.json"));
    RETURN_IF_ERROR(ReadSampling(generation, out));
    sources.push_back(generation);  // later sources win
  }
  for (const ConfigReader& source : sources) {
    if (source.Has("eos_token_id")) {
      out->eos_ids.clear();
      RETURN_IF_ERROR(ReadIds(source, "eos_token_id", vocab_size, &out->eos_ids));
    }
    RETURN_IF_ERROR(ReadId(source, "bos_token_id", vocab_size, &out->bos_id));
    RETURN_IF_ERROR(ReadId(source, "pad_token_id", vocab_size, &out->pad_id));
  }
  return absl::OkStatus();
}

// Chat checkpoints end a turn with a token of its own; few files name it in a key, so the texts
// that the supported families use are looked up among the control tokens.
constexpr std::string_view kEndOfTurn[] = {
    "<|eot_id|>", "<|im_end|>", "<end_of_turn>",         "<|end|>",    "<|endoftext|>",
    "<|eom_id|>", "<|eot|>",    "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|call|>"};

void AddEndOfTurn(const WeightsFile& file, int32_t vocab_size, std::vector<int32_t>* ids) {
  constexpr int64_t kControl = 3;
  constexpr int64_t kUserDefined = 4;
  const std::vector<int64_t> types = file.GgufInts("tokenizer.ggml.token_type");
  const std::vector<std::string> tokens = file.GgufStrings("tokenizer.ggml.tokens");
  const std::set<std::string_view> wanted(std::begin(kEndOfTurn), std::end(kEndOfTurn));
  const size_t count = std::min({types.size(), tokens.size(), static_cast<size_t>(vocab_size)});
  for (size_t i = 0; i < count; ++i) {
    if ((types[i] == kControl || types[i] == kUserDefined) && wanted.contains(tokens[i])) {
      ids->push_back(static_cast<int32_t>(i));
    }
  }
}

absl::Status ReadGguf(const WeightsFile& file, int32_t vocab_size, GenerationDefaults* out) {
  ASSIGN_OR_RETURN(const ConfigReader metadata,
                   ConfigReader::Parse(file.metadata_json(), "GGUF metadata"));
  for (const std::string_view key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                     "tokenizer.ggml.eom_token_id"}) {
    RETURN_IF_ERROR(ReadIds(metadata, key, vocab_size, &out->eos_ids));
  }
  RETURN_IF_ERROR(ReadId(metadata, "tokenizer.ggml.bos_token_id", vocab_size, &out->bos_id));
  RETURN_IF_ERROR(ReadId(metadata, "tokenizer.ggml.padding_token_id", vocab_size, &out->pad_id));
  AddEndOfTurn(file, vocab_size, &out->eos_ids);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const WeightsFile& file,
                                                          int32_t vocab_size) {
  GenerationDefaults out;
  RETURN_IF_ERROR(file.format() == CheckpointFormat::kGguf ? ReadGguf(file, vocab_size, &out)
                                                           : ReadHf(file, vocab_size, &out));
  std::sort(out.eos_ids.begin(), out.eos_ids.end());
  out.eos_ids.erase(std::unique(out.eos_ids.begin(), out.eos_ids.end()), out.eos_ids.end());
  return out;
}

}  // namespace longstride::model

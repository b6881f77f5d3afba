#include "model/text/gguf_pre_tokenizers.h"

#include "config/base/status.h"
#include "model/text/tokenizer_json_parts.h"

namespace longstride::model {
namespace {

constexpr std::string_view kDigits = "N";
constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// cl100k and Llama 3: numbers in groups of three.
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// The same with single digits.
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// o200k: words by case, with their contraction.
constexpr std::string_view kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// The same without contractions and with single digits.
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::string_view kGpt2Steps[] = {kGpt2};
constexpr std::string_view kDigitsGpt2Steps[] = {kDigits, kGpt2};
constexpr std::string_view kLlama3Steps[] = {kLlama3};
constexpr std::string_view kQwen2Steps[] = {kQwen2};
constexpr std::string_view kO200kSteps[] = {kO200k};
constexpr std::string_view kTekkenSteps[] = {kTekken};
constexpr std::string_view kDefaultSteps[] = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)",
                                              "[0-9][0-9][0-9]"};

constexpr GgufPreTokenizer kKinds[] = {
    {"default", kDefaultSteps, false, false, false},
    {"gpt-2", kGpt2Steps, false, false, false},
    {"phi-2", kGpt2Steps, false, false, false},
    {"olmo", kGpt2Steps, true, false, false},
    {"smollm", kDigitsGpt2Steps, false, false, false},
    {"command-r", kDigitsGpt2Steps, true, false, false},
    {"llama-bpe", kLlama3Steps, false, true, true},
    {"llama3", kLlama3Steps, false, true, true},
    {"llama-v3", kLlama3Steps, false, true, true},
    {"dbrx", kLlama3Steps, false, false, false},
    {"qwen2", kQwen2Steps, true, false, false},
    {"deepseek-r1-qwen", kQwen2Steps, true, false, false},
    {"gpt-4o", kO200kSteps, false, false, false},
    {"llama4", kO200kSteps, false, false, false},
    {"tekken", kTekkenSteps, false, true, true},
};

}  // namespace

std::span<const GgufPreTokenizer> GgufPreTokenizers() { return kKinds; }

const GgufPreTokenizer* FindGgufPreTokenizer(std::string_view name) {
  for (const GgufPreTokenizer& kind : kKinds) {
    if (kind.name == name) return &kind;
  }
  return nullptr;
}

absl::StatusOr<PreTokenizer> BuildGgufPreTokenizer(const GgufPreTokenizer& kind) {
  std::vector<PreTokenizerStep> steps;
  for (const std::string_view step : kind.steps) {
    if (step == kDigits) {
      steps.push_back(ClassSplitStep{CharacterClass::kNumeric, SplitBehavior::kIsolated});
      continue;
    }
    ASSIGN_OR_RETURN(std::shared_ptr<const Regex> regex, Regex::Compile(step));
    steps.push_back(SplitStep{"", std::move(regex), SplitBehavior::kIsolated, false});
  }
  steps.push_back(ByteLevelStep{/*add_prefix_space=*/false, /*regex=*/nullptr});
  return PreTokenizer(std::move(steps));
}

}  // namespace longstride::model

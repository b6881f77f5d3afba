#include "model/text/tokenizer_json_parts.h"

#include <limits>

#include "config/base/status.h"
#include "model/text/json_fields.h"
#include "model/text/unicode.h"

namespace longstride::model {
namespace {

using Json = nlohmann::json;

constexpr int kMaxNesting = 8;  // of Sequence in Sequence

absl::Status Unknown(std::string_view what, std::string_view type,
                     std::initializer_list<std::string_view> known) {
  std::string list;
  for (const std::string_view name : known) list += StrCat(list.empty() ? "" : ", ", name);
  return absl::UnimplementedError(StrCat("tokenizer.json: the ", what, " \"", type,
                                         "\" is not supported; supported are ", list));
}

// Calls add(type, component) for `json`, or for each of its members where it is a Sequence.
template <typename F>
absl::Status ForEach(const Json& json, std::string_view what, std::string_view list, F add,
                     int depth = 0) {
  if (json.is_null()) return absl::OkStatus();
  const JsonFields fields(json, std::string(what));
  ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
  if (type != "Sequence") return add(type, JsonFields(json, StrCat(what, " ", type)));
  if (depth >= kMaxNesting) {
    return absl::InvalidArgumentError(StrCat("tokenizer.json: ", what, " is nested too deeply"));
  }
  ASSIGN_OR_RETURN(const Json* members, fields.Array(list));
  for (const Json& member : *members) RETURN_IF_ERROR(ForEach(member, what, list, add, depth + 1));
  return absl::OkStatus();
}

// "pattern": {"String": ...} or {"Regex": ...}
struct Pattern {
  std::string literal;
  std::shared_ptr<const Regex> regex;
};
absl::StatusOr<Pattern> ParsePattern(const JsonFields& fields) {
  const Json* pattern = fields.Find("pattern");
  if (pattern == nullptr) return fields.Wrong("pattern", "an object");
  const JsonFields inner(*pattern, fields.where());
  if (inner.Find("Regex") == nullptr) {
    ASSIGN_OR_RETURN(std::string literal, inner.String("String"));
    if (literal.empty()) return inner.Wrong("String", "a text that is not empty");
    return Pattern{std::move(literal), nullptr};
  }
  ASSIGN_OR_RETURN(const std::string source, inner.String("Regex"));
  ASSIGN_OR_RETURN(std::shared_ptr<const Regex> regex, Regex::Compile(source));
  return Pattern{"", std::move(regex)};
}

absl::StatusOr<ReplaceStep> ParseReplace(const JsonFields& fields) {
  ASSIGN_OR_RETURN(Pattern pattern, ParsePattern(fields));
  ASSIGN_OR_RETURN(std::string content, fields.String("content"));
  return ReplaceStep{std::move(pattern.literal), std::move(pattern.regex), std::move(content)};
}

absl::StatusOr<SplitBehavior> ParseBehavior(const JsonFields& fields,
                                            std::optional<std::string> absent = {}) {
  ASSIGN_OR_RETURN(const std::string name, fields.String("behavior", std::move(absent)));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return fields.Wrong("behavior",
                      "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

absl::StatusOr<MetaspaceStep> ParseMetaspace(const JsonFields& fields) {
  MetaspaceStep step;
  ASSIGN_OR_RETURN(step.replacement, fields.String("replacement"));
  size_t end = 0;
  if (!step.replacement.empty()) (void)DecodeUtf8(step.replacement, &end);
  if (end == 0 || end != step.replacement.size()) return fields.Wrong("replacement", "one character");
  ASSIGN_OR_RETURN(const std::string scheme, fields.String("prepend_scheme", "always"));
  ASSIGN_OR_RETURN(const bool prefix, fields.Bool("add_prefix_space", true));
  ASSIGN_OR_RETURN(step.split, fields.Bool("split", true));
  if (scheme == "never" || !prefix) {
    if (scheme == "first") return fields.Wrong("add_prefix_space", "true with prepend_scheme first");
    step.prepend = MetaspaceStep::Prepend::kNever;
  } else if (scheme == "always" || scheme == "first") {
    step.prepend = scheme == "first" ? MetaspaceStep::Prepend::kFirst : MetaspaceStep::Prepend::kAlways;
  } else {
    return fields.Wrong("prepend_scheme", "always, first or never");
  }
  return step;
}

absl::StatusOr<NormalizerStep> ParseNormalizerStep(const std::string& type, const JsonFields& fields) {
  if (type == "NFC") return NormalizationForm::kNfc;
  if (type == "NFD") return NormalizationForm::kNfd;
  if (type == "NFKC") return NormalizationForm::kNfkc;
  if (type == "NFKD") return NormalizationForm::kNfkd;
  if (type == "Lowercase") return LowercaseStep{};
  if (type == "Strip") {
    StripStep step{};
    ASSIGN_OR_RETURN(step.left, fields.Bool("strip_left", true));
    ASSIGN_OR_RETURN(step.right, fields.Bool("strip_right", true));
    return step;
  }
  if (type == "Prepend") {
    ASSIGN_OR_RETURN(std::string prefix, fields.String("prepend"));
    return PrependStep{std::move(prefix)};
  }
  if (type == "Replace") {
    ASSIGN_OR_RETURN(ReplaceStep step, ParseReplace(fields));
    return step;
  }
  return Unknown("normalizer", type,
                 {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Prepend", "Replace", "Sequence"});
}

absl::StatusOr<PreTokenizerStep> ParsePreTokenizerStep(const std::string& type,
                                                       const JsonFields& fields) {
  if (type == "ByteLevel") {
    ByteLevelStep step{};
    ASSIGN_OR_RETURN(step.add_prefix_space, fields.Bool("add_prefix_space", true));
    ASSIGN_OR_RETURN(const bool use_regex, fields.Bool("use_regex", true));
    if (use_regex) {
      ASSIGN_OR_RETURN(step.regex, Regex::Compile(kGpt2Pattern));
    }
    return step;
  }
  if (type == "Split") {
    ASSIGN_OR_RETURN(Pattern pattern, ParsePattern(fields));
    ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseBehavior(fields));
    ASSIGN_OR_RETURN(const bool invert, fields.Bool("invert", false));
    return SplitStep{std::move(pattern.literal), std::move(pattern.regex), behavior, invert};
  }
  if (type == "Metaspace") {
    ASSIGN_OR_RETURN(MetaspaceStep step, ParseMetaspace(fields));
    return step;
  }
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool each, fields.Bool("individual_digits", false));
    return ClassSplitStep{CharacterClass::kNumeric,
                          each ? SplitBehavior::kIsolated : SplitBehavior::kContiguous};
  }
  if (type == "Punctuation") {
    ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseBehavior(fields, "Isolated"));
    return ClassSplitStep{CharacterClass::kPunctuation, behavior};
  }
  if (type == "WhitespaceSplit") {
    return ClassSplitStep{CharacterClass::kWhiteSpace, SplitBehavior::kRemoved};
  }
  if (type == "Whitespace") return WordsStep{};
  if (type == "CharDelimiterSplit") {
    ASSIGN_OR_RETURN(std::string delimiter, fields.String("delimiter"));
    if (delimiter.empty()) return fields.Wrong("delimiter", "one character");
    return SplitStep{std::move(delimiter), nullptr, SplitBehavior::kRemoved, false};
  }
  return Unknown("pre_tokenizer", type,
                 {"ByteLevel", "Split", "Metaspace", "Digits", "Punctuation", "WhitespaceSplit",
                  "Whitespace", "CharDelimiterSplit", "Sequence"});
}

// The order of decoders that DecoderSpec can express.
enum DecoderStage { kStart, kReplace, kByteFallback, kFuse, kStrip, kWhole };

absl::Status AddDecoder(const std::string& type, const JsonFields& fields, DecoderStage* stage,
                        DecoderSpec* spec) {
  const auto advance = [&](DecoderStage next) -> absl::Status {
    const bool repeats = next == kReplace && *stage == kReplace;
    if (next <= *stage && !repeats) {
      return absl::UnimplementedError(StrCat(
          "tokenizer.json: the decoder ", type, " comes in an order that is not supported; supported "
          "is Replace, ByteFallback, Fuse, Strip, or ByteLevel alone, or Metaspace alone"));
    }
    *stage = next;
    return absl::OkStatus();
  };
  if (type == "Replace") {
    RETURN_IF_ERROR(advance(kReplace));
    ASSIGN_OR_RETURN(ReplaceStep step, ParseReplace(fields));
    spec->replacements.push_back(std::move(step));
    return absl::OkStatus();
  }
  if (type == "ByteFallback") {
    spec->byte_fallback = true;
    return advance(kByteFallback);
  }
  if (type == "Fuse") return advance(kFuse);
  if (type == "Strip") {
    if (*stage != kFuse) {
      return absl::UnimplementedError(
          "tokenizer.json: the decoder Strip is supported behind Fuse only");
    }
    ASSIGN_OR_RETURN(const std::string content, fields.String("content"));
    ASSIGN_OR_RETURN(const int64_t start, fields.Int("start"));
    ASSIGN_OR_RETURN(const int64_t stop, fields.Int("stop"));
    if (content.size() != 1) return fields.Wrong("content", "one ASCII character");
    if (start < 0 || start > 64) return fields.Wrong("start", "0 to 64");
    if (stop != 0) return fields.Wrong("stop", "0: the end of a stream cannot be stripped");
    spec->strip_left = content[0];
    spec->strip_left_count = static_cast<int>(start);
    return advance(kStrip);
  }
  if (*stage != kStart) return advance(kStart);
  *stage = kWhole;
  if (type == "ByteLevel") {
    spec->byte_level = true;
    return absl::OkStatus();
  }
  if (type == "Metaspace") {
    ASSIGN_OR_RETURN(const MetaspaceStep step, ParseMetaspace(fields));
    spec->metaspace = step.replacement;
    spec->metaspace_drops_first = step.prepend != MetaspaceStep::Prepend::kNever;
    return absl::OkStatus();
  }
  return Unknown("decoder", type,
                 {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip", "Sequence"});
}

absl::StatusOr<int32_t> CheckedId(const Json& value, const JsonFields& fields, std::string_view name) {
  if (!value.is_number_integer()) return fields.Wrong(name, "an integer");
  if (value.is_number_unsigned() ? value.get<uint64_t>() > static_cast<uint64_t>(Vocabulary::kMaxId)
                                 : value.get<int64_t>() < 0) {
    return fields.Wrong(name, StrCat("0 to ", Vocabulary::kMaxId));
  }
  return value.get<int32_t>();
}

// {"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}], "special_tokens": ...}
absl::StatusOr<Template> ParseTemplate(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const Json* single, fields.Array("single"));
  const Json* tokens = fields.Find("special_tokens");
  Template result;
  bool seen_text = false;
  for (const Json& piece : *single) {
    if (piece.is_object() && piece.contains("Sequence")) {
      if (seen_text) return fields.Wrong("single", "a template with the text in it once");
      seen_text = true;
      continue;
    }
    if (!piece.is_object() || !piece.contains("SpecialToken")) {
      return fields.Wrong("single", "a list of SpecialToken and Sequence");
    }
    ASSIGN_OR_RETURN(const std::string name,
                     JsonFields(piece["SpecialToken"], fields.where()).String("id"));
    if (tokens == nullptr || !tokens->is_object() || !tokens->contains(name)) {
      return fields.Wrong("special_tokens", StrCat("an object that has ", name));
    }
    ASSIGN_OR_RETURN(const Json* ids, JsonFields((*tokens)[name], fields.where()).Array("ids"));
    for (const Json& id : *ids) {
      ASSIGN_OR_RETURN(const int32_t checked, CheckedId(id, fields, "ids"));
      (seen_text ? result.suffix_ids : result.prefix_ids).push_back(checked);
    }
  }
  if (!seen_text) return fields.Wrong("single", "a template that has the text in it");
  return result;
}

// "cls": ["<s>", 0]
absl::StatusOr<int32_t> ParseTokenPair(const JsonFields& fields, std::string_view name) {
  ASSIGN_OR_RETURN(const Json* pair, fields.Array(name));
  if (pair->size() != 2) return fields.Wrong(name, "a token and its id");
  return CheckedId((*pair)[1], fields, name);
}

}  // namespace

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

absl::StatusOr<std::vector<NormalizerStep>> ParseNormalizer(const Json& json) {
  std::vector<NormalizerStep> steps;
  RETURN_IF_ERROR(ForEach(json, "normalizer", "normalizers",
                          [&](const std::string& type, const JsonFields& fields) -> absl::Status {
                            ASSIGN_OR_RETURN(NormalizerStep step, ParseNormalizerStep(type, fields));
                            steps.push_back(std::move(step));
                            return absl::OkStatus();
                          }));
  return steps;
}

absl::StatusOr<std::vector<PreTokenizerStep>> ParsePreTokenizer(const Json& json) {
  std::vector<PreTokenizerStep> steps;
  RETURN_IF_ERROR(
      ForEach(json, "pre_tokenizer", "pretokenizers",
              [&](const std::string& type, const JsonFields& fields) -> absl::Status {
                if (!steps.empty() && std::holds_alternative<ByteLevelStep>(steps.back())) {
                  return absl::UnimplementedError(StrCat(
                      "tokenizer.json: the pre_tokenizer ", type,
                      " comes after ByteLevel, which must be the last one"));
                }
                ASSIGN_OR_RETURN(PreTokenizerStep step, ParsePreTokenizerStep(type, fields));
                steps.push_back(std::move(step));
                return absl::OkStatus();
              }));
  return steps;
}

absl::StatusOr<DecoderSpec> ParseDecoder(const Json& json) {
  DecoderSpec spec;
  DecoderStage stage = kStart;
  RETURN_IF_ERROR(ForEach(json, "decoder", "decoders",
                          [&](const std::string& type, const JsonFields& fields) {
                            return AddDecoder(type, fields, &stage, &spec);
                          }));
  spec.join_with_blanks = json.is_null();
  return spec;
}

absl::StatusOr<Template> ParsePostProcessor(const Json& json) {
  Template result;
  RETURN_IF_ERROR(ForEach(
      json, "post_processor", "processors",
      [&](const std::string& type, const JsonFields& fields) -> absl::Status {
        Template outer;
        if (type == "ByteLevel") return absl::OkStatus();  // changes offsets only
        if (type == "TemplateProcessing") {
          ASSIGN_OR_RETURN(outer, ParseTemplate(fields));
        } else if (type == "RobertaProcessing" || type == "BertProcessing") {
          ASSIGN_OR_RETURN(const int32_t cls, ParseTokenPair(fields, "cls"));
          ASSIGN_OR_RETURN(const int32_t sep, ParseTokenPair(fields, "sep"));
          outer = {{cls}, {sep}};
        } else {
          return Unknown("post_processor", type,
                         {"TemplateProcessing", "ByteLevel", "RobertaProcessing", "BertProcessing",
                          "Sequence"});
        }
        result.prefix_ids.insert(result.prefix_ids.begin(), outer.prefix_ids.begin(),
                                 outer.prefix_ids.end());
        result.suffix_ids.insert(result.suffix_ids.end(), outer.suffix_ids.begin(),
                                 outer.suffix_ids.end());
        return absl::OkStatus();
      }));
  return result;
}

}  // namespace longstride::model

// Tokenizer::FromTokenizerJson
#include <algorithm>
#include <limits>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "config/base/status.h"
#include "model/text/bpe_model.h"
#include "model/text/json_fields.h"
#include "model/text/tokenizer.h"
#include "model/text/tokenizer_json_file.h"
#include "model/text/tokenizer_json_parts.h"
#include "model/text/tokenizer_parts.h"
#include "model/text/unicode.h"
#include "model/text/unigram_model.h"

namespace longstride::model {
namespace {

using Json = nlohmann::json;

absl::Status Broken(std::string_view message) {
  return absl::InvalidArgumentError(StrCat("tokenizer.json: ", message));
}

// Adjacent characters of `text`, packed.
void CollectPairs(std::string_view text, absl::flat_hash_set<uint64_t>* pairs) {
  size_t pos = 0;
  if (text.empty()) return;
  char32_t left = DecodeUtf8(text, &pos);
  while (pos < text.size()) {
    const char32_t right = DecodeUtf8(text, &pos);
    pairs->insert(static_cast<uint64_t>(left) << 32 | right);
    left = right;
  }
}

absl::Status FillMerges(const TokenizerJsonFile& file, const Vocabulary& vocab, BpeSpec* spec) {
  spec->merges = MergeTable(file.merges.size());
  absl::flat_hash_set<uint64_t> pairs;
  std::string joined;
  for (size_t rank = 0; rank < file.merges.size(); ++rank) {
    const auto& [left, right] = file.merges[rank];
    joined.assign(left).append(right);
    const int32_t a = vocab.Find(left), b = vocab.Find(right), ab = vocab.Find(joined);
    if (a < 0 || b < 0 || ab < 0) {
      return Broken(StrCat("merge number ", rank, " needs a token that model.vocab lacks"));
    }
    spec->merges.Add(a, b, {static_cast<uint32_t>(rank), ab}, /*replace=*/true);
    if (!spec->byte_level) CollectPairs(joined, &pairs);
  }
  for (const uint64_t pair : pairs) {
    spec->inner_pairs.emplace_back(static_cast<char32_t>(pair >> 32), static_cast<char32_t>(pair));
  }
  return absl::OkStatus();
}

// Single bytes or characters, and with ignore_merges whole pieces.
void FillSymbols(const Vocabulary& vocab, bool ignore_merges, BpeSpec* spec) {
  spec->byte_ids.fill(-1);
  for (int b = 0; b < 256 && spec->byte_fallback && !spec->byte_level; ++b) {
    spec->byte_ids[static_cast<size_t>(b)] = vocab.Find(absl::StrFormat("<0x%02X>", b));
  }
  for (int32_t id = 0; id < vocab.size(); ++id) {
    const std::string_view text = vocab.Text(id);
    if (text.empty() || vocab.Find(text) != id) continue;
    size_t end = 0;
    const char32_t first = DecodeUtf8(text, &end);
    const bool single = end == text.size();
    if (spec->byte_level) {
      const std::optional<std::string> bytes = AlphabetToBytes(text);
      if (!bytes.has_value()) continue;
      if (single) spec->byte_ids[static_cast<unsigned char>((*bytes)[0])] = id;
      if (ignore_merges) spec->whole_pieces[*bytes] = id;
    } else {
      if (single) spec->char_ids[first] = id;
      if (ignore_merges) spec->whole_pieces[std::string(text)] = id;
    }
  }
}

absl::StatusOr<std::unique_ptr<TokenModel>> BuildBpe(const TokenizerJsonFile& file,
                                                     const JsonFields& model,
                                                     TokenizerParts* parts) {
  for (const auto& [text, id] : file.vocab) {
    if (id < 0 || id > Vocabulary::kMaxId) {
      return Broken(StrCat("model.vocab has an id that is not in 0 to ", Vocabulary::kMaxId));
    }
    parts->vocab.Add(static_cast<int32_t>(id), text);
  }
  for (const std::string_view name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(const std::string affix, model.String(name, ""));
    if (!affix.empty()) {
      return absl::UnimplementedError(
          StrCat("tokenizer.json: model.", name, " is not supported"));
    }
  }
  if (const Json* dropout = model.Find("dropout");
      dropout != nullptr && !(dropout->is_number() && dropout->get<double>() == 0)) {
    return absl::UnimplementedError("tokenizer.json: model.dropout is not supported");
  }
  BpeSpec spec;
  spec.byte_level = parts->pre_tokenizer.is_byte_level();
  ASSIGN_OR_RETURN(spec.byte_fallback, model.Bool("byte_fallback", false));
  ASSIGN_OR_RETURN(spec.fuse_unknown, model.Bool("fuse_unk", false));
  ASSIGN_OR_RETURN(const bool ignore_merges, model.Bool("ignore_merges", false));
  ASSIGN_OR_RETURN(const std::string unknown, model.String("unk_token", ""));
  if (!unknown.empty()) {
    const int32_t id = parts->vocab.Find(unknown);
    if (id < 0) return Broken("model.unk_token is not in model.vocab");
    spec.unknown_id = parts->unk = id;
  }
  FillSymbols(parts->vocab, ignore_merges, &spec);
  RETURN_IF_ERROR(FillMerges(file, parts->vocab, &spec));
  return std::make_unique<BpeModel>(std::move(spec));
}

absl::StatusOr<std::unique_ptr<TokenModel>> BuildUnigram(TokenizerJsonFile* file,
                                                         const JsonFields& model,
                                                         TokenizerParts* parts) {
  if (file->unigram.size() > static_cast<size_t>(Vocabulary::kMaxId)) {
    return Broken(StrCat("model.vocab has more than ", Vocabulary::kMaxId, " tokens"));
  }
  UnigramModel::Spec spec;
  ASSIGN_OR_RETURN(const int64_t unknown, model.Int("unk_id", -1));
  ASSIGN_OR_RETURN(spec.byte_fallback, model.Bool("byte_fallback", false));
  if (unknown < -1 || unknown > Vocabulary::kMaxId) return Broken("model.unk_id is out of range");
  if (unknown >= 0) spec.unknown_id = static_cast<int32_t>(unknown);
  for (size_t i = 0; i < file->unigram.size(); ++i) {
    parts->vocab.Add(static_cast<int32_t>(i), file->unigram[i].first);
  }
  spec.pieces = std::move(file->unigram);
  parts->unk = spec.unknown_id;
  return UnigramModel::Create(std::move(spec));
}

absl::StatusOr<std::unique_ptr<TokenModel>> BuildModel(TokenizerJsonFile* file, TokenizerParts* parts) {
  const Json* json = JsonFields(file->rest, "").Find("model");
  if (json == nullptr) return Broken("there is no model");
  const JsonFields model(*json, "model");
  std::string type = !file->unigram.empty() ? "Unigram" : "BPE";
  ASSIGN_OR_RETURN(type, model.String("type", type));
  if (type == "BPE") return BuildBpe(*file, model, parts);
  if (type == "Unigram" && !parts->pre_tokenizer.is_byte_level()) {
    return BuildUnigram(file, model, parts);
  }
  return absl::UnimplementedError(StrCat("tokenizer.json: the model \"", type,
                                               "\" is not supported (with this pre_tokenizer); "
                                               "supported are BPE and Unigram"));
}

absl::Status AddTokens(const TokenizerJsonFile& file, TokenizerParts* parts) {
  const JsonFields top(file.rest, "top level");
  if (top.Find("added_tokens") == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Json* tokens, top.Array("added_tokens"));
  for (const Json& json : *tokens) {
    const JsonFields fields(json, "added_tokens");
    AddedToken token;
    ASSIGN_OR_RETURN(token.content, fields.String("content"));
    ASSIGN_OR_RETURN(const int64_t id, fields.Int("id"));
    ASSIGN_OR_RETURN(token.special, fields.Bool("special", false));
    ASSIGN_OR_RETURN(token.normalized, fields.Bool("normalized", !token.special));
    ASSIGN_OR_RETURN(token.single_word, fields.Bool("single_word", false));
    ASSIGN_OR_RETURN(token.lstrip, fields.Bool("lstrip", false));
    ASSIGN_OR_RETURN(token.rstrip, fields.Bool("rstrip", false));
    if (id < 0 || id > Vocabulary::kMaxId) {
      return fields.Wrong("id", StrCat("0 to ", Vocabulary::kMaxId));
    }
    if (token.content.empty()) continue;
    // The model's own token of this text, where there is one, keeps its id.
    token.id = parts->vocab.Find(token.content);
    if (token.id < 0) {
      token.id = static_cast<int32_t>(id);
      parts->vocab.Add(token.id, token.content);
    }
    parts->added.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// "bos_token": "<s>" or {"content": "<s>", ...}
absl::Status FindNamed(const JsonFields& config, std::string_view name, const Vocabulary& vocab,
                       std::optional<int32_t>* id) {
  const Json* value = config.Find(name);
  if (value == nullptr) return absl::OkStatus();
  if (value->is_object()) value = JsonFields(*value, config.where()).Find("content");
  if (value == nullptr || !value->is_string()) {
    return absl::InvalidArgumentError(
        StrCat("tokenizer_config.json: \"", name, "\" must be a token"));
  }
  const int32_t found = vocab.Find(value->get_ref<const std::string&>());
  if (found >= 0) *id = found;  // a token that the vocabulary lacks cannot occur
  return absl::OkStatus();
}

absl::Status ApplyConfig(std::string_view config_json, bool has_template, TokenizerParts* parts) {
  Json config = Json::object();
  if (!config_json.empty()) {
    config = Json::parse(config_json, nullptr, /*allow_exceptions=*/false);
    if (!config.is_object()) {
      return absl::InvalidArgumentError("tokenizer_config.json is not a JSON object");
    }
  }
  const JsonFields fields(config, "tokenizer_config.json");
  RETURN_IF_ERROR(FindNamed(fields, "bos_token", parts->vocab, &parts->bos));
  RETURN_IF_ERROR(FindNamed(fields, "eos_token", parts->vocab, &parts->eos));
  RETURN_IF_ERROR(FindNamed(fields, "unk_token", parts->vocab, &parts->unk));
  RETURN_IF_ERROR(FindNamed(fields, "pad_token", parts->vocab, &parts->pad));
  if (!has_template) {  // the file says nothing, so the configuration does
    ASSIGN_OR_RETURN(const bool add_bos, fields.Bool("add_bos_token", false));
    ASSIGN_OR_RETURN(const bool add_eos, fields.Bool("add_eos_token", false));
    if (add_bos && parts->bos.has_value()) parts->prefix_ids = {*parts->bos};
    if (add_eos && parts->eos.has_value()) parts->suffix_ids = {*parts->eos};
  } else if (!parts->bos.has_value() && parts->prefix_ids.size() == 1) {
    parts->bos = parts->prefix_ids[0];
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromTokenizerJson(
    std::string_view json, std::string_view config_json) {
  ASSIGN_OR_RETURN(TokenizerJsonFile file, ParseTokenizerJson(json));
  const auto component = [&file](std::string_view name) -> const Json& {
    static const Json kNull;
    const auto it = file.rest.find(name);
    return it == file.rest.end() ? kNull : *it;
  };
  TokenizerParts parts;
  ASSIGN_OR_RETURN(auto normalizer, ParseNormalizer(component("normalizer")));
  parts.normalizer = Normalizer(std::move(normalizer));
  ASSIGN_OR_RETURN(auto pre_tokenizer, ParsePreTokenizer(component("pre_tokenizer")));
  parts.pre_tokenizer = PreTokenizer(std::move(pre_tokenizer));
  ASSIGN_OR_RETURN(parts.decoder, ParseDecoder(component("decoder")));
  ASSIGN_OR_RETURN(parts.model, BuildModel(&file, &parts));
  RETURN_IF_ERROR(AddTokens(file, &parts));
  if (parts.vocab.size() == 0) return Broken("the vocabulary is empty");
  ASSIGN_OR_RETURN(const Template around, ParsePostProcessor(component("post_processor")));
  parts.prefix_ids = around.prefix_ids;
  parts.suffix_ids = around.suffix_ids;
  for (const auto* ids : {&around.prefix_ids, &around.suffix_ids}) {
    for (const int32_t id : *ids) {
      if (!parts.vocab.Has(id)) return Broken("post_processor names an id that no token has");
    }
  }
  RETURN_IF_ERROR(ApplyConfig(config_json, !component("post_processor").is_null(), &parts));
  RETURN_IF_ERROR(FinishParts(&parts));
  return std::make_unique<Tokenizer>(std::move(parts));
}

}  // namespace longstride::model

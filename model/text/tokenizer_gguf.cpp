// Tokenizer::FromGguf
#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_set.h"
#include "config/base/status.h"
#include "model/text/bpe_model.h"
#include "model/text/gguf_pre_tokenizers.h"
#include "model/text/tokenizer.h"
#include "model/text/tokenizer_parts.h"
#include "model/text/unicode.h"

namespace longstride::model {
namespace {

constexpr size_t kMaxVocabBytes = size_t{512} << 20;
constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // ▁

absl::Status Broken(std::string_view message) {
  return absl::InvalidArgumentError(StrCat("GGUF tokenizer: ", message));
}

GgufTokenType TypeOf(const GgufVocab& gguf, size_t id) {
  if (gguf.token_types.empty()) {
    return ParseByteToken(gguf.tokens[id]) >= 0 && gguf.model == "llama" ? GgufTokenType::kByte
                                                                         : GgufTokenType::kNormal;
  }
  return static_cast<GgufTokenType>(gguf.token_types[id]);
}

bool IsText(GgufTokenType type) {
  return type == GgufTokenType::kNormal || type == GgufTokenType::kUnused;
}

absl::Status CheckSizes(const GgufVocab& gguf) {
  const size_t count = gguf.tokens.size();
  if (count == 0) return Broken("tokenizer.ggml.tokens is empty");
  if (count > static_cast<size_t>(Vocabulary::kMaxId)) {
    return Broken(StrCat("tokenizer.ggml.tokens has ", count, " tokens; at most ",
                               Vocabulary::kMaxId, " are allowed"));
  }
  if (!gguf.token_types.empty() && gguf.token_types.size() != count) {
    return Broken(StrCat("tokenizer.ggml.token_type has ", gguf.token_types.size(),
                               " entries for ", count, " tokens"));
  }
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    bytes += gguf.tokens[i].size();
    if (FirstInvalidUtf8(gguf.tokens[i]) != std::string_view::npos) {
      return Broken(StrCat("token ", i, " is not valid UTF-8"));
    }
    const int type = static_cast<int>(TypeOf(gguf, i));
    if (type < 0 || type > 6) {
      return Broken(StrCat("token ", i, " has type ", type, "; 0 to 6 are known"));
    }
  }
  if (bytes > kMaxVocabBytes) return Broken("the tokens have more than 512 MiB");
  return absl::OkStatus();
}

absl::Status CheckedId(const GgufVocab& gguf, std::optional<int32_t> id, std::string_view name) {
  if (!id.has_value() || (*id >= 0 && static_cast<size_t>(*id) < gguf.tokens.size())) {
    return absl::OkStatus();
  }
  return Broken(StrCat(name, " is ", *id, "; the vocabulary has ", gguf.tokens.size(), " tokens"));
}

// Phi-3's control tokens swallow the blanks behind them, which GGUF has no field for.
bool SwallowsBlanks(const GgufVocab& gguf, const AddedToken& token) {
  if (gguf.architecture != "phi3" || gguf.model != "llama") return false;
  if (token.content == "</s>") return true;
  return token.special && token.content != "<unk>" && token.content != "<s>" &&
         token.content != "<|endoftext|>";
}

void AddTokens(const GgufVocab& gguf, TokenizerParts* parts) {
  for (size_t i = 0; i < gguf.tokens.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    parts->vocab.Add(id, gguf.tokens[i]);
    const GgufTokenType type = TypeOf(gguf, i);
    if (IsText(type) || type == GgufTokenType::kByte || type == GgufTokenType::kUndefined ||
        gguf.tokens[i].empty()) {
      continue;
    }
    AddedToken token;
    token.id = id;
    token.content = gguf.tokens[i];
    token.special = type != GgufTokenType::kUserDefined;
    token.rstrip = SwallowsBlanks(gguf, token);
    parts->added.push_back(std::move(token));
  }
}

// Ranks for merges that SentencePiece chooses by the score of the result: equal scores, equal rank.
absl::StatusOr<std::vector<uint32_t>> RanksByScore(const GgufVocab& gguf) {
  if (gguf.scores.size() != gguf.tokens.size()) {
    return Broken(StrCat("tokenizer.ggml.scores has ", gguf.scores.size(), " entries for ",
                               gguf.tokens.size(), " tokens"));
  }
  if (std::any_of(gguf.scores.begin(), gguf.scores.end(), [](float s) { return std::isnan(s); })) {
    return Broken("tokenizer.ggml.scores has a NaN");
  }
  std::vector<float> sorted = gguf.scores;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  std::vector<uint32_t> ranks(gguf.scores.size());
  for (size_t i = 0; i < ranks.size(); ++i) {
    ranks[i] = static_cast<uint32_t>(
        std::lower_bound(sorted.begin(), sorted.end(), gguf.scores[i], std::greater<>()) -
        sorted.begin());
  }
  return ranks;
}

// SentencePiece's BPE merges any two neighbours whose concatenation is a token, best score first,
// leftmost first. The rules are spelled out here: every way to cut a token into two tokens.
absl::Status BuildSentencePiece(const GgufVocab& gguf, TokenizerParts* parts) {
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ranks, RanksByScore(gguf));
  absl::flat_hash_map<std::string_view, int32_t> texts;
  texts.reserve(gguf.tokens.size());
  BpeSpec spec;
  spec.byte_ids.fill(-1);
  for (size_t i = 0; i < gguf.tokens.size(); ++i) {
    const GgufTokenType type = TypeOf(gguf, i);
    if (IsText(type) && !gguf.tokens[i].empty()) texts[gguf.tokens[i]] = static_cast<int32_t>(i);
    const int byte = type == GgufTokenType::kByte ? ParseByteToken(gguf.tokens[i]) : -1;
    if (byte >= 0) spec.byte_ids[static_cast<size_t>(byte)] = static_cast<int32_t>(i);
  }
  spec.merges = MergeTable(texts.size() * 2);
  absl::flat_hash_set<uint64_t> pairs;
  for (const auto& [text, id] : texts) {
    size_t pos = 0;
    char32_t before = DecodeUtf8(text, &pos);
    if (pos == text.size()) spec.char_ids[before] = id;
    bool reachable = false;
    std::vector<uint64_t> inner;
    while (pos < text.size()) {
      const size_t cut = pos;
      const char32_t behind = DecodeUtf8(text, &pos);
      inner.push_back(static_cast<uint64_t>(before) << 32 | behind);
      before = behind;
      const auto left = texts.find(text.substr(0, cut));
      if (left == texts.end()) continue;
      const auto right = texts.find(text.substr(cut));
      if (right == texts.end()) continue;
      spec.merges.Add(left->second, right->second, {ranks[static_cast<size_t>(id)], id}, false);
      reachable = true;
    }
    if (reachable) pairs.insert(inner.begin(), inner.end());
  }
  for (const uint64_t pair : pairs) {
    spec.inner_pairs.emplace_back(static_cast<char32_t>(pair >> 32), static_cast<char32_t>(pair));
  }
  spec.byte_fallback = true;
  spec.fuse_unknown = true;
  spec.unknown_id = gguf.unk;
  parts->model = std::make_unique<BpeModel>(std::move(spec));

  std::vector<NormalizerStep> steps;
  const bool prefix = gguf.add_space_prefix.value_or(true);
  if (prefix) steps.push_back(PrependStep{std::string(kMetaspace)});
  steps.push_back(ReplaceStep{" ", nullptr, std::string(kMetaspace)});
  parts->normalizer = Normalizer(std::move(steps));
  parts->decoder.replacements.push_back({std::string(kMetaspace), nullptr, " "});
  parts->decoder.byte_fallback = true;
  parts->decoder.strip_left = ' ';
  parts->decoder.strip_left_count = prefix ? 1 : 0;
  return absl::OkStatus();
}

absl::Status BuildByteLevel(const GgufVocab& gguf, const GgufPreTokenizer& kind,
                            TokenizerParts* parts) {
  BpeSpec spec;
  spec.byte_level = true;
  spec.byte_ids.fill(-1);
  spec.unknown_id = std::nullopt;
  for (size_t i = 0; i < gguf.tokens.size(); ++i) {
    if (!IsText(TypeOf(gguf, i)) || gguf.tokens[i].empty()) continue;
    const std::optional<std::string> bytes = AlphabetToBytes(gguf.tokens[i]);
    if (!bytes.has_value()) continue;
    const auto id = static_cast<int32_t>(i);
    if (bytes->size() == 1) spec.byte_ids[static_cast<unsigned char>((*bytes)[0])] = id;
    if (kind.ignore_merges) spec.whole_pieces[*bytes] = id;
  }
  // Vocabularies may lack bytes that their training text did not have; like Hugging Face's
  // tokenizers, those bytes are dropped. Without printable ASCII it is another kind of vocabulary.
  if (std::any_of(spec.byte_ids.begin() + ' ', spec.byte_ids.begin() + 0x7f,
                  [](int32_t id) { return id < 0; })) {
    return Broken("the byte-level vocabulary does not have all printable ASCII characters");
  }
  spec.merges = MergeTable(gguf.merges.size());
  for (size_t rank = 0; rank < gguf.merges.size(); ++rank) {
    const std::string_view rule = gguf.merges[rank];
    const size_t blank = rule.find(' ', 1);
    if (blank == std::string_view::npos) {
      return Broken(StrCat("merge number ", rank, " is not two tokens with a blank between"));
    }
    const std::string_view left = rule.substr(0, blank), right = rule.substr(blank + 1);
    const int32_t a = parts->vocab.Find(left), b = parts->vocab.Find(right);
    const int32_t ab = parts->vocab.Find(StrCat(left, right));
    if (a < 0 || b < 0 || ab < 0) {
      return Broken(StrCat("merge number ", rank, " needs a token that the vocabulary lacks"));
    }
    spec.merges.Add(a, b, {static_cast<uint32_t>(rank), ab}, /*replace=*/false);
  }
  parts->model = std::make_unique<BpeModel>(std::move(spec));
  if (kind.nfc) parts->normalizer = Normalizer({NormalizationForm::kNfc});
  ASSIGN_OR_RETURN(parts->pre_tokenizer, BuildGgufPreTokenizer(kind));
  parts->decoder.byte_level = true;
  return absl::OkStatus();
}

std::string ListPreTokenizers() {
  std::string list;
  for (const std::string_view name : Tokenizer::KnownGgufPreTokenizers()) {
    list += StrCat(list.empty() ? "" : ", ", name);
  }
  return list;
}

}  // namespace

std::vector<std::string_view> Tokenizer::KnownGgufPreTokenizers() {
  std::vector<std::string_view> names;
  for (const GgufPreTokenizer& kind : GgufPreTokenizers()) names.push_back(kind.name);
  return names;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const GgufVocab& gguf) {
  if (gguf.model != "llama" && gguf.model != "gpt2") {
    return absl::UnimplementedError(
        StrCat("GGUF tokenizer: the kind \"", gguf.model,
                     "\" is not supported; supported are llama (SentencePiece) and gpt2 (byte-level)"));
  }
  RETURN_IF_ERROR(CheckSizes(gguf));
  RETURN_IF_ERROR(CheckedId(gguf, gguf.bos, "bos_token_id"));
  RETURN_IF_ERROR(CheckedId(gguf, gguf.eos, "eos_token_id"));
  RETURN_IF_ERROR(CheckedId(gguf, gguf.eot, "eot_token_id"));
  RETURN_IF_ERROR(CheckedId(gguf, gguf.eom, "eom_token_id"));
  RETURN_IF_ERROR(CheckedId(gguf, gguf.unk, "unknown_token_id"));
  RETURN_IF_ERROR(CheckedId(gguf, gguf.pad, "padding_token_id"));
  TokenizerParts parts;
  AddTokens(gguf, &parts);
  parts.decoder.added_tokens_are_text = true;
  bool add_bos = true;
  if (gguf.model == "llama") {
    RETURN_IF_ERROR(BuildSentencePiece(gguf, &parts));
  } else {
    const GgufPreTokenizer* kind = FindGgufPreTokenizer(gguf.pre);
    if (kind == nullptr) {
      return absl::UnimplementedError(
          gguf.pre.empty()
              ? StrCat("GGUF tokenizer: the file does not name its pre-tokeniser "
                             "(tokenizer.ggml.pre); convert it anew. Supported are ",
                             ListPreTokenizers())
              : StrCat("GGUF tokenizer: the pre-tokeniser \"", gguf.pre,
                             "\" is not supported; supported are ", ListPreTokenizers()));
    }
    add_bos = kind->add_bos;
    RETURN_IF_ERROR(BuildByteLevel(gguf, *kind, &parts));
  }
  parts.bos = gguf.bos;
  parts.eos = gguf.eos;
  parts.unk = gguf.unk;
  parts.pad = gguf.pad;
  if (gguf.add_bos.value_or(add_bos) && gguf.bos.has_value()) parts.prefix_ids = {*gguf.bos};
  if (gguf.add_eos.value_or(false) && gguf.eos.has_value()) parts.suffix_ids = {*gguf.eos};
  if (gguf.eot.has_value()) parts.eog.push_back(*gguf.eot);
  if (gguf.eom.has_value()) parts.eog.push_back(*gguf.eom);
  RETURN_IF_ERROR(FinishParts(&parts));
  return std::make_unique<Tokenizer>(std::move(parts));
}

}  // namespace longstride::model

// tokenizer.json of checkpoints. The input is that file, tokenizer_config.json and a text to encode.
#include "config/base/check.h"
#include "model/text/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

namespace longstride::fuzz {

void RunInput(std::string_view input) {
  InputParts parts(input);
  const std::string_view json = parts.Text();
  const std::string_view config = parts.Text();
  const auto tokenizer = model::Tokenizer::FromTokenizerJson(json, config);
  if (!tokenizer.ok()) return;
  for (int32_t id = 0; id < (*tokenizer)->vocab_size() && id < 256; ++id) {
    (void)(*tokenizer)->TokenBytes(id);
  }
  for (const std::string_view text : {parts.rest(), std::string_view("Hello, wörld\n  </s> 12")}) {
    for (const bool parse_special : {false, true}) {
      const auto ids = (*tokenizer)->Encode(text, {.parse_special = parse_special});
      if (ids.ok()) LS_CHECK((*tokenizer)->Decode(*ids, /*skip_special=*/false).ok());
    }
  }
}

namespace {

// A byte-level vocabulary, as GPT-2's descendants have.
constexpr std::string_view kByteLevel = R"json({"version": "1.0", "added_tokens": [
  {"id": 8, "content": "</s>", "special": true, "normalized": false, "single_word": false,
   "lstrip": true, "rstrip": true},
  {"id": 9, "content": "hel", "special": false, "normalized": true, "single_word": true}],
 "normalizer": {"type": "NFC"},
 "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
  {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+"},
   "behavior": "Isolated", "invert": false},
  {"type": "Digits", "individual_digits": true},
  {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
 "post_processor": {"type": "Sequence", "processors": [
  {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}},
   {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
   "special_tokens": {"</s>": {"id": "</s>", "ids": [8], "tokens": ["</s>"]}}}]},
 "decoder": {"type": "ByteLevel"},
 "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
  "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
  "vocab": {"h": 0, "e": 1, "l": 2, "o": 3, "Ġ": 4, "he": 5, "ll": 6, "hell": 7},
  "merges": [["h", "e"], ["l", "l"], ["he", "ll"]]}})json";

// SentencePiece's way.
constexpr std::string_view kByteFallback = R"json({"added_tokens": [
  {"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true}],
 "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
  {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, {"type": "Lowercase"},
  {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
  {"type": "Strip", "strip_left": true, "strip_right": true}]},
 "pre_tokenizer": null,
 "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
  {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
  "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
 "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
  {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
 "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
  "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "▁": 3, "h": 4, "e": 5, "▁h": 6, "▁he": 7},
  "merges": ["▁ h", "▁h e"]}})json";

constexpr std::string_view kUnigram = R"json({"added_tokens": [
  {"id": 0, "content": "<unk>", "special": true}],
 "normalizer": {"type": "NFKC"},
 "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
 "post_processor": null,
 "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
 "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
  "vocab": [["<unk>", 0.0], ["▁", -2.5], ["h", -3.25e0], ["he", -4], ["▁hello", -0.00001e2]]}})json";

constexpr std::string_view kWords = R"json({"normalizer": {"type": "NFD"},
 "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"},
  {"type": "Punctuation", "behavior": "Contiguous"}, {"type": "CharDelimiterSplit", "delimiter": "q"},
  {"type": "Split", "pattern": {"String": "x"}, "behavior": "MergedWithNext", "invert": false}]},
 "decoder": null,
 "model": {"type": "BPE", "unk_token": "u", "vocab": {"u": 0, "h": 1, "e": 2}, "merges": []}})json";

constexpr std::string_view kConfig = R"({"bos_token": "<s>", "eos_token": {"content": "</s>"},)"
                                     R"( "add_bos_token": true, "add_eos_token": false})";

}  // namespace

std::vector<std::string> Seeds() {
  std::vector<std::string> seeds;
  for (const std::string_view json : {kByteLevel, kByteFallback, kUnigram, kWords}) {
    seeds.push_back(JoinTexts({std::string(json), std::string(kConfig), " hello héllo"}));
  }
  return seeds;
}

}  // namespace longstride::fuzz

#include "model/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/str_format.h"
#include "model/text/bpe_model.h"
#include "model/text/stream_decoder.h"
#include "model/text/unicode.h"
#include "tests/model/text/text_samples.h"

namespace longstride::model {
namespace {

using Json = nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kByteLevel[] = {"llama3", "qwen2", "gpt-oss", "llama4", "tekken", "cohere", "tekken-cut"};
constexpr const char* kOthers[] = {"llama2", "phi3", "mistral", "gemma", "unigram", "unigram-bytes", "components"};

std::unique_ptr<Tokenizer> Load(const std::string& name) {
  auto tokenizer = Tokenizer::FromTokenizerJson(ReadTestData("tokenizers/" + name + ".json"), "");
  EXPECT_TRUE(tokenizer.ok()) << name << ": " << tokenizer.status();
  return *std::move(tokenizer);
}

// --- properties

TEST(Tokenizer, ByteLevelDecodesToTheText) {
  const std::vector<std::string> fragments = SampleFragments();
  for (const char* name : kByteLevel) {
    const auto tokenizer = Load(name);
    for (uint64_t i = 0; i < 1500; ++i) {
      std::string text = SampleText(11, i, fragments);
      if (std::string(name) == "qwen2" || std::string(name) == "cohere") {
        text = *NormalizeUnicode(text, NormalizationForm::kNfc);
      }
      const auto ids = tokenizer->Encode(text, {.add_special = false});
      ASSERT_TRUE(ids.ok());
      EXPECT_EQ(*tokenizer->Decode(*ids, false), text) << name;
      std::string bytes;
      for (const int32_t id : *ids) bytes += *tokenizer->TokenBytes(id);
      EXPECT_EQ(bytes, text) << name;
    }
  }
}

TEST(StreamDecoder, EqualsDecodeAndNeverHalvesACharacter) {
  const std::vector<std::string> fragments = SampleFragments();
  const uint64_t seed = std::random_device{}();
  SampleStream rng(seed);
  std::vector<std::string> names(std::begin(kByteLevel), std::end(kByteLevel));
  names.insert(names.end(), std::begin(kOthers), std::end(kOthers));
  for (const std::string& name : names) {
    const auto tokenizer = Load(name);
    for (uint64_t i = 0; i < 400; ++i) {
      std::vector<int32_t> ids = *tokenizer->Encode(SampleText(12, i, fragments), {.parse_special = true});
      for (uint64_t n = rng.Below(6); n > 0; --n) {  // and bytes that form no characters
        ids.insert(ids.begin() + static_cast<std::ptrdiff_t>(rng.Below(ids.size() + 1)),
                   static_cast<int32_t>(rng.Below(static_cast<uint64_t>(tokenizer->vocab_size()))));
      }
      for (const bool skip : {false, true}) {
        StreamDecoderOptions options;
        options.skip_special = skip;
        StreamDecoder decoder(*tokenizer, options);
        std::string text;
        for (const int32_t id : ids) {
          const auto part = decoder.Push(id);
          ASSERT_TRUE(part.ok());
          ASSERT_EQ(FirstInvalidUtf8(*part), std::string_view::npos) << name << " seed " << seed;
          ASSERT_LE(decoder.pending_bytes(), 3u);
          text += *part;
        }
        text += decoder.Flush();
        ASSERT_EQ(text, *tokenizer->Decode(ids, skip)) << name << " seed " << seed;
      }
    }
  }
}

TEST(StreamDecoder, KeepsTheBlankWhereTextGoesOn) {
  const auto tokenizer = Load("llama2");
  const std::vector<int32_t> ids = *tokenizer->Encode("the", {.add_special = false});
  StreamDecoderOptions options;
  const auto decode = [&] {
    StreamDecoder decoder(*tokenizer, options);
    std::string text;
    for (const int32_t id : ids) text += *decoder.Push(id);
    return text + decoder.Flush();
  };
  EXPECT_EQ(decode(), "the");
  options.at_text_start = false;
  EXPECT_EQ(decode(), " the");
}

TEST(StreamDecoder, KeepsChosenSpecialTokens) {
  const auto tokenizer = Load("gpt-oss");
  const int32_t channel = *tokenizer->FindToken("<|channel|>"), end = *tokenizer->FindToken("<|end|>");
  StreamDecoderOptions options;
  options.keep = {channel};
  StreamDecoder decoder(*tokenizer, options);
  EXPECT_EQ(*decoder.Push(channel), "<|channel|>");
  EXPECT_EQ(*decoder.Push(end), "");
}

TEST(BpeModel, MergesLikeTheNaiveLoop) {
  const uint64_t seed = std::random_device{}();
  SampleStream rng(seed);
  for (int round = 0; round < 300; ++round) {
    // Random rules over few symbols: rule r makes the token 4 + r.
    const int rules = static_cast<int>(1 + rng.Below(40));
    MergeTable table;
    std::vector<std::array<int32_t, 2>> pairs;
    for (int r = 0; r < rules; ++r) {
      const auto pick = [&] { return static_cast<int32_t>(rng.Below(static_cast<uint64_t>(4 + r))); };
      pairs.push_back({pick(), pick()});
      table.Add(pairs.back()[0], pairs.back()[1], {static_cast<uint32_t>(r), 4 + r}, /*replace=*/false);
    }
    std::vector<int32_t> symbols(rng.Below(round % 3 == 0 ? 400 : 60));
    for (int32_t& s : symbols) s = static_cast<int32_t>(rng.Below(4));
    std::vector<int32_t> naive = symbols;
    while (true) {
      uint32_t best_rank = UINT32_MAX;
      size_t best = 0;
      int32_t merged = -1;
      for (size_t i = 0; i + 1 < naive.size(); ++i) {
        for (uint32_t r = 0; r < pairs.size(); ++r) {
          if (pairs[r][0] != naive[i] || pairs[r][1] != naive[i + 1]) continue;
          if (r < best_rank) {
            best_rank = r;
            best = i;
            merged = 4 + static_cast<int32_t>(r);
          }
          break;
        }
      }
      if (merged < 0) break;
      naive[best] = merged;
      naive.erase(naive.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    BpeModel::Merge(table, &symbols);
    ASSERT_EQ(symbols, naive) << "seed " << seed;
  }
}

// Pieces and words repeat in a long text; the word cache must not show.
TEST(Tokenizer, LongTextsEqualTheirParts) {
  const std::vector<std::string> fragments = SampleFragments();
  for (const char* name : {"llama3", "gemma", "llama2", "unigram"}) {
    const auto tokenizer = Load(name);
    std::string text;
    std::vector<int32_t> expected;
    for (uint64_t i = 0; i < 800; ++i) {
      std::string part = SampleText(13, i, fragments);
      part.erase(std::remove(part.begin(), part.end(), '\n'), part.end());
      if (part.empty()) continue;
      // A special token cuts the text, so that the parts are independent.
      const std::string mark(*tokenizer->TokenText(*tokenizer->FindToken(
          std::string(name) == "gemma" ? "<eos>" : std::string(name) == "llama3" ? "<|eot_id|>" : "</s>")));
      text += part + mark;
      const auto ids = tokenizer->Encode(part + mark, {.add_special = false, .parse_special = true});
      ASSERT_TRUE(ids.ok()) << ids.status();
      expected.insert(expected.end(), ids->begin(), ids->end());
    }
    EXPECT_EQ(*tokenizer->Encode(text, {.add_special = false, .parse_special = true}), expected) << name;
  }
}

TEST(Tokenizer, OneLongPieceTakesNoQuadraticTime) {
  const auto llama = Load("llama3");
  EXPECT_TRUE(llama->Encode(std::string(4 << 20, 'a'), {}).ok());
  std::string letters;
  SampleStream rng(5);
  for (int i = 0; i < 2 << 20; ++i) letters += static_cast<char>('a' + rng.Below(26));
  EXPECT_TRUE(llama->Encode(letters, {}).ok());
  EXPECT_TRUE(Load("gemma")->Encode(letters, {}).ok());
  EXPECT_TRUE(Load("unigram")->Encode(letters, {}).ok());
  EXPECT_TRUE(llama->Encode(std::string(1 << 20, ' '), {}).ok());
  EXPECT_TRUE(llama->Encode(std::string(1 << 20, '\n'), {}).ok());
}

// --- spans

TEST(Tokenizer, SpansDecideWhereSpecialTokensAre) {
  const auto tokenizer = Load("qwen2");
  const int32_t start = *tokenizer->FindToken("<|im_start|>"), end = *tokenizer->FindToken("<|im_end|>");
  const auto count = [&](std::vector<TextSpan> spans, int32_t id) {
    const auto ids = tokenizer->Encode(spans, {.add_special = false});
    EXPECT_TRUE(ids.ok());
    return std::count(ids->begin(), ids->end(), id);
  };
  EXPECT_EQ(count({{"<|im_start|>user\n", true}, {"<|im_end|> hi", false}, {"<|im_end|>", true}}, end), 1);
  EXPECT_EQ(count({{"<|im_start|>user\n", true}, {"<|im_start|>", false}}, start), 1);
  // Neither pieces of trusted and untrusted text nor the overlap form one.
  EXPECT_EQ(count({{"<|im_", true}, {"start|>", false}}, start), 0);
  EXPECT_EQ(count({{"<|im_", false}, {"start|>", true}}, start), 0);
  EXPECT_EQ(count({{"<|im_", true}, {"start|>", true}}, start), 1);
  EXPECT_EQ(count({{"<|im_", true}, {"", false}, {"start|>", true}}, start), 1);
  // What is not special is found in any text.
  EXPECT_EQ(count({{"a <tool_call> b", false}}, *tokenizer->FindToken("<tool_call>")), 1);
}

TEST(Tokenizer, BoundariesOfSpansCutNothing) {
  const std::vector<std::string> fragments = SampleFragments();
  for (const char* name : {"llama3", "gemma", "llama2", "mistral", "unigram"}) {
    const auto tokenizer = Load(name);
    SampleStream rng(3);
    for (uint64_t i = 0; i < 300; ++i) {
      const std::string text = SampleText(14, i, fragments);
      std::vector<TextSpan> spans;
      for (size_t pos = 0; pos < text.size();) {
        size_t end = std::min(text.size(), pos + 1 + rng.Below(9));
        while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
        spans.push_back({std::string_view(text).substr(pos, end - pos), true});
        pos = end;
      }
      EXPECT_EQ(*tokenizer->Encode(spans, {}), *tokenizer->Encode(text, {.parse_special = true})) << name;
      // Where no special token is spelled, the mixture of trusted and not makes no difference either.
      for (size_t s = 0; s < spans.size(); ++s) spans[s].parse_special = s % 2 == 0;
      if (*tokenizer->Encode(text, {.parse_special = true}) == *tokenizer->Encode(text, {})) {
        EXPECT_EQ(*tokenizer->Encode(spans, {}), *tokenizer->Encode(text, {})) << name;
      }
    }
  }
}

TEST(Tokenizer, NormalizedSpecialTokensKeepToTheirSpans) {
  const auto tokenizer = Load("components");  // <s> is special there and looked for after normalisation
  const int32_t id = *tokenizer->FindToken("<s>");
  const auto ids = tokenizer->Encode(std::vector<TextSpan>{{"A", false}, {"<S>", true}, {"b <s>", false}}, {});
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(std::count(ids->begin(), ids->end(), id), 1);
}

// --- facts about tokens

TEST(Tokenizer, KnowsItsTokens) {
  const auto tokenizer = Tokenizer::FromTokenizerJson(
      ReadTestData("tokenizers/llama2.json"), R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.unk_id(), 0);
  EXPECT_EQ(t.pad_id(), std::nullopt);
  EXPECT_THAT(std::vector<int32_t>(t.eog_ids().begin(), t.eog_ids().end()), ElementsAre(2));
  EXPECT_TRUE(t.IsEndOfGeneration(2));
  EXPECT_TRUE(t.IsSpecial(1));
  EXPECT_FALSE(t.IsSpecial(-1));
  EXPECT_FALSE(t.IsSpecial(t.vocab_size()));
  const int32_t newline = *t.FindToken("<0x0A>");
  EXPECT_TRUE(t.IsByte(newline));
  EXPECT_EQ(*t.TokenBytes(newline), "\n");
  EXPECT_EQ(*t.TokenText(newline), "<0x0A>");
  EXPECT_EQ(t.FindToken("no such token"), std::nullopt);
  EXPECT_EQ(t.prefix_ids().size(), 1u);
}

TEST(Tokenizer, EndsOfTurnEndGenerations) {
  const auto harmony = Load("gpt-oss");
  EXPECT_TRUE(harmony->IsEndOfGeneration(*harmony->FindToken("<|return|>")));
  EXPECT_TRUE(harmony->IsEndOfGeneration(*harmony->FindToken("<|call|>")));
  EXPECT_FALSE(harmony->IsEndOfGeneration(*harmony->FindToken("<|end|>")));
  const auto gemma = Load("gemma");
  EXPECT_TRUE(gemma->IsEndOfGeneration(*gemma->FindToken("<end_of_turn>")));
}

// --- errors

TEST(Tokenizer, RefusesBadInput) {
  const auto tokenizer = Load("llama3");
  EXPECT_THAT(std::string(tokenizer->Encode("abc\xFF").status().message()), HasSubstr("byte 3"));
  const std::vector<TextSpan> spans = {{"ab", true}, {"\xC3", false}};
  EXPECT_THAT(std::string(tokenizer->Encode(spans).status().message()), HasSubstr("byte 2"));
  for (const int32_t id : {-1, tokenizer->vocab_size(), INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer->TokenBytes(id).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(tokenizer->TokenText(id).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{id}, true).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(*tokenizer->Decode({}, false), "");
  EXPECT_EQ(tokenizer->Encode("")->size(), 1u);  // BOS
}

TEST(TokenizerJson, NamesWhatItDoesNotSupport) {
  const Json base = Json::parse(ReadTestData("tokenizers/llama3.json"));
  const auto status_with = [&base](const char* pointer, const char* value) {
    Json changed = base;
    changed[Json::json_pointer(pointer)] = Json::parse(value);
    return Tokenizer::FromTokenizerJson(changed.dump(), "").status();
  };
  const std::array<const char*, 3> unsupported[] = {
      {"/normalizer", R"({"type": "Precompiled", "precompiled_charsmap": ""})", "Precompiled"},
      {"/pre_tokenizer", R"({"type": "UnicodeScripts"})", "UnicodeScripts"},
      {"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "BertPreTokenizer"}]})", "BertPreTokenizer"},
      {"/decoder", R"({"type": "WordPiece"})", "WordPiece"},
      {"/post_processor", R"({"type": "Strange"})", "Strange"},
      {"/model/type", R"("WordLevel")", "WordLevel"},
      {"/model/dropout", "0.1", "dropout"},
      {"/model/end_of_word_suffix", R"("</w>")", "end_of_word_suffix"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated", "invert": false})", "\\w"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "[[:alpha:]]"}, "behavior": "Isolated", "invert": false})", "class"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "\\p{Han}"}, "behavior": "Isolated", "invert": false})", "Han"},
  };
  for (const auto& [pointer, value, word] : unsupported) {
    const absl::Status status = status_with(pointer, value);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << value << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(word));
  }
  const std::array<const char*, 2> broken[] = {
      {"/model/vocab", R"({"a": -1})"},
      {"/model/vocab", R"({"a": 99999999999})"},
      {"/model/vocab", R"({"a": "b"})"},
      {"/model/vocab", R"({})"},
      {"/model/merges", R"([["zz", "yy"]])"},
      {"/model/merges", R"(["a b c"])"},
      {"/model/merges", R"([["a"]])"},
      {"/model/unk_token", R"("nope nope")"},
      {"/added_tokens", R"([{"id": -5, "content": "x"}])"},
      {"/added_tokens", R"([{"content": "x"}])"},
      {"/added_tokens", R"({})"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"})"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated"})"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Sideways"})"},
      {"/pre_tokenizer", R"({"type": 5})"},
      {"/post_processor", R"({"type": "BertProcessing", "sep": ["x", 99999], "cls": ["y", 1]})"},
      {"/model", "null"},
      {"/model/byte_fallback", R"("yes")"},
  };
  for (const auto& [pointer, value] : broken) {
    EXPECT_EQ(status_with(pointer, value).code(), absl::StatusCode::kInvalidArgument) << pointer << " " << value;
  }
  for (const std::string& json : {std::string(""), std::string("[]"), std::string("{"), std::string(300'000, '['),
                                 std::string("{\"model\": ") + std::string(100, '{'), std::string("\xFF")}) {
    EXPECT_FALSE(Tokenizer::FromTokenizerJson(json, "").ok());
  }
  EXPECT_FALSE(Tokenizer::FromTokenizerJson(base.dump(), "{").ok());
  EXPECT_FALSE(Tokenizer::FromTokenizerJson(base.dump(), R"({"bos_token": 5})").ok());
}

TEST(TokenizerJson, ReadsScoresOfAnyExponent) {
  for (const char* score : {"-0.5e-2147483648", "-1.5e-2147483649", "0.00e2147483647", "-0e99999999999999999999"}) {
    const std::string json = absl::StrFormat(
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", %s], ["aa", -1e0]]}})", score);
    const auto tokenizer = Tokenizer::FromTokenizerJson(json, "");
    ASSERT_TRUE(tokenizer.ok()) << score << ": " << tokenizer.status();
    EXPECT_EQ(*(*tokenizer)->Encode("aa"), (std::vector<int32_t>{1, 1})) << score;  // 0 beats -1
  }
}

// What a text costs is the text's affair, not the file's.
TEST(TokenizerJson, RefusesTokensThatMakeEverySearchLong) {
  const std::string fits(1024, 'a'), long_token(1025, 'a');
  for (const std::string& token : {fits, long_token}) {
    const auto unigram = Tokenizer::FromTokenizerJson(
        absl::StrFormat(R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["%s", -1.0]]}})", token),
        "");
    const auto added = Tokenizer::FromTokenizerJson(
        absl::StrFormat(R"({"added_tokens": [{"id": 1, "content": "%s"}],)"
                        R"( "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})", token),
        "");
    EXPECT_EQ(unigram.ok(), token == fits) << unigram.status();
    EXPECT_EQ(added.ok(), token == fits) << added.status();
  }
}

TEST(TokenizerJson, BoundsWhatReplacementsMakeOfAText) {
  const auto load = [](std::string_view normalizer) {
    auto tokenizer = Tokenizer::FromTokenizerJson(
        absl::StrFormat(R"({"normalizer": %s, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})", normalizer),
        "");
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return *std::move(tokenizer);
  };
  const std::string ten(10, 'a'), thousand(1000, 'a'), text(1000, 'a');
  const std::string tenfold = absl::StrFormat(R"({"type": "Replace", "pattern": {"String": "a"}, "content": "%s"})", ten);
  const std::string by_regex = absl::StrFormat(R"({"type": "Replace", "pattern": {"Regex": "a"}, "content": "%s"})", ten);
  const std::string prepend = absl::StrFormat(R"({"type": "Prepend", "prepend": "%s"})", thousand);
  const auto sequence = [](const std::string& first, const std::string& second) {
    return absl::StrFormat(R"({"type": "Sequence", "normalizers": [%s, %s]})", first, second);
  };
  EXPECT_EQ(load(tenfold)->Encode(text)->size(), 10'000u);
  EXPECT_EQ(load(by_regex)->Encode(text)->size(), 10'000u);
  EXPECT_EQ(load(prepend)->Encode(text)->size(), 2'000u);
  for (const std::string& bomb : {sequence(tenfold, tenfold), sequence(tenfold, by_regex)}) {
    EXPECT_EQ(load(bomb)->Encode(text).status().code(), absl::StatusCode::kResourceExhausted);
  }
  EXPECT_EQ(load(prepend)->Encode("a").status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(TokenizerJson, SurvivesDamage) {
  const uint64_t seed = std::random_device{}();
  SampleStream rng(seed);
  const std::string json = ReadTestData("tokenizers/words.json");
  for (int round = 0; round < 400; ++round) {
    std::string damaged = json;
    for (uint64_t n = 1 + rng.Below(4); n > 0; --n) {
      const size_t at = rng.Below(3) == 0 ? rng.Below(2000) : rng.Below(damaged.size());
      switch (rng.Below(3)) {
        case 0: damaged[at] = static_cast<char>(rng.Below(128)); break;
        case 1: damaged.erase(at, 1 + rng.Below(20)); break;
        default: damaged.insert(at, 1, "{}[],:\"0-"[rng.Below(9)]); break;
      }
    }
    const auto tokenizer = Tokenizer::FromTokenizerJson(damaged, "");
    if (tokenizer.ok()) {
      const auto ids = (*tokenizer)->Encode("Any text, 123.", {.parse_special = true});
      if (ids.ok()) {
        EXPECT_TRUE((*tokenizer)->Decode(*ids, false).ok()) << "seed " << seed;
      }
    }
  }
}

GgufVocab SmallVocab() {
  GgufVocab vocab;
  vocab.model = "llama";
  vocab.tokens = {"<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "▁ab", "<0x0A>"};
  vocab.scores = {0, 0, 0, -1, -2, -3, -4, -5, 0};
  vocab.token_types = {2, 3, 3, 1, 1, 1, 1, 1, 6};
  vocab.bos = 1;
  vocab.eos = 2;
  vocab.unk = 0;
  return vocab;
}

TEST(TokenizerGguf, ReadsSmallVocabularies) {
  const auto tokenizer = Tokenizer::FromGguf(SmallVocab());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("ab a"), ElementsAre(1, 7, 6, 3));
  EXPECT_THAT(*(*tokenizer)->Encode("\n"), ElementsAre(1, 6, 8));
  EXPECT_THAT(*(*tokenizer)->Encode("xyz"), ElementsAre(1, 6, 0));  // unknown characters fuse
  EXPECT_EQ(*(*tokenizer)->Decode(std::vector<int32_t>{1, 7, 6, 3, 2}, true), "ab a");
}

TEST(TokenizerGguf, RefusesBrokenVocabularies) {
  const auto status_of = [](auto change) {
    GgufVocab vocab = SmallVocab();
    change(vocab);
    return Tokenizer::FromGguf(vocab).status();
  };
  EXPECT_THAT(std::string(status_of([](GgufVocab& v) { v.model = "bert"; }).message()), HasSubstr("bert"));
  EXPECT_THAT(std::string(status_of([](GgufVocab& v) { v.model = "gpt2", v.pre = "martian"; }).message()),
              testing::AllOf(HasSubstr("martian"), HasSubstr("llama-bpe"), HasSubstr("qwen2")));
  EXPECT_FALSE(status_of([](GgufVocab& v) { v.model = "gpt2", v.pre = ""; }).ok());
  EXPECT_FALSE(status_of([](GgufVocab& v) { v.model = "gpt2", v.pre = "gpt-2"; }).ok());  // lacks bytes
  EXPECT_FALSE(status_of([](GgufVocab& v) { v.tokens.clear(); }).ok());
  EXPECT_FALSE(status_of([](GgufVocab& v) { v.scores.pop_back(); }).ok());
  EXPECT_FALSE(status_of([](GgufVocab& v) { v.scores[3] = NAN; }).ok());
  EXPECT_FALSE(status_of([](GgufVocab& v) { v.token_types.pop_back(); }).ok());
  EXPECT_FALSE(status_of([](GgufVocab& v) { v.token_types[2] = 77; }).ok());
  EXPECT_FALSE(status_of([](GgufVocab& v) { v.tokens[3] = "\xFF"; }).ok());
  EXPECT_FALSE(status_of([](GgufVocab& v) { v.bos = 99; }).ok());
  EXPECT_FALSE(status_of([](GgufVocab& v) { v.eos = -1; }).ok());
}

}  // namespace
}  // namespace longstride::model

// Token ids and texts against Hugging Face `tokenizers` and SentencePiece, by goldens that
// tests/parity/text/make_tokenizer_goldens.py makes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "model/text/tokenizer.h"
#include "tests/model/text/gguf_vocab_reader.h"
#include "tests/model/text/text_samples.h"

namespace longstride::model {
namespace {

using Json = nlohmann::json;

std::string Hex(uint64_t hash) { return absl::StrFormat("%016x", hash); }

Json ReadGolden(std::string_view name) {
  return Json::parse(ReadTestData("goldens/" + std::string(name) + ".json"));
}

std::vector<int32_t> RandomIds(uint64_t seed, int32_t vocab_size) {
  SampleStream rng(seed);
  std::vector<int32_t> ids(rng.Below(9));
  for (int32_t& id : ids) id = static_cast<int32_t>(rng.Below(static_cast<uint64_t>(vocab_size)));
  return ids;
}

void CheckExamples(const Tokenizer& tokenizer, const Json& golden) {
  for (const Json& example : golden.value("examples", Json::array())) {
    const auto text = example["text"].get<std::string>();
    const auto ids = tokenizer.Encode(text, {.add_special = true, .parse_special = true});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, example["ids"].get<std::vector<int32_t>>()) << Json(text);
  }
}

// Compares the hashes of blocks of samples; stops at the first block that differs.
void CheckSamples(const Tokenizer& tokenizer, const Json& golden) {
  const std::vector<std::string> fragments = SampleFragments();
  const auto seed = golden["seed"].get<uint64_t>();
  const auto count = golden["count"].get<size_t>(), block = golden["block"].get<size_t>();
  ASSERT_EQ(golden["encode"].size() * block, count);
  for (size_t start = 0; start < count; start += block) {
    uint64_t parsed = kFnvStart, plain = kFnvStart, decoded = kFnvStart;
    std::string ids_for_message;
    for (size_t i = start; i < start + block; ++i) {
      const std::string text = SampleText(seed, i, fragments);
      const auto ids = tokenizer.Encode(text, {.add_special = true, .parse_special = true});
      const auto raw = tokenizer.Encode(text, {.add_special = false, .parse_special = false});
      ASSERT_TRUE(ids.ok() && raw.ok()) << ids.status();
      for (const int32_t id : *ids) parsed = Fnv(parsed, id);
      for (const int32_t id : *raw) plain = Fnv(plain, id);
      parsed = Fnv(parsed, -1);
      plain = Fnv(plain, -1);
      ids_for_message += Json(text).dump() + " " + Json(*ids).dump() + "\n";
      if (i % 4 != 0) continue;
      for (const auto& sequence :
           {*ids, RandomIds(seed + i, golden["vocab_size"].get<int32_t>())}) {
        for (const bool skip : {false, true}) {
          const auto back = tokenizer.Decode(sequence, skip);
          ASSERT_TRUE(back.ok()) << back.status();
          for (const unsigned char byte : *back) decoded = Fnv(decoded, byte);
          decoded = Fnv(decoded, -1);
          ids_for_message += "  " + Json(sequence).dump() + " " + Json(*back).dump() + "\n";
        }
      }
    }
    const size_t b = start / block;
    ASSERT_EQ(Hex(parsed), golden["encode"][b]) << "block " << b << ":\n" << ids_for_message;
    ASSERT_EQ(Hex(plain), golden["encode_plain"][b]) << "block " << b << ":\n" << ids_for_message;
    ASSERT_EQ(Hex(decoded), golden["decode"][b]) << "block " << b << ":\n" << ids_for_message;
  }
}

void CheckSweep(const Tokenizer& tokenizer, const Json& golden) {
  const auto blocks = SweepBlocks();
  ASSERT_EQ(golden["sweep"].size(), blocks.size());
  for (size_t b = 0; b < blocks.size(); ++b) {
    uint64_t hash = kFnvStart;
    for (const char32_t c : blocks[b]) {
      const auto ids = tokenizer.Encode(SweepText(c), {.add_special = false, .parse_special = true});
      ASSERT_TRUE(ids.ok()) << ids.status();
      for (const int32_t id : *ids) hash = Fnv(hash, id);
      hash = Fnv(hash, -1);
    }
    EXPECT_EQ(Hex(hash), golden["sweep"][b]) << "code points from " << std::hex << b * 4096;
  }
}

class TokenizerParity : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerParity, EqualsHuggingFace) {
  const std::string name = GetParam();
  const auto tokenizer =
      Tokenizer::FromTokenizerJson(ReadTestData("tokenizers/" + name + ".json"), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Json golden = ReadGolden(name);
  EXPECT_EQ((*tokenizer)->vocab_size(), golden["vocab_size"]);
  CheckExamples(**tokenizer, golden);
  CheckSamples(**tokenizer, golden);
  CheckSweep(**tokenizer, golden);
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerParity,
                         testing::Values("llama3", "qwen2", "gpt-oss", "llama4", "tekken", "olmo",
                                         "cohere", "phi-2", "gguf-default", "llama2", "phi3",
                                         "mistral", "gemma", "unigram", "unigram-bytes",
                                         "components", "words", "mistral-v7-cut", "tekken-cut"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(TokenizerParityGguf, EqualsSentencePiece) {
  const Json data = Json::parse(ReadTestData("tokenizers/sentencepiece.gguf.json"));
  GgufVocab vocab;
  vocab.model = data["model"];
  vocab.tokens = data["tokens"].get<std::vector<std::string>>();
  vocab.scores = data["scores"].get<std::vector<float>>();
  vocab.token_types = data["token_types"].get<std::vector<int32_t>>();
  vocab.bos = data["bos"];
  vocab.eos = data["eos"];
  vocab.unk = data["unk"];
  const auto tokenizer = Tokenizer::FromGguf(vocab);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Json golden = ReadGolden("sentencepiece");
  const std::vector<std::string> fragments = SampleFragments();
  const auto count = golden["count"].get<size_t>(), block = golden["block"].get<size_t>();
  for (size_t start = 0; start < count; start += block) {
    uint64_t encoded = kFnvStart, decoded = kFnvStart;
    std::string message;
    for (size_t i = start; i < start + block; ++i) {
      std::string text = SampleText(golden["seed"], i, fragments);
      for (const char* escape : {"▁", "<s>", "<table>", "\n"}) {
        if (text.find(escape) != std::string::npos) text.clear();
      }
      const auto ids = (*tokenizer)->Encode(text, {.add_special = false});
      ASSERT_TRUE(ids.ok()) << ids.status();
      for (const int32_t id : *ids) encoded = Fnv(encoded, id);
      encoded = Fnv(encoded, -1);
      const auto back = (*tokenizer)->Decode(*ids, false);
      ASSERT_TRUE(back.ok()) << back.status();
      for (const unsigned char byte : *back) decoded = Fnv(decoded, byte);
      decoded = Fnv(decoded, -1);
      message += Json(text).dump() + " " + Json(*ids).dump() + " " + Json(*back).dump() + "\n";
    }
    ASSERT_EQ(Hex(encoded), golden["encode"][start / block]) << message;
    ASSERT_EQ(Hex(decoded), golden["decode"][start / block]) << message;
  }
}

// The byte-level pipelines that tokenizer.ggml.pre names, against tokenizer.json's.
TEST(TokenizerParityGguf, PreTokenizersEqualTokenizerJson) {
  const std::pair<const char*, const char*> pairs[] = {
      {"llama3", "llama-bpe"}, {"qwen2", "qwen2"},   {"gpt-oss", "gpt-4o"},
      {"llama4", "llama4"},    {"tekken", "tekken"}, {"olmo", "olmo"},
      {"cohere", "command-r"}, {"gguf-default", "default"},
  };
  for (const auto& [name, pre] : pairs) {
    const std::string json = ReadTestData("tokenizers/" + std::string(name) + ".json");
    const auto expected = Tokenizer::FromTokenizerJson(json, "");
    ASSERT_TRUE(expected.ok()) << expected.status();
    const Json data = Json::parse(json);
    GgufVocab vocab;
    vocab.model = "gpt2";
    vocab.pre = pre;
    for (int32_t id = 0; id < (*expected)->vocab_size(); ++id) {
      vocab.tokens.emplace_back(*(*expected)->TokenText(id));
      vocab.token_types.push_back(1);
    }
    for (const Json& token : data["added_tokens"]) {
      vocab.token_types[token["id"].get<size_t>()] = token["special"] ? 3 : 4;
    }
    for (const Json& merge : data["model"]["merges"]) {
      vocab.merges.push_back(merge.is_string() ? merge.get<std::string>()
                                               : merge[0].get<std::string>() + " " +
                                                     merge[1].get<std::string>());
    }
    const auto tokenizer = Tokenizer::FromGguf(vocab);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::vector<std::string> fragments = SampleFragments();
    for (uint64_t i = 0; i < 1000; ++i) {
      const std::string text = SampleText(99, i, fragments);
      const EncodeOptions options{.add_special = false, .parse_special = i % 2 == 0};
      EXPECT_EQ(*(*tokenizer)->Encode(text, options), *(*expected)->Encode(text, options))
          << pre << " " << Json(text);
    }
  }
}

class RealGguf : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(RealGguf, EqualsHuggingFace) {
  const char* folder = std::getenv("LONGSTRIDE_TEST_MODELS");
  const std::string path =
      std::string(folder != nullptr ? folder : "models") + "/" + GetParam().second;
  const auto vocab = ReadGgufVocab(path);
  if (!vocab.has_value()) {
    GTEST_SKIP() << "needs the model file " << GetParam().second
                 << " in the folder that LONGSTRIDE_TEST_MODELS names";
  }
  const auto tokenizer = Tokenizer::FromGguf(*vocab);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Json golden = ReadGolden(GetParam().first);
  EXPECT_EQ((*tokenizer)->vocab_size(), golden["vocab_size"]);
  CheckExamples(**tokenizer, golden);
  CheckSamples(**tokenizer, golden);
  CheckSweep(**tokenizer, golden);
}

INSTANTIATE_TEST_SUITE_P(
    Models, RealGguf,
    testing::Values(std::pair("gemma3-gguf", "gemma-3-270m-q4_k_m.gguf"),
                    std::pair("smollm2-gguf", "SmolLM2-135M-Instruct.Q4_1.gguf")),
    [](const auto& info) { return std::string(info.param.first).substr(0, 6); });

}  // namespace
}  // namespace longstride::model

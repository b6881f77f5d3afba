#include "model/families/generation_defaults.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/weights/gguf_file.h"
#include "tests/testing/gguf_writer.h"
#include "tests/testing/safetensors_writer.h"
#include "tests/testing/temp_folder.h"

namespace longstride::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<GenerationDefaults> FromFolder(std::string_view config,
                                              std::string_view generation) {
  const testing::TempFolder folder;
  folder.Write("config.json", config);
  if (!generation.empty()) folder.Write("generation_config.json", generation);
  testing::SafetensorsWriter writer;
  writer.AddFloats("w", {1}, {1});
  folder.Write("model.safetensors", writer.Finish());
  const auto file = WeightsFile::Open(folder.path());
  EXPECT_TRUE(file.ok()) << file.status();
  return ReadGenerationDefaults(**file, 100);
}

TEST(GenerationDefaults, GenerationConfigWinsOverConfig) {
  const auto defaults =
      FromFolder(R"({"eos_token_id":2,"bos_token_id":1,"pad_token_id":-1})",
                 R"({"eos_token_id":[9,7,9],"do_sample":true,"temperature":0.6,"top_p":0.9,
                     "top_k":20,"repetition_penalty":1.05})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_THAT(defaults->eos_ids, ElementsAre(7, 9));
  EXPECT_EQ(defaults->bos_id, 1);
  EXPECT_EQ(defaults->pad_id, std::nullopt);
  EXPECT_EQ(defaults->temperature, 0.6f);
  EXPECT_EQ(defaults->top_p, 0.9f);
  EXPECT_EQ(defaults->top_k, 20);
  EXPECT_EQ(defaults->min_p, std::nullopt);
  EXPECT_EQ(defaults->repetition_penalty, 1.05f);
}

TEST(GenerationDefaults, WithoutAFileNothingIsStatedButTheIds) {
  const auto defaults = FromFolder(R"({"text_config":{"eos_token_id":[1,5]}})", "");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_THAT(defaults->eos_ids, ElementsAre(1, 5));
  EXPECT_EQ(defaults->temperature, std::nullopt);
  EXPECT_EQ(defaults->top_k, std::nullopt);
}

TEST(GenerationDefaults, SamplingThatIsOffMeansGreedy) {
  const auto defaults = FromFolder("{}", R"({"do_sample":false,"temperature":0.6,"top_k":50})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 0.0f);
  EXPECT_EQ(defaults->top_k, std::nullopt);
}

TEST(GenerationDefaults, RefusesIdsAndValuesOutOfRange) {
  EXPECT_THAT(std::string(FromFolder(R"({"eos_token_id":100})", "").status().message()),
              HasSubstr("token id 100; the vocabulary has 100 tokens"));
  EXPECT_FALSE(FromFolder(R"({"eos_token_id":[-3]})", "").ok());
  EXPECT_FALSE(FromFolder("{}", R"({"temperature":-1})").ok());
  EXPECT_FALSE(FromFolder("{}", R"({"top_p":1.5})").ok());
  EXPECT_FALSE(FromFolder("{}", R"({"top_k":-4})").ok());
  EXPECT_FALSE(FromFolder("{}", "[").ok());
}

// Few files name the token that ends a turn; it is found among the control tokens.
TEST(GenerationDefaults, GgufFindsEndOfTurnTokens) {
  testing::GgufWriter writer;
  writer.SetStrings("tokenizer.ggml.tokens",
                    {"<pad>", "<eos>", "<bos>", "<end_of_turn>", "a", "<|im_end|>"});
  writer.SetInts("tokenizer.ggml.token_type", {3, 3, 3, 3, 1, 1});
  writer.SetUint32("tokenizer.ggml.eos_token_id", 1);
  writer.SetUint32("tokenizer.ggml.bos_token_id", 2);
  writer.SetUint32("tokenizer.ggml.padding_token_id", 0);
  const std::vector<uint8_t> bytes = writer.Finish();
  const auto defaults = ReadGenerationDefaults(**OpenGgufMemory({bytes}), 6);
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_THAT(defaults->eos_ids, ElementsAre(1, 3));  // an ordinary token is text
  EXPECT_EQ(defaults->bos_id, 2);
  EXPECT_EQ(defaults->pad_id, 0);
}

}  // namespace
}  // namespace longstride::model

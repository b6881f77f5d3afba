#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "model/weights/json_check.h"
#include "model/weights/weights_file.h"
#include "tests/testing/safetensors_writer.h"
#include "tests/testing/temp_folder.h"

namespace longstride::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::SafetensorsWriter;
using testing::TempFolder;

std::vector<uint8_t> OneTensor(std::string_view name, float value) {
  SafetensorsWriter writer;
  writer.AddFloats(name, {2}, {value, 1});
  return writer.Finish();
}

TEST(HuggingFaceFolder, ReadsConfigWeightsAndTextFiles) {
  const TempFolder folder;
  folder.Write("config.json", R"({"model_type":"llama"})");
  folder.Write("model.safetensors", OneTensor("w", 3));
  folder.Write("tokenizer.json", "{}");
  const auto file = WeightsFile::Open(folder.path() + "/");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->format(), CheckpointFormat::kHuggingFace);
  EXPECT_EQ((*file)->name(), folder.path().substr(folder.path().rfind('/') + 1));
  EXPECT_EQ((*file)->metadata_json(), R"({"model_type":"llama"})");
  EXPECT_EQ((*file)->Tensor("w")->ptr<float>()[0], 3.0f);
  EXPECT_EQ((*file)->TextFile("tokenizer.json"), "{}");
  EXPECT_EQ((*file)->TextFile("absent.json"), std::nullopt);
  EXPECT_EQ((*file)->TextFile("../config.json"), std::nullopt);
  EXPECT_EQ((*file)->digest().size(), 32u);
  (*file)->Release(*(*file)->Tensor("w"));
  EXPECT_EQ((*file)->Tensor("w")->ptr<float>()[1], 1.0f);
}

TEST(HuggingFaceFolder, ReadsModules) {
  const TempFolder folder;
  folder.Write("config.json", "{}");
  folder.Write("model.safetensors", OneTensor("w", 3));
  std::filesystem::create_directory(folder.File("1_Dense"));
  std::filesystem::create_directory(folder.File("other"));
  folder.Write("1_Dense/config.json", "{}");
  folder.Write("1_Dense/model.safetensors", OneTensor("linear.weight", 5));
  folder.Write("other/config.json", "{}");
  const auto plain = WeightsFile::Open(folder.path());
  ASSERT_TRUE(plain.ok());
  EXPECT_TRUE((*plain)->modules().empty());
  EXPECT_EQ((*plain)->TextFile("1_Dense/config.json"), std::nullopt);
  folder.Write("modules.json",
               R"([{"type":"x.y.Transformer","path":""},{"type":"x.Dense","path":"1_Dense"}])");
  const auto file = WeightsFile::Open(folder.path());
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->modules().size(), 2u);
  EXPECT_EQ((*file)->modules()[0].type, "Transformer");
  EXPECT_EQ((*file)->modules()[1].folder, "1_Dense");
  EXPECT_THAT((*file)->tensor_names(), ElementsAre("1_Dense/linear.weight", "w"));
  EXPECT_EQ((*file)->Tensor("1_Dense/linear.weight")->ptr<float>()[0], 5.0f);
  EXPECT_EQ((*file)->TextFile("1_Dense/config.json"), "{}");
  for (const char* name : {"other/config.json", "1_Dense/../config.json", "1_Dense/", "/config.json"}) {
    EXPECT_EQ((*file)->TextFile(name), std::nullopt) << name;
  }
  const std::string digest = (*file)->digest();
  EXPECT_NE(digest, (*plain)->digest());
  folder.Write("1_Dense/config.json", R"({"bias": true})");
  EXPECT_NE((*WeightsFile::Open(folder.path()))->digest(), digest);
}

TEST(HuggingFaceFolder, ReadsShards) {
  const TempFolder folder;
  folder.Write("config.json", "{}");
  folder.Write("m-1.safetensors", OneTensor("a", 1));
  folder.Write("m-2.safetensors", OneTensor("b", 2));
  folder.Write("model.safetensors.index.json",
               R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  const auto file = WeightsFile::Open(folder.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->tensor_names(), ElementsAre("a", "b"));
  EXPECT_EQ((*file)->Tensor("b")->ptr<float>()[0], 2.0f);
}

TEST(HuggingFaceFolder, RefusesIndexesThatLie) {
  const TempFolder folder;
  folder.Write("config.json", "{}");
  folder.Write("m-1.safetensors", OneTensor("a", 1));
  folder.Write("m-2.safetensors", OneTensor("a", 2));
  const auto error = [&](const char* index) {
    folder.Write("model.safetensors.index.json", index);
    const auto file = WeightsFile::Open(folder.path());
    EXPECT_FALSE(file.ok());
    return std::string(file.status().message());
  };
  EXPECT_THAT(error(R"({"weight_map":{"b":"m-1.safetensors"}})"), HasSubstr("does not hold"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"m-3.safetensors"}})"), HasSubstr("m-3.safetensors"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})"),
              HasSubstr("same name"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"../m-1.safetensors"}})"), HasSubstr("same folder"));
  EXPECT_THAT(error(R"({"weight_map":{}})"), HasSubstr("no tensor"));
}

TEST(HuggingFaceFolder, NamesTypesThatItDoesNotRead) {
  const TempFolder folder;
  folder.Write("config.json", "{}");
  SafetensorsWriter writer;
  writer.AddFloats("good", {1}, {1});
  writer.Add("bad", "F64", {1}, std::vector<uint8_t>(8));
  folder.Write("model.safetensors", writer.Finish());
  const auto file = WeightsFile::Open(folder.path());
  ASSERT_TRUE(file.ok()) << file.status();  // only a tensor that is used must be of a known type
  EXPECT_TRUE((*file)->Tensor("good").ok());
  EXPECT_TRUE(absl::IsUnimplemented((*file)->Tensor("bad").status()));
  EXPECT_THAT(std::string((*file)->Tensor("bad").status().message()), HasSubstr("F64"));
}

TEST(HuggingFaceFolder, SaysWhatIsMissing) {
  const TempFolder folder;
  folder.Write("config.json", "{}");
  folder.Write("pytorch_model.bin", "x");
  const auto file = WeightsFile::Open(folder.path());
  EXPECT_TRUE(absl::IsNotFound(file.status()));
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("safetensors"));
}

TEST(HuggingFaceFolder, RefusesDeepConfigs) {
  const TempFolder folder;
  folder.Write("config.json", std::string(200000, '['));
  folder.Write("model.safetensors", OneTensor("w", 3));
  EXPECT_THAT(std::string(WeightsFile::Open(folder.path()).status().message()),
              HasSubstr("nests deeper"));
}

TEST(CheckJsonLimits, IgnoresBracketsInStrings) {
  EXPECT_TRUE(CheckJsonLimits(R"({"a":"[[[[\"[["})", "text", 100, 1).ok());
  EXPECT_FALSE(CheckJsonLimits("[[]]", "text", 100, 1).ok());
  EXPECT_TRUE(CheckJsonLimits("[[],[],[]]", "text", 100, 2).ok());
  EXPECT_FALSE(CheckJsonLimits("[]", "text", 1, 2).ok());
}

}  // namespace
}  // namespace longstride::model

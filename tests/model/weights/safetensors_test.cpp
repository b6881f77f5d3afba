#include "model/weights/safetensors_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/testing/safetensors_writer.h"

namespace longstride::model {
namespace {

using kernels::DType;
using ::testing::HasSubstr;
using testing::RawSafetensors;
using testing::SafetensorsWriter;

std::string ParseError(std::string_view header, size_t data = 16) {
  const auto tensors = ParseSafetensors(RawSafetensors(header, std::vector<uint8_t>(data)));
  EXPECT_FALSE(tensors.ok()) << header;
  return std::string(tensors.status().message());
}

std::vector<uint8_t> SmallFile() {
  SafetensorsWriter writer;
  writer.AddFloats("model.norm.weight", {4}, {1, 2, 3, 4});
  writer.Add("half", "BF16", {2, 3}, std::vector<uint8_t>(12, 7));
  writer.Add("odd", "F64", {1}, std::vector<uint8_t>(8));
  return writer.Finish();
}

TEST(Safetensors, ReadsTheDirectory) {
  const std::vector<uint8_t> bytes = SmallFile();
  const auto tensors = ParseSafetensors(bytes);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  const SafetensorsTensor& norm = (*tensors)[0];
  EXPECT_EQ(norm.name, "model.norm.weight");
  EXPECT_EQ(norm.dtype, DType::kF32);
  EXPECT_EQ(norm.shape[0], 4);
  float third = 0;
  std::memcpy(&third, bytes.data() + norm.offset + 8, 4);
  EXPECT_EQ(third, 3.0f);
  EXPECT_EQ((*tensors)[1].rank, 2);
  EXPECT_EQ((*tensors)[1].shape[1], 3);
  EXPECT_EQ((*tensors)[2].dtype, std::nullopt);
  EXPECT_EQ((*tensors)[2].type_name, "F64");
}

TEST(Safetensors, RefusesExtentsOutsideTheFile) {
  EXPECT_THAT(ParseError(R"({"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}})"),
              HasSubstr("truncated"));
  EXPECT_THAT(ParseError(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}})"),
              HasSubstr("ascending"));
  EXPECT_THAT(
      ParseError(
          R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[18446744073709551600,18446744073709551616]}})"),
      HasSubstr("\"a\""));
  EXPECT_THAT(
      ParseError(
          R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[18446744073709551599,18446744073709551615]}})"),
      HasSubstr("truncated"));
  EXPECT_THAT(ParseError(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[-4,12]}})"),
              HasSubstr("negative"));
}

TEST(Safetensors, RefusesShapesThatDoNotFit) {
  EXPECT_THAT(ParseError(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}})"),
              HasSubstr("12"));
  EXPECT_THAT(
      ParseError(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})"),
      HasSubstr("larger than the file"));
  EXPECT_THAT(ParseError(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})"),
              HasSubstr("zero"));
  EXPECT_THAT(ParseError(R"({"a":{"dtype":"F32","shape":[1,1,1,1,4],"data_offsets":[0,16]}})"),
              HasSubstr("4 dimensions"));
}

TEST(Safetensors, RefusesOverlapDuplicatesAndMisalignment) {
  EXPECT_THAT(ParseError(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                         R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})"),
              HasSubstr("overlap"));
  EXPECT_THAT(ParseError(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                         R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})"),
              HasSubstr("twice"));
  std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  while (header.size() % 8 != 0) header += ' ';
  EXPECT_THAT(ParseError(header), HasSubstr("aligned"));
}

TEST(Safetensors, RefusesHeadersOfAnotherForm) {
  for (const char* header :
       {"", "[]", "7", "null", "{", R"({"a":1})", R"({"a":{}})", R"({"a":{"dtype":"F32"}})",
        R"({"a":{"dtype":1,"shape":[],"data_offsets":[0,0]}})",
        R"({"a":{"dtype":"F32","shape":{},"data_offsets":[0,0]}})",
        R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})",
        R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
        R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})",
        R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})",
        R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} x)",
        R"({"__metadata__":{"k":{"deep":{"deeper":{}}}}})", R"({"__metadata__":{"k":[]}})"}) {
    EXPECT_FALSE(ParseError(header).empty()) << header;
  }
  std::string deep = R"({"a":)";
  deep.append(200000, '[');
  EXPECT_THAT(ParseError(deep), HasSubstr("nests deeper"));
}

TEST(Safetensors, RefusesHeaderLengthsThatLie) {
  std::vector<uint8_t> bytes(64);
  const uint64_t huge = UINT64_MAX;
  std::memcpy(bytes.data(), &huge, 8);
  EXPECT_THAT(std::string(ParseSafetensors(bytes).status().message()), HasSubstr("at most"));
  const uint64_t beyond = 57;
  std::memcpy(bytes.data(), &beyond, 8);
  EXPECT_THAT(std::string(ParseSafetensors(bytes).status().message()), HasSubstr("truncated"));
  EXPECT_FALSE(ParseSafetensors({}).ok());
}

TEST(Safetensors, SurvivesTruncationAndEveryHeaderByteChanged) {
  const std::vector<uint8_t> bytes = SmallFile();
  for (size_t length = 0; length < bytes.size(); ++length) {
    const std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + static_cast<int64_t>(length));
    EXPECT_FALSE(ParseSafetensors(cut).ok()) << length;
  }
  const size_t header = bytes.size() - 36;
  for (size_t i = 0; i < header; ++i) {
    for (int value = 0; value < 256; value += (i < 8 ? 1 : 7)) {
      std::vector<uint8_t> damaged = bytes;
      damaged[i] = static_cast<uint8_t>(value);
      const auto tensors = ParseSafetensors(damaged);
      if (!tensors.ok()) continue;
      for (const SafetensorsTensor& tensor : *tensors) {
        EXPECT_LE(tensor.offset + tensor.bytes, damaged.size());
      }
    }
  }
}

TEST(SafetensorsIndex, NamesFilesOfTheFolderOnly) {
  const auto index = ParseSafetensorsIndex(
      R"({"metadata":{"total_size":8},"weight_map":{"b":"m-2.safetensors","a":"m-1.safetensors"}})");
  ASSERT_TRUE(index.ok());
  ASSERT_EQ(index->size(), 2u);
  EXPECT_EQ((*index)[0].second, "m-1.safetensors");
  for (const char* name :
       {"../m.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\\\b", "a\\u0000b"}) {
    const std::string json = StrCat(R"({"weight_map":{"t":")", name, R"("}})");
    EXPECT_FALSE(ParseSafetensorsIndex(json).ok()) << name;
  }
  for (const char* json : {"", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":7}})"}) {
    EXPECT_FALSE(ParseSafetensorsIndex(json).ok()) << json;
  }
}

}  // namespace
}  // namespace longstride::model

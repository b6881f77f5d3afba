#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "model/weights/gguf_file.h"
#include "model/weights/gguf_parser.h"
#include "model/weights/weights_file.h"
#include "tests/testing/gguf_writer.h"
#include "tests/testing/temp_folder.h"

namespace longstride::model {
namespace {

using kernels::DType;
using testing::ByteSink;
using ::testing::ElementsAre;
using testing::GgufWriter;
using ::testing::HasSubstr;
using testing::TempFolder;

std::vector<uint8_t> Pattern(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(i * 37 + 11);
  return bytes;
}

// A file with every kind of value and two tensors.
GgufWriter SmallWriter() {
  GgufWriter writer;
  writer.SetString("general.architecture", "llama");
  writer.SetUint32("llama.block_count", 2);
  writer.SetInt32("negative", -7);
  writer.SetFloat32("eps", 0.25f);
  writer.SetBool("flag", true);
  writer.SetStrings("tokens", {"a", "", "\xff\xfe"});
  writer.SetFloats("scores", {1.0f, -2.5f});
  writer.SetInts("types", {3, -1, 6});
  writer.AddFloats("norm.weight", {4}, {1, 2, 3, 4});
  writer.AddTensor("blk.weight", 8, {3, 64}, Pattern(3 * 2 * 34));
  return writer;
}

std::string ParseError(const std::vector<uint8_t>& bytes) {
  const auto header = ParseGguf(bytes);
  EXPECT_FALSE(header.ok());
  return std::string(header.status().message());
}

TEST(Gguf, ReadsTensorsRowMajorAndMetadata) {
  const std::vector<uint8_t> bytes = SmallWriter().Finish();
  const auto file = OpenGgufMemory({bytes});
  ASSERT_TRUE(file.ok()) << file.status();
  const auto view = (*file)->Tensor("blk.weight");
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view->dtype, DType::kQ8_0);
  EXPECT_EQ(view->rank, 2);
  EXPECT_EQ(view->shape[0], 3);
  EXPECT_EQ(view->shape[1], 64);
  const std::vector<uint8_t> expected = Pattern(204);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), view->ptr<uint8_t>()));
  EXPECT_EQ((*file)->Tensor("norm.weight")->ptr<float>()[2], 3.0f);
  EXPECT_THAT((*file)->GgufInts("types"), ElementsAre(3, -1, 6));
  EXPECT_THAT((*file)->GgufFloats("scores"), ElementsAre(1.0f, -2.5f));
  EXPECT_THAT((*file)->GgufStrings("tokens"), ElementsAre("a", "", "\xff\xfe"));
  EXPECT_THAT((*file)->GgufStrings("types"), ElementsAre());
  EXPECT_THAT((*file)->GgufInts("absent"), ElementsAre());
  EXPECT_THAT((*file)->metadata_json(), HasSubstr("\"negative\":-7"));
  EXPECT_THAT((*file)->metadata_json(), HasSubstr("\"flag\":true"));
  EXPECT_THAT((*file)->metadata_json(), HasSubstr("\"eps\":0.25"));
  EXPECT_TRUE(absl::IsNotFound((*file)->Tensor("nope").status()));
}

TEST(Gguf, ReadsVersion2AndAnotherAlignment) {
  GgufWriter writer = SmallWriter();
  writer.version = 2;
  writer.alignment = 64;
  writer.SetUint32("general.alignment", 64);
  const std::vector<uint8_t> bytes = writer.Finish();
  const auto file = OpenGgufMemory({bytes});
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->Tensor("norm.weight")->ptr<float>()[3], 4.0f);
}

TEST(Gguf, KnowsTheBytesOfEveryTensorType) {
  const struct {
    uint32_t id;
    DType dtype;
  } types[] = {{0, DType::kF32},   {1, DType::kF16},   {2, DType::kQ4_0},  {3, DType::kQ4_1},
               {6, DType::kQ5_0},  {7, DType::kQ5_1},  {8, DType::kQ8_0},  {12, DType::kQ4_K},
               {13, DType::kQ5_K}, {14, DType::kQ6_K}, {30, DType::kBF16}, {39, DType::kMXFP4}};
  for (const auto& type : types) {
    GgufWriter writer;
    const auto bytes = static_cast<size_t>(2 * kernels::RowBytes(type.dtype, 512));
    writer.AddTensor("t", type.id, {2, 512}, Pattern(bytes));
    const auto header = ParseGguf(writer.Finish());
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(header->tensors[0].dtype, type.dtype);
    EXPECT_EQ(header->tensors[0].bytes, bytes);
    // One byte less in the file is one too few.
    std::vector<uint8_t> cut = writer.Finish();
    cut.pop_back();
    EXPECT_THAT(ParseError(cut), HasSubstr("truncated"));
  }
}

TEST(Gguf, NamesATensorTypeThatItDoesNotRead) {
  GgufWriter writer;
  writer.AddTensor("blk.0.ffn_up.weight", 10, {1, 256}, Pattern(84));
  const auto header = ParseGguf(writer.Finish());
  EXPECT_TRUE(absl::IsUnimplemented(header.status()));
  EXPECT_THAT(std::string(header.status().message()), HasSubstr("blk.0.ffn_up.weight"));
  EXPECT_THAT(std::string(header.status().message()), HasSubstr("Q2_K"));
  EXPECT_THAT(std::string(header.status().message()), HasSubstr("MXFP4"));
}

TEST(Gguf, RefusesBigEndianUnknownVersionsAndOtherFiles) {
  GgufWriter writer = SmallWriter();
  writer.version = 0x03000000;
  EXPECT_THAT(ParseError(writer.Finish()), HasSubstr("big-endian"));
  writer.version = 1;
  EXPECT_THAT(ParseError(writer.Finish()), HasSubstr("version 1"));
  writer.version = 3;
  writer.magic = 0x67676d6c;
  EXPECT_THAT(ParseError(writer.Finish()), HasSubstr("not a GGUF file"));
}

TEST(Gguf, RefusesTensorsOutsideTheFile) {
  GgufWriter writer;
  writer.AddFloats("a", {4}, {1, 2, 3, 4});
  writer.ForgeOffset(int64_t{1} << 40);
  EXPECT_THAT(ParseError(writer.Finish()), HasSubstr("outside the file"));
  GgufWriter beyond;
  beyond.AddFloats("a", {4}, {1, 2, 3, 4});
  beyond.ForgeOffset(32);
  EXPECT_THAT(ParseError(beyond.Finish()), HasSubstr("truncated"));
  GgufWriter unaligned;
  unaligned.AddFloats("a", {4}, {1, 2, 3, 4});
  unaligned.AddFloats("b", {4}, {1, 2, 3, 4});
  unaligned.ForgeOffset(4);
  EXPECT_THAT(ParseError(unaligned.Finish()), HasSubstr("multiple"));
}

TEST(Gguf, RefusesOverlapAndDuplicates) {
  GgufWriter overlap;
  overlap.AddFloats("a", {16}, std::vector<float>(16));
  overlap.AddFloats("b", {4}, {1, 2, 3, 4});
  overlap.ForgeOffset(32);
  EXPECT_THAT(ParseError(overlap.Finish()), HasSubstr("overlap"));
  GgufWriter names;
  names.AddFloats("a", {1}, {1});
  names.AddFloats("a", {1}, {1});
  EXPECT_THAT(ParseError(names.Finish()), HasSubstr("twice"));
  GgufWriter keys;
  keys.SetUint32("k", 1);
  keys.SetUint32("k", 2);
  EXPECT_THAT(ParseError(keys.Finish()), HasSubstr("twice"));
}

TEST(Gguf, RefusesDimensionsWhoseProductWraps) {
  GgufWriter writer;
  // 2^32 * 2^32 elements would wrap to 0 in 64 bits.
  writer.AddTensor("wrap", 0, {int64_t{1} << 32, int64_t{1} << 32}, Pattern(16));
  EXPECT_THAT(ParseError(writer.Finish()), HasSubstr("larger than the file"));
  GgufWriter negative;
  negative.AddTensor("negative", 0, {-4, 4}, Pattern(16));
  EXPECT_THAT(ParseError(negative.Finish()), HasSubstr("larger than the file"));
  GgufWriter zero;
  zero.AddTensor("zero", 0, {0}, {});
  EXPECT_THAT(ParseError(zero.Finish()), HasSubstr("zero"));
  GgufWriter partial;
  partial.AddTensor("partial", 8, {1, 33}, Pattern(64));
  EXPECT_THAT(ParseError(partial.Finish()), HasSubstr("whole blocks"));
}

TEST(Gguf, RefusesHostileMetadata) {
  ByteSink nested;
  nested.Put<uint32_t>(9);
  nested.Put<uint64_t>(1);
  GgufWriter arrays;
  arrays.SetRaw("deep", 9, nested.bytes());
  EXPECT_THAT(ParseError(arrays.Finish()), HasSubstr("array of arrays"));
  ByteSink huge;
  huge.Put<uint32_t>(0);
  huge.Put<uint64_t>(UINT64_MAX);
  GgufWriter count;
  count.SetRaw("huge", 9, huge.bytes());
  EXPECT_THAT(ParseError(count.Finish()), HasSubstr("18446744073709551615"));
  GgufWriter type;
  type.SetRaw("odd", 77, {});
  EXPECT_THAT(ParseError(type.Finish()), HasSubstr("unknown type 77"));
  ByteSink text;
  text.Put<uint64_t>(UINT64_MAX - 4);
  GgufWriter string;
  string.SetRaw("long", 8, text.bytes());
  EXPECT_THAT(ParseError(string.Finish()), HasSubstr("string of"));
  for (const uint32_t alignment : {0u, 4u, 33u, 1u << 30}) {
    GgufWriter aligned;
    aligned.SetUint32("general.alignment", alignment);
    EXPECT_THAT(ParseError(aligned.Finish()), HasSubstr("general.alignment"));
  }
}

TEST(Gguf, SurvivesTruncationAtEveryLength) {
  const std::vector<uint8_t> bytes = SmallWriter().Finish();
  for (size_t length = 0; length < bytes.size(); ++length) {
    // A copy of exactly this length, so that a sanitizer sees a read past the end.
    const std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + static_cast<int64_t>(length));
    const auto file = OpenGgufMemory({cut});
    EXPECT_FALSE(file.ok()) << "length " << length;
    EXPECT_FALSE(file.status().message().empty());
  }
}

// Opens a damaged file and, where that works, reads all that it offers.
void ReadEverything(const std::vector<uint8_t>& bytes) {
  const auto file = OpenGgufMemory({bytes});
  if (!file.ok()) return;
  uint64_t sum = 0;
  for (const std::string& name : (*file)->tensor_names()) {
    const auto view = (*file)->Tensor(name);
    if (!view.ok()) continue;
    const auto* data = view->ptr<uint8_t>();
    for (int64_t i = 0; i < view->num_bytes(); ++i) sum += data[i];
  }
  for (const char* key : {"tokens", "scores", "types"}) {
    sum += (*file)->GgufStrings(key).size() + (*file)->GgufInts(key).size() +
           (*file)->GgufFloats(key).size();
  }
  EXPECT_EQ((*file)->digest().size(), 32u) << sum;
}

TEST(Gguf, SurvivesEveryHeaderByteChanged) {
  const std::vector<uint8_t> bytes = SmallWriter().Finish();
  const size_t header = ParseGguf(bytes)->header_bytes;
  for (size_t i = 0; i < header; ++i) {
    for (const int flip : {0x01, 0x80, 0xff, 0x55}) {
      std::vector<uint8_t> damaged = bytes;
      damaged[i] = static_cast<uint8_t>(damaged[i] ^ flip);
      ReadEverything(damaged);
    }
  }
}

TEST(Gguf, SurvivesRandomDamage) {
  const uint64_t seed = 20260722;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const std::vector<uint8_t> bytes = SmallWriter().Finish();
  for (int round = 0; round < 4000; ++round) {
    std::vector<uint8_t> damaged = bytes;
    for (uint64_t n = 1 + random() % 6; n > 0; --n) {
      const size_t at = random() % damaged.size();
      // Whole length fields at once: single bytes rarely make plausible large numbers.
      const uint64_t value = random() >> (random() % 64);
      std::memcpy(damaged.data() + at, &value,
                  std::min<size_t>(damaged.size() - at, 1 + random() % 8));
    }
    ReadEverything(damaged);
  }
}

TEST(Gguf, JoinsSplitFiles) {
  const TempFolder folder;
  for (uint16_t part = 0; part < 3; ++part) {
    GgufWriter writer;
    if (part == 0) writer.SetString("general.architecture", "llama");
    writer.SetUint16("split.no", part);
    writer.SetUint16("split.count", 3);
    writer.SetInt32("split.tensors.count", 3);
    writer.AddFloats(StrCat("t", part), {2}, {static_cast<float>(part), 7});
    folder.Write(StrCat("m-0000", part + 1, "-of-00003.gguf"), writer.Finish());
  }
  const auto file = WeightsFile::Open(folder.File("m-00001-of-00003.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->tensor_names(), ElementsAre("t0", "t1", "t2"));
  EXPECT_EQ((*file)->Tensor("t2")->ptr<float>()[0], 2.0f);
  const auto second = WeightsFile::Open(folder.File("m-00002-of-00003.gguf"));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("give the first part"));
  std::filesystem::rename(folder.File("m-00001-of-00003.gguf"), folder.File("odd.gguf"));
  const auto odd = WeightsFile::Open(folder.File("odd.gguf"));
  EXPECT_THAT(std::string(odd.status().message()), HasSubstr("must be named"));
}

TEST(Gguf, RefusesPartsThatDoNotBelongTogether) {
  const auto part = [](uint16_t number, uint16_t count, const char* tensor, int32_t tensors) {
    GgufWriter writer;
    writer.SetUint16("split.no", number);
    writer.SetUint16("split.count", count);
    writer.SetInt32("split.tensors.count", tensors);
    writer.AddFloats(tensor, {1}, {1});
    return writer.Finish();
  };
  const auto a = part(0, 2, "a", 2);
  const auto b = part(1, 2, "b", 2);
  EXPECT_TRUE(OpenGgufMemory({a, b}).ok());
  EXPECT_FALSE(OpenGgufMemory({a}).ok());
  EXPECT_FALSE(OpenGgufMemory({b, a}).ok());
  EXPECT_FALSE(OpenGgufMemory({a, part(1, 3, "b", 2)}).ok());
  EXPECT_FALSE(OpenGgufMemory({a, part(1, 2, "a", 2)}).ok());
  EXPECT_FALSE(OpenGgufMemory({part(0, 2, "a", 5), b}).ok());
}

TEST(Gguf, DigestTellsChangedWeightsAndMetadata) {
  const auto digest = [](const GgufWriter& writer) {
    const std::vector<uint8_t> bytes = writer.Finish();
    return (*OpenGgufMemory({bytes}))->digest();
  };
  const std::string base = digest(SmallWriter());
  EXPECT_EQ(base, digest(SmallWriter()));
  GgufWriter metadata = SmallWriter();
  metadata.SetUint32("more", 1);
  EXPECT_NE(base, digest(metadata));
  GgufWriter weights;
  weights.AddFloats("w", {3}, {1, 2, 3});
  GgufWriter changed;
  changed.AddFloats("w", {3}, {1, 2, 4});
  EXPECT_NE(digest(weights), digest(changed));
}

TEST(Gguf, ReleasedTensorsStayReadable) {
  const TempFolder folder;
  GgufWriter writer;
  std::vector<float> values(1 << 20);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  writer.AddFloats("big", {1024, 1024}, values);
  const auto file = WeightsFile::Open(folder.Write("m.gguf", writer.Finish()));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->name(), "m");
  const auto view = *(*file)->Tensor("big");
  (*file)->Release(view);
  EXPECT_TRUE(std::equal(values.begin(), values.end(), view.ptr<float>()));
}

TEST(WeightsFile, RefusesWhatIsNoCheckpoint) {
  const TempFolder folder;
  EXPECT_TRUE(absl::IsNotFound(WeightsFile::Open(folder.File("none")).status()));
  EXPECT_TRUE(absl::IsNotFound(WeightsFile::Open(folder.path()).status()));
  const auto empty = WeightsFile::Open(folder.Write("empty.gguf", ""));
  EXPECT_TRUE(absl::IsInvalidArgument(empty.status()));
  const auto text = WeightsFile::Open(folder.Write("text.gguf", "hello, world"));
  EXPECT_TRUE(absl::IsInvalidArgument(text.status()));
  EXPECT_FALSE(WeightsFile::Open("/dev/null").ok());
}

}  // namespace
}  // namespace longstride::model

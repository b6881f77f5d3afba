#include "model/families/config_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace longstride::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ConfigReader Config(std::string_view json) {
  auto config = ConfigReader::Parse(json, "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return *std::move(config);
}

template <typename T>
std::string Message(const absl::StatusOr<T>& result) {
  EXPECT_FALSE(result.ok());
  return std::string(result.status().message());
}

TEST(ConfigReader, NamesTheKeyThatIsMissingOrOfAnotherType) {
  const ConfigReader config = Config(R"({"a":{"b":"text"},"n":1.5,"z":null})");
  EXPECT_EQ(Message(config.Int("dim", 1, 9)), "config.json key \"dim\" is missing");
  EXPECT_THAT(Message(config.Object("a")->Int("b", 1, 9)), HasSubstr("\"a.b\" must be an integer"));
  EXPECT_THAT(Message(config.Int("n", 1, 9)), HasSubstr("must be an integer"));
  EXPECT_THAT(Message(config.Object("n")), HasSubstr("must be an object"));
  EXPECT_THAT(Message(config.Int("z", 1, 9)), HasSubstr("missing"));
}

TEST(ConfigReader, ChecksRanges) {
  const ConfigReader config = Config(R"({"n":12,"big":1e30,"huge":18446744073709551615,"f":4.0})");
  EXPECT_EQ(*config.Int("n", 1, 12), 12);
  EXPECT_THAT(Message(config.Int("n", 1, 11)), HasSubstr("is 12; 1 to 11 are allowed"));
  EXPECT_FALSE(config.Int("big", 0, INT64_MAX).ok());
  EXPECT_FALSE(config.Int("huge", 0, INT64_MAX).ok());
  EXPECT_EQ(*config.Int("f", 0, 10), 4);
}

TEST(ConfigReader, TellsNullFromAbsent) {
  const ConfigReader config = Config(R"({"window":null})");
  EXPECT_FALSE(config.Has("window"));
  EXPECT_TRUE(config.IsNull("window"));
  EXPECT_FALSE(config.IsNull("other"));
  EXPECT_EQ(*config.IntOr("window", 7, 0, 9), 7);
}

TEST(ConfigReader, ReadsLists) {
  const ConfigReader config =
      Config(R"({"i":[1,2],"one":5,"s":["a"],"x":[1.5,2],"mixed":[1,"a"]})");
  EXPECT_THAT(*config.Ints("i"), ElementsAre(1, 2));
  EXPECT_THAT(*config.Ints("one"), ElementsAre(5));
  EXPECT_THAT(*config.Strings("s"), ElementsAre("a"));
  EXPECT_THAT(*config.Numbers("x"), ElementsAre(1.5, 2.0));
  EXPECT_FALSE(config.Ints("mixed").ok());
  EXPECT_FALSE(config.Strings("mixed").ok());
  EXPECT_FALSE(config.Numbers("mixed").ok());
}

TEST(ConfigReader, RefusesWhatIsNoObject) {
  for (const char* text : {"", "[]", "1", "{", "{\"a\":}", "\"a\""}) {
    EXPECT_FALSE(ConfigReader::Parse(text, "config.json").ok()) << text;
  }
}

}  // namespace
}  // namespace longstride::model

#include "model/families/rope_tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace longstride::model {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<RopeConfig> Read(std::string_view json, std::string_view layer = "full_attention",
                                double theta = 10000.0) {
  auto config = ConfigReader::Parse(json, "config.json");
  EXPECT_TRUE(config.ok());
  return ReadHfRope(*config, layer, theta);
}

RopeTable Table(std::string_view json, int32_t head_dim = 64, int32_t max_positions = 131072) {
  const auto config = Read(json);
  EXPECT_TRUE(config.ok()) << config.status();
  const auto spec = BuildRope(*config, head_dim, false, max_positions);
  EXPECT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->variants.size(), 1u);
  return spec->variants[0];
}

TEST(RopeTables, PlainFrequenciesFallFromOneToTheBase) {
  const RopeTable table = Table(R"({"rope_theta":1000000.0})");
  ASSERT_EQ(table.inv_freq.size(), 32u);
  EXPECT_EQ(table.inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(table.inv_freq[16], 1e-3f);
  EXPECT_EQ(table.scale, 1.0f);
  EXPECT_FALSE(table.interleaved);
}

TEST(RopeTables, LinearDividesEveryFrequency) {
  const RopeTable plain = Table("{}");
  const RopeTable scaled = Table(R"({"rope_scaling":{"type":"linear","factor":8.0}})");
  for (size_t i = 0; i < 32; ++i) EXPECT_FLOAT_EQ(scaled.inv_freq[i], plain.inv_freq[i] / 8.0f);
}

// The published parameters of Llama 3.1: short waves stay, long ones are stretched by 8, and the
// band between changes without a jump.
TEST(RopeTables, Llama3KeepsShortWavesAndStretchesLongOnes) {
  const RopeTable plain = Table(R"({"rope_theta":500000.0})", 128);
  const RopeTable scaled =
      Table(R"({"rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3","factor":8.0,
                "low_freq_factor":1.0,"high_freq_factor":4.0,
                "original_max_position_embeddings":8192}})",
            128);
  int stretched = 0;
  for (size_t i = 0; i < 64; ++i) {
    const double wavelength = 2 * M_PI / plain.inv_freq[i];
    const double ratio = plain.inv_freq[i] / scaled.inv_freq[i];
    if (wavelength < 8192.0 / 4) {
      EXPECT_EQ(ratio, 1.0) << i;
    } else if (wavelength > 8192.0) {
      EXPECT_NEAR(ratio, 8.0, 1e-5) << i;
      ++stretched;
    } else {
      EXPECT_GT(ratio, 1.0);
      EXPECT_LT(ratio, 8.0);
    }
  }
  EXPECT_EQ(stretched, 29);
}

// gpt-oss: factor 32 of base 150000 over 4096 positions, unrounded range.
TEST(RopeTables, YarnInterpolatesLongWavesAndScalesByItsRule) {
  const char* json = R"({"rope_theta":150000,"rope_scaling":{"rope_type":"yarn","factor":32.0,
      "beta_fast":32.0,"beta_slow":1.0,"truncate":false,
      "original_max_position_embeddings":4096}})";
  const RopeTable plain = Table(R"({"rope_theta":150000})");
  const RopeTable scaled = Table(json);
  EXPECT_NEAR(scaled.scale, 0.1 * std::log(32.0) + 1.0, 1e-6);
  EXPECT_EQ(scaled.inv_freq[0], plain.inv_freq[0]);
  EXPECT_FLOAT_EQ(scaled.inv_freq[31], plain.inv_freq[31] / 32.0f);
  // Turns over 4096 positions: 32 at index 8.09, 1 at index 17.40.
  EXPECT_EQ(scaled.inv_freq[8], plain.inv_freq[8]);
  EXPECT_LT(scaled.inv_freq[9], plain.inv_freq[9]);
  EXPECT_GT(scaled.inv_freq[17], plain.inv_freq[17] / 32.0f);
  EXPECT_FLOAT_EQ(scaled.inv_freq[18], plain.inv_freq[18] / 32.0f);
}

TEST(RopeTables, LongRopeHasAShortAndALongTable) {
  const auto config = Read(R"({"max_position_embeddings":131072,
      "original_max_position_embeddings":4096,
      "rope_scaling":{"type":"su","short_factor":[1,2],"long_factor":[4,8]}})");
  ASSERT_TRUE(config.ok()) << config.status();
  const auto spec = BuildRope(*config, 4, false, 131072);
  ASSERT_TRUE(spec.ok()) << spec.status();
  ASSERT_EQ(spec->variants.size(), 2u);
  EXPECT_EQ(spec->variant_lengths, std::vector<int32_t>{4096});
  EXPECT_FLOAT_EQ(spec->variants[0].inv_freq[1], 0.01f / 2);
  EXPECT_FLOAT_EQ(spec->variants[1].inv_freq[1], 0.01f / 8);
  const double factor = std::sqrt(1.0 + std::log(32.0) / std::log(4096.0));
  EXPECT_NEAR(spec->variants[0].scale, factor, 1e-6);
  EXPECT_NEAR(spec->variants[1].scale, factor, 1e-6);
  EXPECT_FALSE(BuildRope(*config, 8, false, 131072).ok());  // too few factors
}

TEST(RopeTables, PartialRotaryUsesTheFirstChannels) {
  const RopeTable table = Table(R"({"partial_rotary_factor":0.75})", 96);
  EXPECT_EQ(table.inv_freq.size(), 36u);
}

TEST(RopeTables, ReadsTheNewSpellingPerLayerType) {
  const char* json = R"({"rope_parameters":{
      "full_attention":{"rope_type":"linear","factor":8.0,"rope_theta":1000000.0},
      "sliding_attention":{"rope_type":"default","rope_theta":10000.0}}})";
  EXPECT_EQ(Read(json)->theta, 1e6);
  EXPECT_EQ(Read(json)->scaling, RopeScaling::kLinear);
  EXPECT_EQ(Read(json, "sliding_attention")->theta, 1e4);
  EXPECT_EQ(Read(json, "sliding_attention")->scaling, RopeScaling::kNone);
  EXPECT_EQ(Read(R"({"rope_parameters":{"rope_type":"default","rope_theta":7.0}})")->theta, 7.0);
  EXPECT_EQ(Read("{}", "full_attention", 500000.0)->theta, 500000.0);
}

TEST(RopeTables, RefusesWhatItDoesNotCompute) {
  EXPECT_THAT(
      std::string(Read(R"({"rope_scaling":{"type":"dynamic","factor":2.0}})").status().message()),
      HasSubstr("dynamic"));
  const auto mrope =
      Read(R"({"rope_scaling":{"type":"default","mrope_section":[16,24,24]}})").status();
  EXPECT_TRUE(absl::IsUnimplemented(mrope));
  EXPECT_THAT(std::string(mrope.message()), HasSubstr("mrope_section"));
  EXPECT_FALSE(Read(R"({"rope_scaling":{"type":"linear"}})").ok());
  for (const char* json : {R"({"rope_theta":0})", R"({"rope_theta":-5})",
                           R"({"rope_scaling":{"type":"linear","factor":0}})",
                           R"({"rope_scaling":{"type":"linear","factor":-2}})",
                           R"({"rope_scaling":{"type":"yarn","factor":4.0}})",
                           R"({"partial_rotary_factor":1.5})", R"({"partial_rotary_factor":0})"}) {
    const auto config = Read(json);
    EXPECT_TRUE(!config.ok() || !BuildRope(*config, 64, false, 4096).ok()) << json;
  }
}

}  // namespace
}  // namespace longstride::model

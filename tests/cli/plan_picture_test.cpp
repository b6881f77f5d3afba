#include "server/cli/plan_picture.h"

#include <random>

#include "gtest/gtest.h"
#include "server/cli/svg_plots.h"
#include "tests/model/decoder/tiny_model.h"
#include "tests/testing/random_seed.h"

namespace longstride::cli {
namespace {

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

model::SparsityPlan Plan(const std::string& text) {
  static const model::TinyModel* tiny = new model::TinyModel({});
  auto plan = model::SparsityPlan::Resolve(*SparsityPolicy::Parse(text), tiny->spec,
                                           kernels::KvDType::kF32);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

TEST(PlanPictureTest, SharesMatchTheDefinition) {
  std::mt19937 random(testing::RandomSeed());
  const auto window = static_cast<int32_t>(1 + random() % 40);
  const model::SparsityPlan plan = Plan(
      StrCat(R"({"default": {"pattern": "window", "sink_tokens": 3, "window": )", window, "}}"));
  // Blocks of 4 positions: no row is left out, so that the shares are exact.
  const std::vector<float> shares = VisibleShares(*plan.patterns[0], 0, 64, 16);
  for (int q = 0; q < 16; ++q) {
    for (int k = 0; k < 16; ++k) {
      int seen = 0, causal = 0;
      for (int i = 4 * q; i < 4 * q + 4; ++i) {
        for (int j = 4 * k; j < 4 * k + 4; ++j) {
          if (j > i) continue;
          ++causal;
          seen += j > i - window || j < 3 ? 1 : 0;
        }
      }
      const float want = causal > 0 ? static_cast<float>(seen) / static_cast<float>(causal) : 0;
      EXPECT_FLOAT_EQ(shares[static_cast<size_t>(16 * q + k)], want)
          << window << " " << q << " " << k;
    }
  }
}

TEST(PlanPictureTest, HeadsThatReadAlikeShareAPanel) {
  const model::SparsityPlan plan = Plan(R"({"layers": [
      {"layers": "1", "pattern": "window", "window": 16},
      {"layers": "2", "heads": "0-1", "pattern": "strided", "stride": 8}]})");
  const std::string picture = PlanPicture(plan, 500);
  EXPECT_EQ(Count(picture, "class='frame'"), 3u);
  EXPECT_NE(picture.find("A: dense"), std::string::npos);
  EXPECT_NE(picture.find("B: window(16)"), std::string::npos);
  EXPECT_NE(picture.find("C: strided"), std::string::npos);
  EXPECT_NE(picture.find("10 heads"), std::string::npos);  // of the 16, 4 and 2 differ
  for (int layer = 0; layer < 4; ++layer) {
    EXPECT_NE(picture.find(StrCat("layer ", layer, "<")), std::string::npos);
  }
  EXPECT_EQ(picture.rfind("<svg xmlns='http://www.w3.org/2000/svg'", 0), 0u);
  EXPECT_EQ(Count(picture, "<svg"), Count(picture, "</svg>"));
  EXPECT_EQ(Count(picture, "var("), 0u);
  EXPECT_NE(picture.find(".plot .cell{fill:#1f6feb"), std::string::npos);
}

// A row for each attention that a layer sums.
TEST(PlanPictureTest, PartsOfALayerHaveRowsOfTheirOwn) {
  const model::TinyModel tiny({.nsa_blocks = 2, .nsa_window = 100});
  auto plan =
      model::SparsityPlan::Resolve(*SparsityPolicy::Parse("{}"), tiny.spec, kernels::KvDType::kF32);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::string picture = PlanPicture(*plan, 500);
  EXPECT_EQ(Count(picture, "class='frame'"), 3u);
  EXPECT_EQ(Count(picture, "16 heads"), 3u);
  EXPECT_EQ(Count(picture, ">layer 3."), 3u);
  EXPECT_EQ(Count(picture, "<title>heads 0 to 3</title>"), 12u);
}

TEST(PlanPictureTest, ShortLengthsAreDrawnToo) {
  for (const int64_t length : {1, 2, 47}) {
    EXPECT_NE(PlanPicture(Plan("{}"), length).find("class='cell'"), std::string::npos) << length;
  }
}

TEST(SvgPlotsTest, TextIsEscapedAndPlotsAreWhole) {
  EXPECT_EQ(svg::Escape("<a & 'b' \"c\">"), "&lt;a &amp; &#39;b&#39; &quot;c&quot;&gt;");
  svg::LinePlot line{.x_title = "x<", .y_title = "y", .labels = {"1", "2"}, .log_y = true};
  line.series.push_back({.name = "s", .points = {svg::Point{.y = 0}, svg::Point{0.1, 0.05, 0.2}}});
  svg::DotPlot dots{.x_title = "x", .labels = {"r"}};
  dots.series.push_back({.name = "s", .points = {svg::Point{.y = 0.5}}});
  const svg::HeatMap map{.x_title = "x", .y_title = "y", .rows = {{0.5, std::nullopt}}};
  for (const std::string& plot : {Render(line), Render(dots), Render(map)}) {
    EXPECT_EQ(Count(plot, "<svg"), 1u);
    EXPECT_EQ(Count(plot, "</svg>"), 1u);
    EXPECT_EQ(Count(plot, "nan"), 0u) << plot;
    EXPECT_EQ(Count(plot, "inf"), 0u) << plot;
  }
  EXPECT_NE(Render(line).find("x&lt;"), std::string::npos);
  EXPECT_EQ(Count(Render(line), "<circle"), 3u);  // two points and the legend
  EXPECT_EQ(Count(Render(map), "class='none'"), 1u);
}

}  // namespace
}  // namespace longstride::cli

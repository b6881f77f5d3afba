#include "model/fidelity/plan_search.h"

#include <algorithm>
#include <map>

#include "gmock/gmock.h"
#include "tests/model/fidelity/tiny_lanes.h"

namespace longstride::model::fidelity {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(TargetTest, ReadsConditions) {
  const auto target = Target::Parse("kl<=0.02, top1>=0.98,ppl<=1.01");
  ASSERT_TRUE(target.ok()) << target.status();
  DivergenceSummary s;
  s.kl.value = 0.02;
  s.same_top.value = 0.98;
  s.perplexity_ratio.value = 1.01;
  EXPECT_TRUE(target->Holds(s));
  DivergenceSummary worse = s;
  worse.kl.value = 0.021;
  EXPECT_FALSE(target->Holds(worse));
  worse = s;
  worse.same_top.value = 0.97;
  EXPECT_FALSE(target->Holds(worse));
  worse = s;
  worse.perplexity_ratio.value = 1.02;
  EXPECT_FALSE(target->Holds(worse));
  EXPECT_TRUE(Target::Parse("kl<=1").value().Holds(s));
}

TEST(TargetTest, RefusesWhatItCannotRead) {
  for (const char* text : {"", "kl", "kl=0.1", "kl<0.1", "kl>=0.1", "top1<=0.9", "top1>=1.5",
                           "kl<=x", "kl<=-1", "kl<=0.1,kl<=0.2", "speed>=2", "kl<=0.1,"}) {
    const auto target = Target::Parse(text);
    EXPECT_EQ(target.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(target.status().message()), HasSubstr("kl<=NATS")) << text;
  }
}

using PlanSearchTest = TinyLanes;

TEST_F(PlanSearchTest, RungsAreThePlansTheyDescribe) {
  const auto rung = MakeRung(*model_, {1}, 64, 2, 256);
  ASSERT_TRUE(rung.ok()) << rung.status();
  EXPECT_EQ(rung->description, "window 64 + 4 sinks on 1 layer, 1 full");
  EXPECT_EQ(Plan(rung->plan_text).digest, rung->plan.digest);
  EXPECT_NEAR(rung->density, (1.0 + 68.0 / 256) / 2, 1e-9);
  const auto choosing = MakeChoosingRung(
      *model_, {0, 1}, "quarter", R"("pattern": "block_topk", "fraction": 0.25)", "a quarter", 256);
  ASSERT_TRUE(choosing.ok()) << choosing.status();
  EXPECT_EQ(choosing->description, "a quarter on 2 layers");
  EXPECT_EQ(Plan(choosing->plan_text).digest, choosing->plan.digest);
}

TEST_F(PlanSearchTest, FindsTheCheapestPlanThatHolds) {
  std::vector<TextWindow> windows;
  for (int i = 0; i < 4; ++i) windows.push_back({.tokens = Tokens(256)});
  const auto baseline = MakeLane(Native());
  SearchOptions options{
      .lane = {.kv_dtype = model_->options().kv_dtype, .max_tokens = 256, .step_tokens = 256},
      .window_tokens = 256};
  options.lane.step_tokens = 128;
  EXPECT_EQ(FullLayers(baseline->plan(), 256), (std::vector<int32_t>{0, 1}));
  const auto wide = Lane::Create(model_.get(), Native(), options.lane);
  ASSERT_TRUE(wide.ok());
  const auto search = [&](const std::string& target) {
    return SearchPlans(model_.get(), Target::Parse(target).value(), wide->get(),
                       std::span(windows).first(2), std::span(windows).last(2), options);
  };
  // Anything holds: the cheapest rung of all, which is also checked.
  auto result = search("kl<=1000");
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->chosen, 0);
  EXPECT_TRUE(result->rungs[0].holds_checked);
  EXPECT_TRUE(std::is_sorted(
      result->rungs.begin(), result->rungs.end(),
      [](const RungResult& a, const RungResult& b) { return a.keys_share < b.keys_share; }));
  for (const RungResult& r : result->rungs) {
    // What a window reads is known beforehand: all keys up to its width, then that many.
    if (r.rung.window == 0 || r.rung.windowed_layers.size() < 2) continue;
    double read = 0;
    for (int i = 1; i <= 256; ++i) read += i <= r.rung.window ? i : std::min(i, r.rung.window + 4);
    EXPECT_NEAR(r.keys_share, read / (256 * 257 / 2), 0.02) << r.rung.description;
  }
  // Nothing holds; the wide window on one layer was tried as well.
  result = search("kl<=0,top1>=1");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->chosen, -1);
  // Windows 64 and 128, on two layers and on one, and six that choose.
  EXPECT_EQ(result->rungs.size(), 10u);
  for (const RungResult& rung : result->rungs) {
    if (rung.rung.window > 0) {
      EXPECT_GT(rung.searched.kl.value, 0);
    }
  }
  // Text that counts as generated: quest in the place of xattention, reading less the less it may.
  options.numerics = NumericsClass::kGenerated;
  result = search("kl<=0,top1>=1");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->rungs.size(), 11u);
  std::map<std::string, const RungResult*> quest;
  for (const RungResult& rung : result->rungs) {
    EXPECT_THAT(rung.rung.description, Not(HasSubstr("xattention")));
    if (rung.rung.description.starts_with("quest")) quest[rung.rung.description] = &rung;
  }
  ASSERT_EQ(quest.size(), 4u);
  const RungResult& half = *quest["quest 1/2 on 2 layers"];
  EXPECT_NEAR(half.rung.density, 0.5, 1e-9);
  // Two pages, the first and the own one, of up to four.
  EXPECT_NEAR(half.keys_share, (4 * 65 * 32 + 192 * 64) / (256.0 * 257 / 2), 1e-9);
  EXPECT_GT(half.searched.kl.value, 0);
  options.numerics = NumericsClass::kPrompt;
  result = search("kl<=0,top1>=1");
  ASSERT_TRUE(result.ok()) << result.status();
  // A target between two rungs chooses one that meets it on both halves, if any does.
  std::vector<double> kl;
  for (const RungResult& rung : result->rungs) kl.push_back(rung.searched.kl.value);
  std::sort(kl.begin(), kl.end());
  const double between = (kl[1] + kl[2]) / 2;
  result = search(StrCat("kl<=", between));
  ASSERT_TRUE(result.ok()) << result.status();
  if (result->chosen >= 0) {
    const RungResult& chosen = result->rungs[static_cast<size_t>(result->chosen)];
    EXPECT_LE(chosen.searched.kl.value, between);
    EXPECT_LE(chosen.checked->kl.value, between);
    for (int i = 0; i < result->chosen; ++i) {
      EXPECT_FALSE(result->rungs[static_cast<size_t>(i)].holds_checked);
    }
  }
}

}  // namespace
}  // namespace longstride::model::fidelity

#include "model/fidelity/lane.h"

#include "model/fidelity/comparison.h"
#include "model/fidelity/speed.h"
#include "tests/model/fidelity/tiny_lanes.h"

namespace longstride::model::fidelity {
namespace {

std::vector<float> Row(const Lane& lane, int32_t row) {
  return {lane.Logits(row), lane.Logits(row) + testing::kTinyVocab};
}

using LaneTest = TinyLanes;

TEST_F(LaneTest, LanesShareWeightsAndDoNotDisturbEachOther) {
  const auto tokens = Tokens(40);
  const auto first = MakeLane(Native());
  const auto second = MakeLane(Window(8));
  ASSERT_TRUE(first->Append(tokens, 1).ok());
  const std::vector<float> alone = Row(*first, 0);
  ASSERT_TRUE(second->Append(tokens, 1).ok());
  EXPECT_EQ(Row(*first, 0), alone);  // still there after the other lane's step
  EXPECT_NE(Row(*second, 0), alone);
  EXPECT_EQ(first->decoder().weight_bytes(), model_->weight_bytes());
  first->Reset();
  ASSERT_TRUE(first->Append(tokens, 1).ok());
  EXPECT_EQ(Row(*first, 0), alone);
}

TEST_F(LaneTest, CutBackAndContinueGivesTheSameBits) {
  const auto tokens = Tokens(300);
  for (SparsityPlan plan : {Native(), Window(70)}) {
    const auto lane = MakeLane(std::move(plan));
    for (size_t at = 0; at < 256; at += kTinyStep) {
      ASSERT_TRUE(lane->Append(std::span(tokens).subspan(at, kTinyStep), 0).ok());
    }
    const auto tail = std::span(tokens).subspan(256, 30);
    ASSERT_TRUE(lane->Append(tail, 30).ok());
    const std::vector<float> want = Row(*lane, 29);
    lane->CutTo(256);
    ASSERT_TRUE(lane->Append(Tokens(44), 1).ok());
    lane->CutTo(256);
    ASSERT_TRUE(lane->Append(tail, 30).ok());
    EXPECT_EQ(Row(*lane, 29), want);
  }
}

TEST_F(LaneTest, WindowsGivePagesBack) {
  const auto tokens = Tokens(512);
  const auto full = MakeLane(Native());
  const auto windowed = MakeLane(Window(64));
  for (size_t at = 0; at < tokens.size(); at += kTinyStep) {
    for (Lane* lane : {full.get(), windowed.get()}) {
      ASSERT_TRUE(lane->Append(std::span(tokens).subspan(at, kTinyStep), 0).ok());
    }
  }
  EXPECT_EQ(full->kv_bytes(), full->plan().CacheBytes(512 - kTinyStep, kTinyStep));
  EXPECT_EQ(windowed->kv_bytes(), windowed->plan().CacheBytes(512 - kTinyStep, kTinyStep));
  EXPECT_LT(windowed->max_kv_bytes(), full->max_kv_bytes());
}

TEST_F(LaneTest, ComparisonFindsNothingBetweenEqualPlansAndSomethingBetweenOthers) {
  const auto base = MakeLane(Native());
  const auto same = MakeLane(Native());
  const auto cut = MakeLane(Native());
  const auto narrow = MakeLane(Window(4));
  std::vector<Comparison> comparisons = {
      {.lane = same.get()}, {.lane = cut.get(), .cuts = {1, 7, 63}}, {.lane = narrow.get()}};
  const std::vector<TextWindow> windows = {{.tokens = Tokens(200)}, {.tokens = Tokens(200)}};
  int64_t progress = 0;
  ComparisonOptions options{.step_rows = 48};
  options.progress = [&](int64_t tokens) { progress = tokens; };
  ASSERT_TRUE(
      CompareLanes(base.get(), comparisons, windows, testing::kTinyVocab, nullptr, options).ok());
  EXPECT_EQ(progress, 400);
  double narrow_kl = 0;
  for (size_t w = 0; w < windows.size(); ++w) {
    for (const Comparison& c : comparisons) ASSERT_EQ(c.windows[w].size(), 199u);
    for (size_t i = 0; i < 199; ++i) {
      for (const size_t equal : {0, 1}) {
        const PositionDivergence& d = comparisons[equal].windows[w][i];
        EXPECT_EQ(d.position, static_cast<int32_t>(i));
        EXPECT_EQ(d.kl, 0);
        EXPECT_EQ(d.base_nll, d.other_nll);
        EXPECT_TRUE(d.same_top);
      }
      // Within window and sinks the plans are one function.
      if (i < 4) {
        EXPECT_EQ(comparisons[2].windows[w][i].kl, 0);
      }
      narrow_kl += static_cast<double>(comparisons[2].windows[w][i].kl);
    }
  }
  EXPECT_GT(narrow_kl, 0);
}

TEST_F(LaneTest, SpeedIsMeasured) {
  const auto lane = MakeLane(Native());
  const auto sample = MeasureSpeed(Tokens(150), 10, lane.get());
  ASSERT_TRUE(sample.ok()) << sample.status();
  EXPECT_GT(sample->prefill_tokens_per_second, 0);
  EXPECT_GT(sample->decode_tokens_per_second, 0);
  EXPECT_GT(sample->decode_attention_share, 0);
  EXPECT_LT(sample->decode_attention_share, 1);
  EXPECT_EQ(lane->length(), 150);
  EXPECT_EQ(sample->kv_bytes, lane->kv_bytes());
}

}  // namespace
}  // namespace longstride::model::fidelity

#include "model/fidelity/head_calibration.h"

#include "gmock/gmock.h"
#include "model/fidelity/divergence.h"
#include "tests/model/fidelity/tiny_lanes.h"

namespace longstride::model::fidelity {
namespace {

using ::testing::HasSubstr;

// The tiny checkpoint has two layers of four query heads and two KV heads.
class HeadCalibrationTest : public TinyLanes {
 protected:
  HeadCalibrationOptions Streaming(int64_t window) const {
    HeadCalibrationOptions options;
    options.streaming.pattern = "window";
    options.streaming.params = {{"window", window}, {"sink_tokens", int64_t{2}}};
    options.lane = {
        .kv_dtype = model_->options().kv_dtype, .max_tokens = 512, .step_tokens = kTinyStep};
    return options;
  }

  // Logits of all rows but the last, of a plan written by hand.
  std::vector<std::vector<float>> Logits(SparsityPlan plan, const std::vector<int32_t>& tokens) {
    auto lane = MakeLane(std::move(plan));
    std::vector<std::vector<float>> rows;
    for (size_t at = 0; at + 1 < tokens.size(); ++at) {
      EXPECT_TRUE(lane->Append({&tokens[at], 1}, 1).ok());
      rows.emplace_back(lane->Logits(0), lane->Logits(0) + model_->spec().vocab_size);
    }
    return rows;
  }
};

TEST_F(HeadCalibrationTest, ScoresAreWhatOneStreamingHeadChanges) {
  const std::vector<CalibrationText> texts = {{.tokens = Tokens(150), .scored = 9},
                                              {.tokens = Tokens(200), .scored = 40}};
  int64_t last = 0, all = 0;
  HeadCalibrationOptions options = Streaming(6);
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(done, last + 1);
    last = done;
    all = total;
  };
  const auto scores = ScoreHeads(model_.get(), texts, options);
  ASSERT_TRUE(scores.ok()) << scores.status();
  EXPECT_EQ(last, 2 * 5);
  EXPECT_EQ(all, last);
  ASSERT_EQ(scores->size(), 2u);
  RowComparer comparer(model_->spec().vocab_size);
  for (int l = 0; l < 2; ++l) {
    ASSERT_EQ((*scores)[static_cast<size_t>(l)].size(), 2u);
    for (int h = 0; h < 2; ++h) {
      const std::string plan =
          StrCat(R"({"layers": [{"layers": ")", l, R"(", "heads": ")", 2 * h, "-", 2 * h + 1,
                 R"(", "pattern": "window", "window": 6, "sink_tokens": 2}]})");
      double want = 0;
      for (const CalibrationText& text : texts) {
        const auto base = Logits(Native(), text.tokens);
        const auto other = Logits(Plan(plan), text.tokens);
        double sum = 0;
        for (size_t r = base.size() - static_cast<size_t>(text.scored); r < base.size(); ++r) {
          sum += comparer.Kl(base[r].data(), comparer.Summarize(base[r].data()), other[r].data(),
                             comparer.Summarize(other[r].data()));
        }
        want += sum / text.scored / static_cast<double>(texts.size());
      }
      const double got = (*scores)[static_cast<size_t>(l)][static_cast<size_t>(h)];
      EXPECT_GT(got, 0);
      EXPECT_NEAR(got, want, 1e-3 * want + 1e-7) << "layer " << l << " head " << h;
    }
  }
}

TEST_F(HeadCalibrationTest, AWindowOfEverythingChangesNothing) {
  const std::vector<CalibrationText> texts = {{.tokens = Tokens(100), .scored = 20}};
  const auto scores = ScoreHeads(model_.get(), texts, Streaming(100));
  ASSERT_TRUE(scores.ok()) << scores.status();
  EXPECT_EQ(*scores, (std::vector<std::vector<double>>{{0, 0}, {0, 0}}));
}

TEST_F(HeadCalibrationTest, BadStreamingPatternsAreNamed) {
  const std::vector<CalibrationText> texts = {{.tokens = Tokens(100), .scored = 20}};
  const auto scores = ScoreHeads(model_.get(), texts, Streaming(0));
  EXPECT_THAT(std::string(scores.status().message()), HasSubstr("'window' is 0"));
}

TEST_F(HeadCalibrationTest, TextsAreRetrievalPromptsAndWindows) {
  std::string words;
  for (int i = 0; i < 2000; ++i) StrAppend(&words, "word", i % 17, " ");
  const auto texts = MakeCalibrationTexts(model_->tokenizer(), {{.name = "w", .text = words}},
                                          {.tokens = 1900, .pairs = 5, .seed = 3});
  ASSERT_TRUE(texts.ok()) << texts.status();
  ASSERT_EQ(texts->size(), 10u);
  for (size_t n = 0; n < texts->size(); ++n) {
    const CalibrationText& text = (*texts)[n];
    EXPECT_LE(text.tokens.size(), 1900u);
    EXPECT_GT(text.tokens.size(), n % 2 == 0 ? 1200u : 1899u);
    EXPECT_GE(text.scored, 1);
    EXPECT_LE(text.scored, 64);
  }
  const auto again = MakeCalibrationTexts(model_->tokenizer(), {{.name = "w", .text = words}},
                                          {.tokens = 1900, .pairs = 5, .seed = 3});
  for (size_t n = 0; n < texts->size(); ++n) EXPECT_EQ((*texts)[n].tokens, (*again)[n].tokens);
}

}  // namespace
}  // namespace longstride::model::fidelity

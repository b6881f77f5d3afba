#include "server/engine/output_processor.h"

#include <random>

#include "gtest/gtest.h"
#include "tests/engine/fake_executor.h"

namespace longstride::engine {
namespace {

// Spells each token as given.
class Spelling : public TextStream {
 public:
  explicit Spelling(const std::vector<std::string>* words) : words_(words) {}
  std::string Push(int32_t token) override {
    pending_ += (*words_)[static_cast<size_t>(token)];
    return FakeText::TakeCharacters(&pending_, false);
  }
  std::string Flush() override { return FakeText::TakeCharacters(&pending_, true); }

 private:
  const std::vector<std::string>* words_;
  std::string pending_;
};

struct Outcome {
  std::string text;
  std::vector<TokenOutput> tokens;
  std::optional<OutputProcessor::Ending> ending;
  std::vector<std::string> deltas;
};

Outcome Feed(const GenerationRequest& request, const std::vector<std::string>& words) {
  const OutputRules rules(request);
  OutputProcessor processor(&rules, std::make_unique<Spelling>(&words));
  Outcome outcome;
  for (size_t i = 0; i < words.size() && !outcome.ending; ++i) {
    model::SampledToken token;
    token.token = static_cast<int32_t>(i);
    token.logprob = -static_cast<float>(i);
    outcome.ending = processor.Push(token);
    std::string text;
    processor.Take(&text, &outcome.tokens);
    outcome.deltas.push_back(text);
    outcome.text += text;
  }
  return outcome;
}

GenerationRequest Stops(std::vector<std::string> stops, int32_t max_tokens = 100) {
  GenerationRequest request;
  request.stop = std::move(stops);
  request.max_tokens = max_tokens;
  return request;
}

TEST(OutputProcessor, HoldsBackWhatMayBecomeAStop) {
  const Outcome o = Feed(Stops({"<end>"}), {"a<", "en", "x", "y<e", "nd>", "z"});
  EXPECT_EQ(o.deltas, (std::vector<std::string>{"", "", "a<enx", "", "y"}));
  ASSERT_TRUE(o.ending);
  EXPECT_EQ(o.ending->stop_string, "<end>");
  EXPECT_EQ(o.ending->reason, FinishReason::kStop);
  EXPECT_EQ(o.text, "a<enxy");
}

TEST(OutputProcessor, AlignsTokensWithText) {
  const Outcome o = Feed(Stops({"<end>"}), {"a", "b<", "en", "d>"});
  EXPECT_EQ(o.text, "ab");
  ASSERT_EQ(o.tokens.size(), 2u);
  EXPECT_EQ(o.tokens[1].text, "b");
  EXPECT_EQ(o.tokens[1].logprob, -1);
}

TEST(OutputProcessor, CanIncludeTheStop) {
  GenerationRequest request = Stops({"<end>"});
  request.include_stop_in_output = true;
  const Outcome o = Feed(request, {"a<e", "nd>b"});
  EXPECT_EQ(o.text, "a<end>");
}

TEST(OutputProcessor, StopTokensHaveNoText) {
  GenerationRequest request = Stops({});
  request.stop_token_ids = {2};
  Outcome o = Feed(request, {"a", "b", "c", "d"});
  EXPECT_EQ(o.text, "ab");
  EXPECT_EQ(o.tokens.size(), 2u);
  EXPECT_EQ(o.ending->stop_token, 2);
  request.include_stop_in_output = true;
  o = Feed(request, {"a", "b", "c", "d"});
  EXPECT_EQ(o.text, "abc");
  EXPECT_EQ(o.tokens.size(), 3u);
}

TEST(OutputProcessor, EndTokensMayBeIgnored) {
  GenerationRequest request = Stops({}, 4);
  request.eos_token_ids = {1};
  EXPECT_EQ(Feed(request, {"a", "b", "c", "d"}).text, "a");
  request.ignore_eos = true;
  const Outcome o = Feed(request, {"a", "b", "c", "d"});
  EXPECT_EQ(o.text, "abcd");
  EXPECT_EQ(o.ending->reason, FinishReason::kLength);
}

TEST(OutputProcessor, NothingEndsBeforeMinTokens) {
  GenerationRequest request = Stops({"ab", "cd"});
  request.min_tokens = 2;
  const Outcome o = Feed(request, {"ab", "c", "d", "ab", "e"});
  // "ab" came too early, and so did the "c" of "cd".
  EXPECT_EQ(o.text, "abcd");
  EXPECT_EQ(o.ending->stop_string, "ab");
}

TEST(OutputProcessor, ReplacesAnUnfinishedCharacterAtTheEnd) {
  const Outcome o = Feed(Stops({}, 2), {"a", "\xe2\x82"});
  EXPECT_EQ(o.text, "a\xef\xbf\xbd");
  EXPECT_EQ(o.ending->reason, FinishReason::kLength);
}

TEST(OutputProcessor, NeverEmitsHalfACharacter) {
  const Outcome o = Feed(Stops({}, 6), {"\xe2", "\x82", "\xac", "x\xc3", "\xa9", "y"});
  EXPECT_EQ(o.deltas, (std::vector<std::string>{"", "", "€", "x", "é", "y"}));
}

TEST(OutputProcessor, AbandonReleasesHeldText) {
  const GenerationRequest request = Stops({"<end>"});
  const OutputRules rules(request);
  const std::vector<std::string> words = {"a<en"};
  OutputProcessor processor(&rules, std::make_unique<Spelling>(&words));
  EXPECT_FALSE(processor.Push({}));
  std::string text;
  std::vector<TokenOutput> tokens;
  processor.Take(&text, &tokens);
  EXPECT_EQ(text, "");
  processor.Abandon();
  processor.Take(&text, &tokens);
  EXPECT_EQ(text, "a<en");
}

// A fixed text cut into tokens at every set of places gives the same output.
TEST(OutputProcessor, OutputDoesNotDependOnTheTokens) {
  const std::string text = "xaé<stop>bc";
  for (const bool include : {false, true}) {
    GenerationRequest request = Stops({"<stop>", "é<s"});
    request.include_stop_in_output = include;
    for (unsigned cuts = 0; cuts < 1u << (text.size() - 1); ++cuts) {
      std::vector<std::string> words = {""};
      for (size_t i = 0; i < text.size(); ++i) {
        words.back() += text[i];
        if (i + 1 < text.size() && (cuts >> i & 1) != 0) words.emplace_back();
      }
      const Outcome o = Feed(request, words);
      ASSERT_EQ(o.text, include ? "xaé<s" : "xa");
      ASSERT_EQ(o.ending->stop_string, "é<s");
      std::string joined;
      for (const TokenOutput& token : o.tokens) joined += token.text;
      ASSERT_EQ(joined, o.text);
    }
  }
}

}  // namespace
}  // namespace longstride::engine

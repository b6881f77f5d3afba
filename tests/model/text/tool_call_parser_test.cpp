#include "model/text/tool_call_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "model/text/json_scanner.h"
#include "tests/model/text/text_samples.h"

namespace longstride::model {
namespace {

struct Call {
  std::string name, arguments, id;
  bool operator==(const Call&) const = default;
};
struct Parsed {
  std::string content, reasoning;
  std::vector<Call> calls;
  bool operator==(const Parsed&) const = default;
};
void PrintTo(const Parsed& p, std::ostream* os) {
  *os << "content " << testing::PrintToString(p.content) << " reasoning "
      << testing::PrintToString(p.reasoning);
  for (const Call& c : p.calls) *os << " call " << c.name << " " << c.arguments << " " << c.id;
}

void Collect(std::vector<OutputPart> parts, Parsed* out) {
  for (OutputPart& part : parts) {
    switch (part.kind) {
      case OutputPart::kContent: out->content += part.text; break;
      case OutputPart::kReasoning: out->reasoning += part.text; break;
      case OutputPart::kToolCall:
        ASSERT_EQ(part.tool_index, static_cast<int>(out->calls.size()));
        out->calls.push_back({part.tool_name, "", part.tool_id});
        break;
      case OutputPart::kToolArguments:
        ASSERT_EQ(part.tool_index, static_cast<int>(out->calls.size()) - 1);
        out->calls.back().arguments += part.text;
        break;
    }
  }
}

Parsed ParseIn(const OutputParserOptions& options, const std::vector<std::string>& pieces) {
  OutputParser parser(options);
  Parsed out;
  for (const std::string& piece : pieces) Collect(parser.Push(piece), &out);
  Collect(parser.Finish(), &out);
  EXPECT_EQ(parser.num_tool_calls(), static_cast<int>(out.calls.size()));
  return out;
}

// Parses `text` whole, byte by byte, and cut at random places; all must agree.
Parsed ParseEachWay(const OutputParserOptions& options, const std::string& text) {
  const Parsed whole = ParseIn(options, {text});
  std::vector<std::string> bytes;
  for (const char c : text) bytes.emplace_back(1, c);
  EXPECT_EQ(ParseIn(options, bytes), whole) << "byte by byte: " << text;
  const uint32_t seed = std::random_device{}();
  std::mt19937 rng(seed);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::string> pieces;
    for (size_t pos = 0; pos < text.size();) {
      const size_t size = 1 + rng() % 12;
      pieces.push_back(text.substr(pos, size));
      pos += size;
    }
    EXPECT_EQ(ParseIn(options, pieces), whole) << "seed " << seed << ": " << text;
  }
  return whole;
}

OutputParserOptions Options(OutputFormat format, bool think = false) {
  OutputParserOptions options;
  options.syntax.format = format;
  if (format == OutputFormat::kCohere) {
    options.syntax = DetectOutputSyntax("<|START_ACTION|>");
  } else if (think) {
    options.syntax.think_open = "<think>";
    options.syntax.think_close = "</think>";
  }
  return options;
}

TEST(OutputParser, LeavesPlainTextAlone) {
  const std::string text = "Hello, {world}! [1] <b> <tool \n\n x < y \n";
  for (const OutputFormat format : {OutputFormat::kPlain, OutputFormat::kHermes, OutputFormat::kLlama,
                                    OutputFormat::kMistral, OutputFormat::kHarmony, OutputFormat::kCohere}) {
    EXPECT_EQ(ParseEachWay(Options(format), text), (Parsed{text, "", {}}));
  }
}

// Read again with every piece, these would take minutes.
TEST(OutputParser, WaitsForCallsInLinearTime) {
  constexpr size_t kSize = 300'000;
  const std::string blanks(kSize, ' '), parentheses(kSize, ')');
  const std::pair<OutputFormat, std::string> cases[] = {
      {OutputFormat::kLlama, blanks},
      {OutputFormat::kLlama, "[f(a='" + parentheses},
      {OutputFormat::kMistral, "[TOOL_CALLS]f[ARGS]" + blanks},
      {OutputFormat::kHarmony, "<|channel|>commentary to=functions.f<|message|>" + blanks},
  };
  const auto start = std::chrono::steady_clock::now();
  for (const auto& [format, text] : cases) {
    OutputParser parser(Options(format));
    Parsed out;
    for (const char c : text) Collect(parser.Push(std::string_view(&c, 1)), &out);
    Collect(parser.Finish(), &out);
    EXPECT_TRUE(out.calls.empty());
    EXPECT_GE(out.content.size(), kSize);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(OutputParser, TakesBlanksWithoutEndForText) {
  const std::string some(1024, ' '), many(1025, ' ');
  const std::pair<OutputFormat, std::array<std::string, 2>> cases[] = {
      {OutputFormat::kLlama, {"", "{\"name\": \"f\", \"parameters\": {}}"}},
      {OutputFormat::kMistral, {"[TOOL_CALLS]f[ARGS]", "{}"}},
      {OutputFormat::kHarmony, {"<|channel|>commentary to=functions.f<|message|>", "{}"}},
  };
  for (const auto& [format, text] : cases) {
    EXPECT_EQ(ParseEachWay(Options(format), text[0] + some + text[1]).calls.size(), 1u);
    EXPECT_EQ(ParseEachWay(Options(format), text[0] + many + text[1]),
              (Parsed{text[0] + many + text[1], "", {}}));
  }
}

TEST(OutputParser, ReadsHermesCalls) {
  const Parsed got = ParseEachWay(
      Options(OutputFormat::kHermes, true),
      "<think>\nI need a tool.\n</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"get_weather\", "
      "\"arguments\": {\"place\": \"Z\\u00fcrich }\", \"n\": [1, {\"a\": -2.5e3}]}}\n</tool_call>\n"
      "<tool_call>\n{\"arguments\": {}, \"name\": \"now\"}\n</tool_call>");
  EXPECT_EQ(got.reasoning, "I need a tool.");
  EXPECT_EQ(got.content, "Let me see.");
  EXPECT_EQ(got.calls, (std::vector<Call>{
      {"get_weather", "{\"place\": \"Z\\u00fcrich }\", \"n\": [1, {\"a\": -2.5e3}]}", ""}, {"now", "{}", ""}}));
}

TEST(OutputParser, TakesArgumentsAsTextAndNone) {
  const Parsed got = ParseEachWay(Options(OutputFormat::kHermes),
                                  "<tool_call>{\"name\":\"a\",\"arguments\":\"{\\\"x\\\": 1}\"}</tool_call>"
                                  "<tool_call>{\"name\":\"b\"}</tool_call>"
                                  "<tool_call>{\"name\":\"c\",\"arguments\":null}</tool_call>done");
  EXPECT_EQ(got.calls, (std::vector<Call>{{"a", "{\"x\": 1}", ""}, {"b", "{}", ""}, {"c", "{}", ""}}));
  EXPECT_EQ(got.content, "done");
}

TEST(OutputParser, StartsInReasoningWhereThePromptDoes) {
  OutputParserOptions options = Options(OutputFormat::kHermes, true);
  EXPECT_TRUE(EndsInReasoning(options.syntax, "<|im_start|>assistant\n<think>\n"));
  EXPECT_FALSE(EndsInReasoning(options.syntax, "<|im_start|>assistant\n<think>\n\n</think>\n\n"));
  EXPECT_FALSE(EndsInReasoning(options.syntax, "<|im_start|>assistant\n"));
  options.starts_in_reasoning = true;
  EXPECT_EQ(ParseEachWay(options, "\nhm </thin k> hm\n</think>\n\nyes"),
            (Parsed{"yes", "hm </thin k> hm", {}}));
  EXPECT_EQ(ParseEachWay(options, "cut short"), (Parsed{"", "cut short", {}}));
}

TEST(OutputParser, LeavesTagsInContentWhereTold) {
  OutputParserOptions options = Options(OutputFormat::kHermes, true);
  options.parse_reasoning = options.parse_tool_calls = false;
  const std::string text = "<think>a</think>\n<tool_call>{\"name\":\"b\"}</tool_call>";
  EXPECT_EQ(ParseEachWay(options, text), (Parsed{text, "", {}}));
}

TEST(OutputParser, GivesBrokenCallsBackAsContent) {
  for (const std::string text :
       {"<tool_call>\nnot json\n</tool_call>", "<tool_call>{\"name\": 5}</tool_call>", "<tool_call>",
        "<tool_call>{\"arguments\": {\"a\": 1}}</tool_call>", "<tool_call>{\"name\": \"a\", \"x\": tru}",
        "<tool_call>{\"name\": \"a\", \"arguments\": [1]}</tool_call>", "x <tool_call>{\"name\"",
        "<tool_call>{\"name\": \"a\", \"arguments\": \"no object\"}</tool_call>"}) {
    EXPECT_EQ(ParseEachWay(Options(OutputFormat::kHermes), text), (Parsed{text, "", {}}));
  }
}

TEST(OutputParser, KeepsWhatFollowsBrokenArguments) {
  const Parsed got = ParseEachWay(Options(OutputFormat::kHermes),
                                  "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": oops}} tail");
  EXPECT_EQ(got.calls, (std::vector<Call>{{"a", "{\"x\": ", ""}}));
  EXPECT_EQ(got.content, "oops}} tail");
}

TEST(OutputParser, GivesUnfinishedArgumentsWhenTheTextEnds) {
  const Parsed got =
      ParseEachWay(Options(OutputFormat::kHermes), "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"long");
  EXPECT_EQ(got.calls, (std::vector<Call>{{"a", "{\"x\": \"long", ""}}));
  EXPECT_EQ(got.content, "");
}

TEST(OutputParser, ReadsLlamaObjects) {
  OutputParserOptions options = Options(OutputFormat::kLlama);
  options.tool_names = {"get_weather", "now"};
  EXPECT_EQ(ParseEachWay(options, " {\"name\": \"get_weather\", \"parameters\": {\"place\": \"Bern\"}}").calls,
            (std::vector<Call>{{"get_weather", "{\"place\": \"Bern\"}", ""}}));
  EXPECT_EQ(ParseEachWay(options, "{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}; "
                                  "{\"name\": \"get_weather\", \"parameters\": {}}").calls,
            (std::vector<Call>{{"now", "{}", ""}, {"get_weather", "{}", ""}}));
  EXPECT_EQ(ParseEachWay(options, "<|python_tag|>{\"name\": \"x\", \"parameters\": {\"q\": 1}}").calls,
            (std::vector<Call>{{"x", "{\"q\": 1}", ""}}));
  // An answer in JSON is no call.
  for (const std::string text : {"{\"name\": \"Bern\", \"parameters\": {}}", "{\"answer\": 42}", "{ }",
                                 "[1, 2, 3]", "{\"a\": [1, 2", "The {\"name\": \"now\", \"parameters\": {}}"}) {
    EXPECT_EQ(ParseEachWay(options, text), (Parsed{text, "", {}}));
  }
}

TEST(OutputParser, ReadsPythonicCalls) {
  OutputParserOptions options = Options(OutputFormat::kLlama);
  options.tool_names = {"f", "g"};
  const Parsed got = ParseEachWay(
      options, "<|python_start|>[f(a=1, b='it\\'s', c=[True, None, -1.5], d={\"k\": (1,)}), g()]<|python_end|>ok");
  EXPECT_EQ(got.calls, (std::vector<Call>{
      {"f", "{\"a\": 1, \"b\": \"it's\", \"c\": [true, null, -1.5], \"d\": {\"k\": [1]}}", ""}, {"g", "{}", ""}}));
  EXPECT_EQ(got.content, "ok");
  EXPECT_EQ(ParseEachWay(options, "[f(a=1)]").calls, (std::vector<Call>{{"f", "{\"a\": 1}", ""}}));
  for (const std::string text : {"[h(a=1)]", "[f(1)]", "[f(a=x)]", "[f(a=1", "[link](url)", "[f(a='\n"}) {
    EXPECT_EQ(ParseEachWay(options, text), (Parsed{text, "", {}}));
  }
}

TEST(OutputParser, ReadsMistralCalls) {
  const OutputParserOptions options = Options(OutputFormat::kMistral);
  EXPECT_EQ(ParseEachWay(options, "[TOOL_CALLS] [{\"name\": \"a\", \"arguments\": {\"x\": 1}, \"id\": \"abc123XYZ\"}, "
                                  "{\"id\": \"def\", \"name\": \"b\", \"arguments\": {}}]").calls,
            (std::vector<Call>{{"a", "{\"x\": 1}", ""}, {"b", "{}", "def"}}));
  EXPECT_EQ(ParseEachWay(options, "Sure.[TOOL_CALLS]a[CALL_ID]id1[ARGS]{\"x\": \"]\"}[TOOL_CALLS]b[ARGS]{}"),
            (Parsed{"Sure.", "", {{"a", "{\"x\": \"]\"}", "id1"}, {"b", "{}", ""}}}));
  EXPECT_EQ(ParseEachWay(options, "[TOOL_CALLS] nothing of the kind"),
            (Parsed{"[TOOL_CALLS] nothing of the kind", "", {}}));
  OutputParserOptions think = options;
  think.syntax = DetectOutputSyntax("[TOOL_CALLS] [THINK]");
  EXPECT_EQ(ParseEachWay(think, "[THINK]well[/THINK]yes"), (Parsed{"yes", "well", {}}));
}

TEST(OutputParser, ReadsHarmonyMessages) {
  const OutputParserOptions options = Options(OutputFormat::kHarmony);
  const Parsed got = ParseEachWay(
      options, "<|channel|>analysis<|message|>The user wants weather.<|end|><|start|>assistant<|channel|>commentary"
               "<|message|>I will look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
               "<|constrain|>json<|message|>{\"place\": \"Bern\"}<|call|>");
  EXPECT_EQ(got, (Parsed{"I will look.", "The user wants weather.", {{"get_weather", "{\"place\": \"Bern\"}", ""}}}));
  EXPECT_EQ(ParseEachWay(options, " to=functions.now<|channel|>commentary json<|message|>{}<|call|>").calls,
            (std::vector<Call>{{"now", "{}", ""}}));
  EXPECT_EQ(ParseEachWay(options, "<|channel|>final<|message|>Hi < there <|return|>"), (Parsed{"Hi < there", "", {}}));
  // Where the prompt has forced the header, and where the call is none.
  EXPECT_EQ(ParseEachWay(options, "an answer"), (Parsed{"an answer", "", {}}));
  EXPECT_EQ(ParseEachWay(options, "<|channel|>commentary to=functions.f<|message|>print(1)<|call|>").content,
            "<|channel|>commentary to=functions.f<|message|>print(1)");
  EXPECT_EQ(ParseEachWay(options, "<|channel|>fin").content, "<|channel|>fin");
}

TEST(OutputParser, ReadsCohereActions) {
  const Parsed got = ParseEachWay(
      Options(OutputFormat::kCohere),
      "<|START_THINKING|>I look it up.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", "
      "\"tool_name\": \"a\", \"parameters\": {\"q\": \"x\"}},\n {\"tool_call_id\": \"1\", \"tool_name\": \"b\", "
      "\"parameters\": {}}\n]<|END_ACTION|>");
  EXPECT_EQ(got, (Parsed{"", "I look it up.", {{"a", "{\"q\": \"x\"}", "0"}, {"b", "{}", "1"}}}));
  EXPECT_EQ(ParseEachWay(Options(OutputFormat::kCohere), "<|START_RESPONSE|>Hi.<|END_RESPONSE|>"),
            (Parsed{"Hi.", "", {}}));
}

TEST(OutputParser, DetectsTheSyntaxOfTemplates) {
  const std::pair<const char*, OutputFormat> expected[] = {
      {"qwen2", OutputFormat::kHermes},   {"qwen3", OutputFormat::kHermes},
      {"llama3", OutputFormat::kLlama},   {"llama4", OutputFormat::kLlama},
      {"mistral", OutputFormat::kMistral}, {"gpt_oss", OutputFormat::kHarmony},
      {"cohere2", OutputFormat::kCohere}, {"gemma3", OutputFormat::kPlain},
      {"phi3", OutputFormat::kPlain}};
  for (const auto& [name, format] : expected) {
    const OutputSyntax syntax = DetectOutputSyntax(ReadTestData("templates/" + std::string(name) + ".jinja"));
    EXPECT_EQ(syntax.format, format) << name;
    EXPECT_EQ(syntax.think_open == "<think>", std::string(name) == "qwen3") << name;
  }
}

// Whatever is thrown at it: every cut gives the same, and no byte but marks and blanks is lost.
TEST(OutputParser, LosesNothingOfRandomText) {
  const std::vector<std::string> fragments = {
      "<tool_call>", "</tool_call>", "<think>", "</think>", "{\"name\": \"f\", \"arguments\": ", "{\"a\": 1}", "}", "{",
      "[", "]", ",", ";", "[TOOL_CALLS]", "f[ARGS]", "[CALL_ID]x", "<|channel|>", "analysis", "final", "commentary",
      "<|message|>", "<|end|>", "<|start|>assistant", " to=functions.f", "<|call|>", "<|START_ACTION|>",
      "<|END_ACTION|>", "<|python_tag|>", "<|python_end|>", "f(a=1)", "[f(", " ", "\n", "word", "\"", "\\", "null"};
  const uint64_t seed = std::random_device{}();
  SampleStream rng(seed);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (uint64_t n = rng.Below(12); n > 0; --n) text += fragments[rng.Below(fragments.size())];
    for (const OutputFormat format : {OutputFormat::kHermes, OutputFormat::kLlama, OutputFormat::kMistral,
                                      OutputFormat::kHarmony, OutputFormat::kCohere}) {
      OutputParserOptions options = Options(format, true);
      const Parsed whole = ParseIn(options, {text});
      std::vector<std::string> pieces;
      for (size_t pos = 0; pos < text.size();) {
        const size_t size = 1 + rng.Below(9);
        pieces.push_back(text.substr(pos, size));
        pos += size;
      }
      ASSERT_EQ(ParseIn(options, pieces), whole)
          << "seed " << seed << " format " << static_cast<int>(format) << ": " << text;
      size_t words = 0, found = 0;
      for (size_t at = text.find("word"); at != std::string::npos; at = text.find("word", at + 1)) ++words;
      std::string all = whole.content + " " + whole.reasoning;
      for (const Call& call : whole.calls) all += " " + call.name + " " + call.arguments + " " + call.id;
      for (size_t at = all.find("word"); at != std::string::npos; at = all.find("word", at + 1)) ++found;
      // Headers of harmony and further keys of a call are marks.
      if (format == OutputFormat::kHermes || format == OutputFormat::kCohere) {
        ASSERT_GE(found, words) << "seed " << seed << " format " << static_cast<int>(format) << ": " << text;
      }
    }
  }
}

TEST(JsonScanner, AgreesWithAParser) {
  const uint64_t seed = std::random_device{}();
  SampleStream rng(seed);
  const std::vector<std::string> pieces = {"{", "}", "[", "]", ",", ":", "\"a\"", "\"", "\\n", "\\u00e9", "1", "-", "0",
                                           ".5", "e3", "true", "fals", "null", " ", "\n", "\\"};
  for (int round = 0; round < 20000; ++round) {
    std::string text = rng.Below(2) == 0 ? "{" : "[";
    for (uint64_t n = rng.Below(10); n > 0; --n) text += pieces[rng.Below(pieces.size())];
    JsonScanner scanner;
    auto state = JsonScanner::State::kMore;
    size_t used = 0;
    while (used < text.size() && state == JsonScanner::State::kMore) state = scanner.Feed(text[used++]);
    const bool done = state == JsonScanner::State::kDone;
    const bool alone = text.find_first_not_of(" \n", used) == std::string::npos;
    EXPECT_EQ(done && alone, nlohmann::json::accept(text)) << "seed " << seed << ": " << text;
    if (done) {
      EXPECT_TRUE(nlohmann::json::accept(text.substr(0, used))) << text;
    }
  }
}

}  // namespace
}  // namespace longstride::model

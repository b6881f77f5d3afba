#include "config/sparsity_policy.h"

#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "config/nearest_name.h"
#include "config/strict_json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace longstride {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::string& text) {
  const auto policy = SparsityPolicy::Parse(text);
  EXPECT_FALSE(policy.ok()) << text;
  EXPECT_EQ(policy.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(policy.status().message());
}

TEST(SparsityPolicy, ReadsRulesWithCommentsAndAllValueKinds) {
  const auto policy = SparsityPolicy::Parse(R"({
    // the whole plan
    "name": "long-logs",
    "default": {"pattern": "native"},
    "layers": [
      {"layers": "0-5, 9", "pattern": "window", "window": 1024, "sink_tokens": 4},
      {"layers": "full", "heads": "0-3", "pattern": "x", "a": [1, 2], "b": [[0], [0, 1]],
       "c": [[[0]], [[0], [1]]], "d": 0.5, "e": true, "f": "text", "g": []}
    ] /* end */
  })");
  ASSERT_TRUE(policy.ok()) << policy.status();
  EXPECT_EQ(policy->name, "long-logs");
  ASSERT_EQ(policy->rules.size(), 2u);
  const LayerRule& first = policy->rules[0];
  EXPECT_TRUE(first.layers.Contains(0) && first.layers.Contains(5) && first.layers.Contains(9));
  EXPECT_FALSE(first.layers.Contains(6));
  EXPECT_EQ(first.layers.Max(), 9);
  EXPECT_EQ(*first.policy.Int("window", 0, 1, 1 << 20), 1024);
  EXPECT_EQ(*first.policy.Int("absent", 7, 0, 9), 7);
  EXPECT_EQ(first.policy.place, "layers[0]");
  const LayerRule& second = policy->rules[1];
  EXPECT_EQ(second.kind, NativeKind::kFull);
  EXPECT_TRUE(second.heads.Contains(3));
  EXPECT_FALSE(second.heads.Contains(4));
  EXPECT_EQ(*second.policy.IntList("a"), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(*second.policy.Rows("b"), (IntRows{{0}, {0, 1}}));
  EXPECT_EQ(*second.policy.RowsPerHead("c"), (std::vector<IntRows>{{{0}}, {{0}, {1}}}));
  EXPECT_EQ(std::get<double>(second.policy.params.at("d")), 0.5);
  EXPECT_EQ(std::get<bool>(second.policy.params.at("e")), true);
  EXPECT_EQ(std::get<std::string>(second.policy.params.at("f")), "text");
  EXPECT_TRUE(second.policy.Rows("g")->empty());
}

TEST(SparsityPolicy, EmptyPlanIsNative) {
  const auto policy = SparsityPolicy::Parse("{}");
  ASSERT_TRUE(policy.ok());
  EXPECT_EQ(policy->default_policy.pattern, "native");
  EXPECT_TRUE(policy->rules.empty());
}

TEST(SparsityPolicy, CarriesTheDigestOfItsFidelityReport) {
  const std::string digest = "sha256:" + std::string(32, 'a') + std::string(32, '9');
  const auto policy = SparsityPolicy::Parse(R"({"fidelity_report": ")" + digest + "\"}");
  ASSERT_TRUE(policy.ok()) << policy.status();
  EXPECT_EQ(policy->fidelity_report, digest);
  EXPECT_EQ(SparsityPolicy::Parse("{}")->fidelity_report, "");
  for (const std::string& bad : {std::string("\"\""), "\"" + digest + "0\"", std::string("7"),
                                 "\"sha256:" + std::string(64, 'G') + "\""}) {
    const auto refused = SparsityPolicy::Parse(R"({"fidelity_report": )" + bad + "}");
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("fidelity_report")) << bad;
  }
}

TEST(SparsityPolicy, RefusesDuplicateKeysAtAnyDepth) {
  EXPECT_THAT(ErrorOf(R"({"name": "a", "name": "b"})"), HasSubstr("'name' appears twice"));
  EXPECT_THAT(ErrorOf(R"({"layers": [{"pattern": "window", "window": 1, "window": 2}]})"),
              HasSubstr("'window' appears twice"));
}

TEST(SparsityPolicy, RefusesUnknownKeysAndSuggestsTheNearest) {
  EXPECT_THAT(ErrorOf(R"({"layer": []})"), HasSubstr("Did you mean 'layers'?"));
  const auto policy = SparsityPolicy::Parse(R"({"default": {"pattern": "window", "windw": 5}})");
  ASSERT_TRUE(policy.ok());
  const absl::Status status = policy->default_policy.CheckKnown({"window", "sink_tokens"});
  EXPECT_THAT(std::string(status.message()), HasSubstr("Did you mean 'window'?"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("default"));
}

TEST(SparsityPolicy, NamesThePlaceOfBadValues) {
  EXPECT_THAT(ErrorOf(R"({"layers": [{"pattern": "window"}, {"pattern": 3}]})"),
              HasSubstr("layers[1].pattern: got number"));
  EXPECT_THAT(ErrorOf(R"({"layers": [{"layers": "5-2", "pattern": "w"}]})"),
              HasSubstr("layers[0].layers: got '5-2'"));
  EXPECT_THAT(ErrorOf(R"({"layers": [{"window": 4}]})"), HasSubstr("\"pattern\" is missing"));
  EXPECT_THAT(ErrorOf(R"({"default": {"pattern": "w", "a": [1, [2]]}})"), HasSubstr("default.a"));
  EXPECT_THAT(ErrorOf(R"({"default": {"pattern": "w", "a": [1.5]}})"), HasSubstr("whole numbers"));
  EXPECT_THAT(ErrorOf(R"({"default": {"pattern": "w", "a": null}})"), HasSubstr("got null"));
  EXPECT_THAT(ErrorOf(R"({"default": {"pattern": "w", "a": 99999999999999999999}})"),
              HasSubstr("does not fit 64 bits"));
  EXPECT_THAT(ErrorOf("[1]"), HasSubstr("got array"));
  EXPECT_THAT(ErrorOf("{\n  \"name\": oops\n}"), HasSubstr("line 2"));
  const auto policy = SparsityPolicy::Parse(R"({"default": {"pattern": "w", "a": 5, "b": "x"}})");
  ASSERT_TRUE(policy.ok());
  EXPECT_THAT(std::string(policy->default_policy.Int("a", 0, 6, 9).status().message()),
              HasSubstr("'a' is 5; allowed are 6 to 9"));
  EXPECT_FALSE(policy->default_policy.Int("b", 0, 0, 9).ok());
  EXPECT_FALSE(policy->default_policy.RequiredInt("c", 0, 9).ok());
}

TEST(SparsityPolicy, RefusesDeepAndLargeTexts) {
  const std::string deep = "{\"layers\": " + std::string(200000, '[');
  EXPECT_THAT(ErrorOf(deep), HasSubstr("nested deeper than 8 levels"));
  EXPECT_THAT(ErrorOf(std::string((size_t{16} << 20) + 1, ' ')), HasSubstr("at most"));
}

TEST(SparsityPolicy, ReadsReferencedFilesOfItsOwnFolderOnly) {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / "longstride_policy_test";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "rows.json") << "[[0], [0, 1]]";
  const auto write_plan = [&](const std::string& name) {
    std::ofstream(folder / "plan.json")
        << R"({"default": {"pattern": "block_sparse", "rows": {"file": ")" << name << R"("}}})";
    return SparsityPolicy::Load((folder / "plan.json").string());
  };
  const auto policy = write_plan("rows.json");
  ASSERT_TRUE(policy.ok()) << policy.status();
  EXPECT_EQ(*policy->default_policy.Rows("rows"), (IntRows{{0}, {0, 1}}));
  EXPECT_THAT(std::string(write_plan("../rows.json").status().message()),
              HasSubstr("the plan's own folder"));
  EXPECT_EQ(write_plan("none.json").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SparsityPolicy::Load((folder / "absent.json").string()).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_THAT(ErrorOf(R"({"default": {"pattern": "b", "rows": {"file": "rows.json"}}})"),
              HasSubstr("read from a file"));
}

TEST(SparsityPolicy, ReadsHeadTablesFromFilesAndInPlace) {
  const std::string table = R"({"model": "abc", "patterns": {"full": {"pattern": "native"},
      "streaming": {"pattern": "window", "window": 64}}, "scores": [[0.5, 1], []]})";
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / "longstride_table_test";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "table.json") << table;
  std::ofstream(folder / "plan.json")
      << R"({"layers": [{"layers": "full", "head_table": {"file": "table.json"}, "threshold": 1}]})";
  for (const auto& policy :
       {SparsityPolicy::Load((folder / "plan.json").string()),
        SparsityPolicy::Parse(StrCat(R"({"layers": [{"layers": "full", "threshold": 1,
            "head_table": )",
                                     table, "}]}"))}) {
    ASSERT_TRUE(policy.ok()) << policy.status();
    const LayerRule& rule = policy->rules.at(0);
    EXPECT_EQ(rule.kind, NativeKind::kFull);
    ASSERT_TRUE(rule.table.has_value());
    EXPECT_EQ(rule.table->model, "abc");
    EXPECT_EQ(rule.table->scores, (std::vector<std::vector<double>>{{0.5, 1}, {}}));
    EXPECT_EQ(rule.table->patterns.at("streaming").place,
              "layers[0].head_table.patterns.streaming");
    EXPECT_EQ(rule.threshold, 1.0);
    EXPECT_FALSE(rule.streaming_share.has_value());
  }
}

TEST(SparsityPolicy, RefusesBadHeadTables) {
  const auto error = [](const std::string& table, const std::string& more) {
    return ErrorOf(StrCat(R"({"layers": [{"head_table": )", table, more, "}]}"));
  };
  const std::string two = R"("patterns": {"full": {"pattern": "native"},
                                          "streaming": {"pattern": "window"}})";
  const std::string scores = StrCat(R"({"model": "a", )", two, R"(, "scores": [[1]]})");
  const std::string heads = StrCat(R"({"model": "a", )", two, R"(, "heads": [["full"]]})");
  EXPECT_THAT(error("7", ""),
              HasSubstr("layers[0].head_table: got number; a head table is an object"));
  EXPECT_THAT(error(R"({"file": "t.json"})", ""), HasSubstr("itself read from a file"));
  EXPECT_THAT(error("{}", ""), HasSubstr("'model' is missing"));
  EXPECT_THAT(error(StrCat(R"({"model": "a", )", two, "}"), ""),
              HasSubstr("either \"scores\" or \"heads\""));
  EXPECT_THAT(error(R"({"modle": "a"})", ""), HasSubstr("Did you mean 'model'?"));
  EXPECT_THAT(error(scores, ""), HasSubstr("give either 'threshold' or 'streaming_share'"));
  EXPECT_THAT(error(scores, R"(, "threshold": 1, "streaming_share": 0.5)"),
              HasSubstr("give either"));
  EXPECT_THAT(error(scores, R"(, "streaming_share": 1.5)"),
              HasSubstr("layers[0]: 'streaming_share' is 1.5; allowed are 0 to 1"));
  EXPECT_THAT(error(scores, R"(, "threshold": "much")"),
              HasSubstr("layers[0].threshold: got string; needs a number"));
  EXPECT_THAT(error(scores, R"(, "heads": "0", "threshold": 1)"), HasSubstr("unknown key 'heads'"));
  EXPECT_THAT(error(heads, R"(, "threshold": 1)"), HasSubstr("names each head's pattern"));
  EXPECT_THAT(
      error(R"({"model": "a", "patterns": {"full": {"pattern": "native"}}, "scores": [[1]]})", ""),
      HasSubstr("names the patterns \"full\" and \"streaming\""));
  EXPECT_THAT(error(StrCat(R"({"model": "a", )", two, R"(, "heads": [["fulll"]]})"), ""),
              HasSubstr("head_table.heads[0][0]: got 'fulll'; the table's patterns are"));
  EXPECT_THAT(error(StrCat(R"({"model": "a", )", two, R"(, "scores": [[1], 2]})"), ""),
              HasSubstr("head_table.scores[1]: got number; needs a list"));
  EXPECT_THAT(error(StrCat(R"({"model": "a", )", two, R"(, "scores": []})"), ""),
              HasSubstr("head_table.scores: is empty"));
}

// No bytes crash the parser, and what it accepts it accepts again.
TEST(SparsityPolicy, SurvivesMutatedTexts) {
  const std::string seed_text =
      R"({"name":"a","default":{"pattern":"native"},"layers":[{"layers":"0-5,9","heads":"1",)"
      R"("pattern":"window","window":1024,"m":[[0],[0,1]]},{"head_table":{"model":"a","patterns":)"
      R"({"full":{"pattern":"x"},"streaming":{"pattern":"y"}},"scores":[[1,2]]},"threshold":1}]})";
  const unsigned seed = 20240607;
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text = seed_text;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int e = 0; e < edits; ++e) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, 1 + random() % 8);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 16));
          break;
      }
      if (text.empty()) text.push_back(' ');
    }
    if (SparsityPolicy::Parse(text).ok()) ++accepted;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 20000);
}

TEST(NearestName, SuggestsWithinTwoEditsOrAThird) {
  const std::vector<std::string> names = {"window", "strided", "block_sparse"};
  EXPECT_EQ(NearestName("windwo", names), "window");
  EXPECT_EQ(NearestName("blocksparse", names), "block_sparse");
  EXPECT_EQ(NearestName("zzz", names), "");
  EXPECT_EQ(NearestName("", names), "");
  EXPECT_EQ(Quoted("a\nb\xff"), "'a\\x0ab\\xff'");
}

}  // namespace
}  // namespace longstride

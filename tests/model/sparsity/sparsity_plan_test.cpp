#include "model/sparsity/sparsity_plan.h"

#include <filesystem>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace longstride::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Like Gemma 3: five windowed layers, one full, and so on.
ModelSpec Spec(int32_t layers, int32_t heads, int32_t kv_heads, int32_t window = 512) {
  ModelSpec spec;
  spec.max_positions = 32768;
  for (int32_t l = 0; l < layers; ++l) {
    LayerSpec layer;
    layer.attention.num_heads = heads;
    layer.attention.num_kv_heads = kv_heads;
    layer.attention.head_dim = 64;
    layer.attention.native.window = (l + 1) % 6 == 0 ? 0 : window;
    spec.layers.push_back(layer);
  }
  return spec;
}

SparsityPlan Resolve(const std::string& text, const ModelSpec& spec, int32_t max_context = 0) {
  const auto policy = SparsityPolicy::Parse(text);
  EXPECT_TRUE(policy.ok()) << policy.status();
  auto plan = SparsityPlan::Resolve(*policy, spec, kernels::KvDType::kF16, max_context);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

// Every query head is in one segment, in order; segments are whole KV heads or part of one; their
// KV heads lie in their group.
void CheckShape(const SparsityPlan& plan, const ModelSpec& spec) {
  ASSERT_EQ(plan.layers.size(), spec.layers.size());
  std::set<std::string> names;
  for (const CacheGroup& group : plan.groups) {
    EXPECT_TRUE(names.insert(group.name).second) << group.name;
    int64_t bytes = int64_t{2} * group.num_kv_heads * 64 * group.head_dim * 2;
    // Minimum, maximum and mean, in whole cache lines.
    if (group.summaries) {
      bytes += (int64_t{3} * group.num_kv_heads * group.head_dim * 2 + 63) / 64 * 64;
    }
    EXPECT_EQ(group.page_bytes, static_cast<int64_t>(group.layers.size()) * bytes);
  }
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const AttentionSpec& a = spec.layers[l].attention;
    const int32_t per_kv = a.num_heads / a.num_kv_heads;
    int32_t next = 0;
    for (const HeadSegment& s : plan.layers[l].segments) {
      EXPECT_EQ(s.query.first, next);
      next += s.query.count;
      EXPECT_EQ(s.kv.first, s.query.first / per_kv);
      if (s.kv.count == 1) {
        EXPECT_EQ((s.query.first + s.query.count - 1) / per_kv, s.kv.first);
      } else {
        EXPECT_EQ(s.query.first % per_kv, 0);
        EXPECT_EQ(s.query.count, s.kv.count * per_kv);
      }
      const CacheGroup& group = plan.groups[static_cast<size_t>(s.group)];
      EXPECT_GE(s.kv.first, group.first_kv_head);
      EXPECT_LE(s.kv.first + s.kv.count, group.first_kv_head + group.num_kv_heads);
      EXPECT_THAT(group.layers, ::testing::Contains(static_cast<int32_t>(l)));
    }
    EXPECT_EQ(next, a.num_heads);
  }
}

TEST(SparsityPlan, NativeGroupsLayersByRetention) {
  const ModelSpec spec = Spec(18, 4, 1);
  const SparsityPlan plan = Resolve("{}", spec);
  CheckShape(plan, spec);
  ASSERT_EQ(plan.groups.size(), 2u);
  EXPECT_EQ(plan.groups[0].name, "window512");
  EXPECT_EQ(plan.groups[0].layers.size(), 15u);
  EXPECT_EQ(plan.groups[1].name, "full");
  EXPECT_THAT(plan.groups[1].layers, ElementsAre(5, 11, 17));
  EXPECT_EQ(plan.patterns.size(), 2u);
  // 15 layers see 512 of 32,768, 3 see all.
  EXPECT_NEAR(plan.Density(32767), (15 * 512.0 / 32768 + 3) / 18, 1e-12);
  EXPECT_EQ(plan.CacheBytes(30000, 512),
            PagesNeeded(plan.groups[0], 30000, 512) * plan.groups[0].page_bytes +
                477 * plan.groups[1].page_bytes);
  EXPECT_LE(PagesNeeded(plan.groups[0], 30000, 512), (512 + 512) / 64 + 1);
}

TEST(SparsityPlan, WindowsLongerThanTheContextAreDense) {
  const ModelSpec spec = Spec(6, 4, 1, 4096);
  EXPECT_EQ(Resolve("{}", spec, 4096).groups.size(), 1u);
  EXPECT_EQ(Resolve("{}", spec, 4097).groups.size(), 2u);
}

TEST(SparsityPlan, SplitsHeadsAtRulesAndKvHeads) {
  const ModelSpec spec = Spec(6, 8, 2);
  const SparsityPlan plan = Resolve(R"({
    "default": {"pattern": "dense"},
    "layers": [{"layers": "0", "heads": "2-5", "pattern": "window", "window": 128},
               {"layers": "1", "heads": "4-7", "pattern": "window", "window": 128},
               {"layers": "1", "heads": "0-3", "pattern": "window", "window": 256}]})",
                                    spec);
  CheckShape(plan, spec);
  // Heads 0-1 dense, 2-3 and 4-5 windowed (two KV heads), 6-7 dense. Both KV heads keep all.
  ASSERT_EQ(plan.layers[0].segments.size(), 4u);
  for (const HeadSegment& s : plan.layers[0].segments) {
    EXPECT_EQ(plan.groups[static_cast<size_t>(s.group)].name, "full");
  }
  // A KV head each with a retention of its own.
  ASSERT_EQ(plan.layers[1].segments.size(), 2u);
  EXPECT_EQ(plan.groups[static_cast<size_t>(plan.layers[1].segments[0].group)].name, "window256");
  EXPECT_EQ(plan.groups[static_cast<size_t>(plan.layers[1].segments[1].group)].name, "window128");
  EXPECT_EQ(plan.layers[2].segments.size(), 1u);
}

TEST(SparsityPlan, TakesTheUnionOfRetentionsWithinAKvHead) {
  const ModelSpec spec = Spec(1, 4, 1);
  const SparsityPlan plan = Resolve(R"({"layers": [
      {"heads": "0-1", "pattern": "window", "window": 128, "sink_tokens": 4},
      {"heads": "2-3", "pattern": "window", "window": 256}]})",
                                    spec);
  CheckShape(plan, spec);
  ASSERT_EQ(plan.groups.size(), 1u);
  EXPECT_EQ(plan.groups[0].retention, (Retention{.window = 256, .sink_tokens = 4, .chunk = 0}));
  EXPECT_EQ(plan.groups[0].name, "window256_sinks4");
}

TEST(SparsityPlan, LaterRulesWin) {
  const ModelSpec spec = Spec(6, 4, 1);
  const SparsityPlan plan = Resolve(R"({"layers": [
      {"layers": "0-3", "pattern": "window", "window": 128},
      {"layers": "2", "pattern": "dense"}]})",
                                    spec);
  const auto text = [&](size_t layer) {
    return plan.patterns[static_cast<size_t>(plan.layers[layer].segments[0].pattern)]->Describe();
  };
  EXPECT_EQ(text(1), "window(128)");
  EXPECT_EQ(text(2), "dense");
  EXPECT_EQ(text(4), "window(512)");
}

TEST(SparsityPlan, DigestIsOfTheFunctionNotItsSpelling) {
  const ModelSpec spec = Spec(6, 4, 1);
  const SparsityPlan native = Resolve(R"({"name": "a"})", spec);
  const SparsityPlan spelled = Resolve(R"({"name": "b", "layers": [
      {"layers": "0-4", "pattern": "window", "window": 512},
      {"layers": "5", "heads": "0-1", "pattern": "dense"}]})",
                                       spec);
  EXPECT_EQ(native.digest, spelled.digest);
  EXPECT_EQ(native.digest.size(), 32u);
  const SparsityPlan other =
      Resolve(R"({"layers": [{"layers": "0-4", "pattern": "window", "window": 511}]})", spec);
  EXPECT_NE(native.digest, other.digest);
}

TEST(SparsityPlan, NamesRulesThatDoNotFitTheModel) {
  const ModelSpec spec = Spec(6, 4, 1);
  const auto error = [&](const std::string& text) {
    const auto plan =
        SparsityPlan::Resolve(*SparsityPolicy::Parse(text), spec, kernels::KvDType::kF16);
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(plan.status().message());
  };
  EXPECT_THAT(error(R"({"layers": [{"layers": "0-6", "pattern": "dense"}]})"),
              HasSubstr("layers[0]: names layer 6; the model has layers 0 to 5"));
  EXPECT_THAT(error(R"({"layers": [{"heads": "4", "pattern": "dense"}]})"),
              HasSubstr("names query head 4; layer 0 has heads 0 to 3"));
  EXPECT_THAT(error(R"({"layers": [{"pattern": "winow"}, {"pattern": "dense"}]})"),
              HasSubstr("Did you mean 'window'?"));
}

// A rule with a table of scores, for a model of four layers of two KV heads.
std::string ScoreTable(const std::string& choice, const std::string& scores,
                       const std::string& layers = "\"0-3\"") {
  return StrCat(R"({"layers": [{"layers": )", layers, ", ", choice, R"(, "head_table": {
      "model": "abc", "name": "m", "measured": "by hand",
      "patterns": {"full": {"pattern": "native"},
                   "streaming": {"pattern": "window", "window": 128, "sink_tokens": 4}},
      "scores": )",
                scores, "}}]}");
}

ModelSpec TableSpec() {
  ModelSpec spec = Spec(4, 8, 2, 0);
  spec.digest = "abc";
  return spec;
}

TEST(SparsityPlan, HeadTablesAreRulesPerHead) {
  const ModelSpec spec = TableSpec();
  const std::string scores = "[[0.5, 0.1], [0.2, 0.1], [0.1, 0.3], [0.9, 0.8]]";
  const SparsityPlan half = Resolve(ScoreTable(R"("streaming_share": 0.5)", scores), spec);
  CheckShape(half, spec);
  // The three heads with 0.1, and 0.2.
  const SparsityPlan by_rules = Resolve(R"({"layers": [
      {"layers": "0", "heads": "4-7", "pattern": "window", "window": 128, "sink_tokens": 4},
      {"layers": "1", "pattern": "window", "window": 128, "sink_tokens": 4},
      {"layers": "2", "heads": "0-3", "pattern": "window", "window": 128, "sink_tokens": 4}]})",
                                        spec);
  EXPECT_EQ(half.digest, by_rules.digest);
  EXPECT_EQ(half.CacheBytes(30000, 512), by_rules.CacheBytes(30000, 512));
  // Half of the heads hold a window and the running step.
  const SparsityPlan dense = Resolve("{}", spec);
  EXPECT_LT(static_cast<double>(half.CacheBytes(30000, 512)),
            0.53 * static_cast<double>(dense.CacheBytes(30000, 512)));
  EXPECT_EQ(Resolve(ScoreTable(R"("threshold": 0.25)", scores), spec).digest, half.digest);
  // Of equal scores the lower layer streams first; parts of a head round down.
  const SparsityPlan few = Resolve(ScoreTable(R"("streaming_share": 0.37)", scores), spec);
  EXPECT_EQ(few.digest, Resolve(R"({"layers": [
      {"layers": "0-1", "heads": "4-7", "pattern": "window", "window": 128, "sink_tokens": 4}]})",
                                spec)
                            .digest);
  EXPECT_EQ(Resolve(ScoreTable(R"("streaming_share": 0)", scores), spec).digest, dense.digest);
  // Shares are of the rule's layers.
  EXPECT_EQ(Resolve(ScoreTable(R"("streaming_share": 0.5)", "[[], [], [0, 1], []]", "\"2\""), spec)
                .digest,
            Resolve(R"({"layers": [{"layers": "2", "heads": "0-3", "pattern": "window",
                                    "window": 128, "sink_tokens": 4}]})",
                    spec)
                .digest);
}

// One format for DuoAttention's two kinds of heads and MInference's three.
TEST(SparsityPlan, HeadTablesNameAnyPatternPerQueryHead) {
  const ModelSpec spec = TableSpec();
  const SparsityPlan plan = Resolve(R"({"layers": [{"layers": "1-2", "head_table": {
      "model": "abc",
      "patterns": {"a_shape": {"pattern": "window", "window": 1024, "sink_tokens": 128},
                   "slashes": {"pattern": "vertical_slash", "vertical_tokens": 1000,
                               "slash_tokens": 6096},
                   "blocks": {"pattern": "block_topk", "budget_tokens": 6400}},
      "heads": [[], ["a_shape", "slashes"],
                ["slashes", "slashes", "blocks", "a_shape",
                 "a_shape", "a_shape", "slashes", "slashes"], []]}}]})",
                                    spec);
  CheckShape(plan, spec);
  const SparsityPlan by_rules = Resolve(R"({"layers": [
      {"layers": "1-2", "pattern": "vertical_slash", "vertical_tokens": 1000, "slash_tokens": 6096},
      {"layers": "1", "heads": "0-3", "pattern": "window", "window": 1024, "sink_tokens": 128},
      {"layers": "2", "heads": "3-5", "pattern": "window", "window": 1024, "sink_tokens": 128},
      {"layers": "2", "heads": "2", "pattern": "block_topk", "budget_tokens": 6400}]})",
                                        spec);
  EXPECT_EQ(plan.digest, by_rules.digest);
}

TEST(SparsityPlan, RefusesHeadTablesThatDoNotFit) {
  const auto error = [&](const std::string& text, ModelSpec spec = TableSpec()) {
    const auto policy = SparsityPolicy::Parse(text);
    EXPECT_TRUE(policy.ok()) << policy.status();
    const auto plan = SparsityPlan::Resolve(*policy, spec, kernels::KvDType::kF16);
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(plan.status().message());
  };
  const std::string share = R"("streaming_share": 0.5)";
  const std::string good = "[[1, 2], [3, 4], [5, 6], [7, 8]]";
  ModelSpec other = TableSpec();
  other.digest = "abd";
  EXPECT_THAT(error(ScoreTable(share, good), other),
              HasSubstr("layers[0].head_table: was made for the checkpoint with the digest 'abc', "
                        "and this one has 'abd'"));
  EXPECT_THAT(error(ScoreTable(share, "[[1, 2]]")),
              HasSubstr("has rows for 1 layers; the model has 4 layers"));
  EXPECT_THAT(
      error(ScoreTable(share, "[[1, 2], [3], [5, 6], [7, 8]]")),
      HasSubstr("has 1 entries for layer 1; allowed are 2, one per key/value head, and none"));
  EXPECT_THAT(error(ScoreTable(share, "[[1, 2], [], [5, 6], [7, 8]]")),
              HasSubstr("says nothing of layer 1, which the rule covers"));
  EXPECT_THAT(error(ScoreTable(share, good, "\"3-4\"")),
              HasSubstr("layers[0]: names layer 4; the model has layers 0 to 3"));
  // A pattern that no head takes is checked, too.
  EXPECT_THAT(error(R"({"layers": [{"head_table": {"model": "abc",
                  "patterns": {"a": {"pattern": "dense"}, "b": {"pattern": "window", "window": 0}},
                  "heads": [["a", "a"], ["a", "a"], ["a", "a"], ["a", "a"]]}}]})"),
              HasSubstr("layers[0].head_table.patterns.b: 'window' is 0"));
}

TEST(SparsityPlan, ShippedProfilesResolve) {
  int profiles = 0;
  const std::filesystem::path folder =
      std::filesystem::path(LONGSTRIDE_SOURCE_DIR) / "config" / "profiles";
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    SCOPED_TRACE(file.path().filename().string());
    const auto policy = SparsityPolicy::Load(file.path().string());
    ASSERT_TRUE(policy.ok()) << policy.status();
    EXPECT_EQ(policy->name, file.path().stem().string());
    const ModelSpec gemma_like = Spec(18, 4, 1);
    const ModelSpec dense_like = Spec(5, 9, 3, 0);
    for (const ModelSpec* spec : {&gemma_like, &dense_like}) {
      const auto plan = SparsityPlan::Resolve(*policy, *spec, kernels::KvDType::kF16);
      ASSERT_TRUE(plan.ok()) << plan.status();
      CheckShape(*plan, *spec);
      // How much these two read follows from the text.
      const bool by_text = policy->name == "xattention" || policy->name == "vertical_slash";
      if (policy->name != "dense" && policy->name != "native" && !by_text) {
        EXPECT_LT(plan->Density(30000, NumericsClass::kGenerated), policy->name == "quest" ||
                          policy->name == "block_topk" ? 0.52 : 0.25);
      }
    }
    ++profiles;
  }
  EXPECT_GE(profiles, 12);
}

}  // namespace
}  // namespace longstride::model

// Query-dependent patterns without queries: how many pages they let a query read, and what a plan of
// them declares. What they read is tested through the decoder.
#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/op_params.h"
#include "model/sparsity/sparsity_plan.h"

namespace longstride::model {
namespace {

using ::testing::HasSubstr;

ModelSpec Spec() {
  ModelSpec spec;
  spec.max_positions = 1 << 20;
  for (int l = 0; l < 4; ++l) {
    LayerSpec layer;
    layer.attention.num_heads = 8;
    layer.attention.num_kv_heads = 2;
    layer.attention.head_dim = 64;
    spec.layers.push_back(layer);
  }
  return spec;
}

absl::StatusOr<SparsityPlan> Resolve(const std::string& rule) {
  const auto policy = SparsityPolicy::Parse(StrCat(R"({"layers": [{)", rule, "}]}"));
  if (!policy.ok()) return policy.status();
  return SparsityPlan::Resolve(*policy, Spec(), kernels::KvDType::kF16);
}

std::string Refusal(const std::string& rule) {
  const auto plan = Resolve(rule);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(plan.status().message());
}

// Pages that a list takes, counted by hand.
int64_t ExpectedPages(int64_t first, int64_t end, int64_t budget, double fraction, int64_t sinks,
                      int64_t recent) {
  const int64_t last = (end - 1) / 64;
  int64_t forced = 0;
  for (int64_t page = 0; page <= last; ++page) {
    forced += page < sinks || page > last - recent || page >= first / 64;
  }
  const int64_t wanted =
      budget > 0 ? (budget + 63) / 64
                 : static_cast<int64_t>(std::ceil(fraction * static_cast<double>(last + 1) - 1e-6));
  return std::min(std::max(wanted, forced), last + 1);
}

struct Case {
  std::string name, rule;
  bool dense_prompt;
  int64_t budget;
  double fraction;
  int64_t sinks, recent;
};

TEST(RankedPattern, TakesTheBudgetAndWhatIsAlwaysRead) {
  const Case cases[] = {
      {"quest", R"("pattern": "quest", "budget_tokens": 2048)", true, 2048, 0, 0, 1},
      {"quest_fraction", R"("pattern": "quest", "fraction": 0.05, "sink_pages": 2)", true, 0, 0.05,
       2, 1},
      {"topk", R"("pattern": "block_topk", "budget_tokens": 300, "recent_pages": 3)", false, 300, 0,
       0, 3},
      {"topk_fraction", R"("pattern": "block_topk", "fraction": 0.25, "sink_pages": 1)", false, 0,
       0.25, 1, 1}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const auto plan = Resolve(c.rule);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const SparsePattern& pattern = *plan->patterns[0];
    ASSERT_NE(pattern.ranking(), nullptr);
    for (const int64_t position : {0, 1, 63, 64, 127, 128, 4095, 4096, 70'000, 131'071}) {
      const auto check = [&](const QueryRun& run, bool alone) {
        SelectionBuilder builder;
        pattern.Select({&run, 1}, &builder);
        int64_t rows = 0;
        ASSERT_EQ(builder.list_count.size(), builder.tiles.size());
        for (size_t t = 0; t < builder.tiles.size(); ++t) {
          const kernels::QueryTile& tile = builder.tiles[t];
          rows += tile.num_rows;
          const int64_t end = tile.first_position + tile.num_rows;
          const int64_t want =
              !alone && c.dense_prompt
                  ? (end + 63) / 64
                  : ExpectedPages(tile.first_position, end, c.budget, c.fraction, c.sinks, c.recent);
          EXPECT_EQ(builder.list_count[t], want) << tile.first_position;
          EXPECT_LE(builder.list_count[t], kernels::CandidatePages(tile));
          if (alone) {
            EXPECT_EQ(tile.num_rows, 1);
          }
          // A row of a tile sees its list up to itself.
          for (int64_t i = tile.first_position; i < end; ++i) {
            const int64_t pages_ahead = (end - 1) / 64 - i / 64;
            const double seen = static_cast<double>((want - pages_ahead - 1) * 64 + i % 64 + 1);
            const auto numerics = alone ? NumericsClass::kGenerated : NumericsClass::kPrompt;
            if (alone || tile.num_rows == 128) {
              EXPECT_EQ(pattern.VisibleKeys(i, numerics), seen) << i;
            }
          }
        }
        EXPECT_EQ(rows, run.num_rows);
      };
      check({.num_rows = 1, .first_position = position, .numerics = NumericsClass::kGenerated},
            true);
      check({.num_rows = 5, .first_position = position, .numerics = NumericsClass::kGenerated},
            true);
      check({.num_rows = 300, .first_position = position / 128 * 128}, false);
    }
  }
}

TEST(RankedPattern, APlanDeclaresWhatItsPatternsNeed) {
  const auto quest = Resolve(R"("layers": "1", "pattern": "quest", "budget_tokens": 128)");
  ASSERT_TRUE(quest.ok()) << quest.status();
  EXPECT_EQ(quest->chunk_alignment, 1);
  EXPECT_FALSE(quest->one_numerics_class);
  ASSERT_EQ(quest->groups.size(), 2u);
  EXPECT_TRUE(quest->groups[1].summaries);
  EXPECT_TRUE(quest->groups[1].retention.keeps_all());
  EXPECT_EQ(quest->Density(9999), 1.0);
  EXPECT_LT(quest->Density(9999, NumericsClass::kGenerated), 0.77);
  const auto topk = Resolve(R"("pattern": "block_topk", "fraction": 0.1)");
  ASSERT_TRUE(topk.ok()) << topk.status();
  EXPECT_EQ(topk->chunk_alignment, 128);
  EXPECT_LT(topk->Density(99'999), 0.11);
  const auto xattention = Resolve(R"("pattern": "xattention", "threshold": 0.9)");
  ASSERT_TRUE(xattention.ok()) << xattention.status();
  EXPECT_EQ(xattention->chunk_alignment, 128);
  EXPECT_FALSE(xattention->one_numerics_class);
  EXPECT_FALSE(xattention->groups[0].summaries);
  EXPECT_TRUE(xattention->groups[0].retention.keeps_all());
  const auto sparge = Resolve(R"("pattern": "spargeattn", "threshold": 0.98)");
  ASSERT_TRUE(sparge.ok()) << sparge.status();
  EXPECT_EQ(sparge->chunk_alignment, 128);
  EXPECT_FALSE(sparge->one_numerics_class);
  EXPECT_FALSE(sparge->groups[0].summaries);
  const auto slashes = Resolve(R"("pattern": "vertical_slash", "gamma": 0.9)");
  ASSERT_TRUE(slashes.ok()) << slashes.status();
  EXPECT_EQ(slashes->chunk_alignment, 256);
  EXPECT_FALSE(slashes->groups[0].summaries);
  const auto infllm = Resolve(R"("pattern": "infllm_v2")");
  ASSERT_TRUE(infllm.ok()) << infllm.status();
  EXPECT_EQ(infllm->chunk_alignment, 1);
  EXPECT_TRUE(infllm->one_numerics_class);
  EXPECT_EQ(infllm->groups[0].name, "full_segments");
  EXPECT_TRUE(infllm->groups[0].segment_means);
  // 96 blocks of 64 less what the own one lacks.
  EXPECT_EQ(infllm->KeysSeen(0, 99'999), 95 * 64 + 99'999 % 64 + 1);
  EXPECT_EQ(infllm->KeysSeen(0, 8190), 8191);
  EXPECT_EQ(infllm->KeysSeen(0, 8191), 96 * 64);
  const auto moba = Resolve(R"("pattern": "moba", "chunk_size": 4096, "topk": 3)");
  ASSERT_TRUE(moba.ok()) << moba.status();
  EXPECT_EQ(moba->chunk_alignment, 1);
  EXPECT_FALSE(moba->one_numerics_class);
  EXPECT_EQ(moba->groups[0].name, "full_summaries");
  EXPECT_EQ(moba->KeysSeen(0, 12'287), 12'288);
  EXPECT_EQ(moba->KeysSeen(0, 12'288), 8193);
  EXPECT_EQ(moba->KeysSeen(0, 12'288, NumericsClass::kGenerated), 12'289);
  const auto dense = Resolve(R"("pattern": "dense")");
  EXPECT_EQ(dense->chunk_alignment, 1);
  EXPECT_TRUE(dense->one_numerics_class);
  EXPECT_FALSE(dense->groups[0].summaries);
}

// What a checkpoint was trained with is its native pattern, and what the operator leaves out is the
// checkpoint's.
TEST(RankedPattern, LearnedSparsityIsNative) {
  ModelSpec spec = Spec();
  for (LayerSpec& layer : spec.layers) {
    layer.attention.native.infllm_v2 = {
        .topk = 16, .init_blocks = 2, .window = 512, .dense_len = 4096};
  }
  spec.layers[3].attention.native = {};
  spec.layers[3].attention.native.moba = {.chunk = 512, .topk = 3};
  const auto describe = [&](const std::string& plan_text, int32_t context) {
    const auto policy = SparsityPolicy::Parse(plan_text);
    EXPECT_TRUE(policy.ok()) << policy.status();
    const auto plan = SparsityPlan::Resolve(*policy, spec, kernels::KvDType::kF16, context);
    EXPECT_TRUE(plan.ok()) << plan.status();
    std::vector<std::string> names;
    for (const LayerPlan& layer : plan->layers) {
      names.push_back(plan->patterns[static_cast<size_t>(layer.segments[0].pattern)]->Describe());
    }
    return names;
  };
  const std::string infllm = "infllm_v2(topk=16,init=2,window=512,dense_len=4096)";
  EXPECT_THAT(describe("{}", 0), ::testing::ElementsAre(infllm, infllm, infllm, "moba(3 of 512)"));
  // Where nothing is masked, layers are dense.
  EXPECT_THAT(describe("{}", 4095),
              ::testing::ElementsAre("dense", "dense", "dense", "moba(3 of 512)"));
  EXPECT_THAT(describe("{}", 1536), ::testing::Each("dense"));
  EXPECT_THAT(describe(R"({"layers": [{"layers": "0-2", "pattern": "infllm_v2", "dense_len": 0},
                                      {"layers": "3", "pattern": "moba", "generated": true}]})",
                       0),
              ::testing::ElementsAre("infllm_v2(topk=16,init=2,window=512,dense_len=0)",
                                     "infllm_v2(topk=16,init=2,window=512,dense_len=0)",
                                     "infllm_v2(topk=16,init=2,window=512,dense_len=0)",
                                     "moba(3 of 512,generated)"));
}

// Layers with an indexer; the last one reads what the layer before it chooses.
ModelSpec IndexedSpec() {
  ModelSpec spec = Spec();
  for (LayerSpec& layer : spec.layers) {
    layer.attention.num_kv_heads = 1;
    layer.attention.head_dim = 576;
    layer.attention.latent = {.kv_rank = 512, .q_rank = 1536, .rope_dim = 64};
    layer.attention.indexer = {.num_heads = 64, .head_dim = 128};
    layer.attention.native.dsa.topk = 2048;
  }
  spec.layers[3].attention.indexer = {};
  return spec;
}

absl::StatusOr<SparsityPlan> ResolveIndexed(const std::string& plan_text, int32_t context = 0) {
  const auto policy = SparsityPolicy::Parse(plan_text);
  if (!policy.ok()) return policy.status();
  return SparsityPlan::Resolve(*policy, IndexedSpec(), kernels::KvDType::kFp8, context);
}

TEST(RankedPattern, IndexKeysAreOfTheLayersThatChooseByThem) {
  const auto native = ResolveIndexed("{}");
  ASSERT_TRUE(native.ok()) << native.status();
  ASSERT_EQ(native->patterns.size(), 1u);
  EXPECT_EQ(native->patterns[0]->Describe(), "dsa(2048)");
  EXPECT_EQ(native->chunk_alignment, 1);
  EXPECT_TRUE(native->one_numerics_class);
  ASSERT_EQ(native->groups.size(), 2u);
  EXPECT_EQ(native->groups[0].name, "full_index");
  EXPECT_EQ(native->groups[0].index_dim, 128);
  EXPECT_EQ(native->groups[0].page_bytes, 3 * 64 * (576 + 128));
  EXPECT_FALSE(native->groups[0].summaries);
  EXPECT_EQ(native->groups[1].name, "full");
  EXPECT_EQ(native->groups[1].page_bytes, 64 * 576);
  for (const NumericsClass numerics : {NumericsClass::kPrompt, NumericsClass::kGenerated}) {
    EXPECT_EQ(native->KeysSeen(0, 2047, numerics), 2048);
    EXPECT_EQ(native->KeysSeen(0, 2048, numerics), 2048);
    EXPECT_EQ(native->KeysSeen(0, 100'000, numerics), 2048);
  }
  // Rows that choose stand alone, before and behind each cut.
  SelectionBuilder builder;
  const QueryRun run = {.num_rows = 200, .first_position = 1900};
  native->patterns[0]->Select({&run, 1}, &builder);
  int64_t rows = 0;
  for (size_t t = 0; t < builder.tiles.size(); ++t) {
    const kernels::QueryTile& tile = builder.tiles[t];
    rows += tile.num_rows;
    EXPECT_TRUE(tile.num_rows == 1 || tile.first_position + tile.num_rows <= 2048);
    EXPECT_EQ(builder.list_count[t],
              std::min<int64_t>(2048, int64_t{tile.first_position} + tile.num_rows));
  }
  EXPECT_EQ(rows, 200);
  // Where no query sees more than it may choose, and under other patterns, there are no index keys.
  for (const auto& plan :
       {ResolveIndexed("{}", 2048), ResolveIndexed(R"({"default": {"pattern": "dense"}})")}) {
    ASSERT_TRUE(plan.ok()) << plan.status();
    ASSERT_EQ(plan->groups.size(), 1u);
    EXPECT_EQ(plan->groups[0].index_dim, 0);
    EXPECT_EQ(plan->patterns[0]->Describe(), "dense");
  }
  const auto other = ResolveIndexed(R"({"default": {"pattern": "dsa", "topk": 1024}})");
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->patterns[0]->Describe(), "dsa(1024)");
  EXPECT_NE(other->digest, native->digest);
}

TEST(RankedPattern, RefusesIndicesThatNobodyChooses) {
  EXPECT_THAT(Refusal(R"("pattern": "dsa")"), HasSubstr("chooses keys by an indexer"));
  for (const char* topk : {"0", "-1", "1e300", "\"x\""}) {
    const auto plan =
        ResolveIndexed(StrCat(R"({"default": {"pattern": "dsa", "topk": )", topk, "}}"));
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument) << topk;
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr("topk"));
  }
  for (const char* rule : {R"({"layers": "2", "pattern": "dense"})",
                           R"({"layers": "2", "heads": "0-3", "pattern": "dense"})",
                           R"({"layers": "3", "pattern": "dsa", "topk": 1024})"}) {
    const auto plan =
        ResolveIndexed(StrCat(R"({"default": {"pattern": "native"}, "layers": [)", rule, "]}"));
    EXPECT_THAT(std::string(plan.status().message()),
                HasSubstr("layer 3 has no indexer and reads the tokens that the layer before it"));
  }
  // The layer itself may be served densely.
  EXPECT_TRUE(ResolveIndexed(R"({"layers": [{"layers": "3", "pattern": "dense"}]})").ok());
}

absl::StatusOr<SparsityPlan> ResolveGated(const std::string& plan_text) {
  ModelSpec spec = Spec();
  for (LayerSpec& layer : spec.layers) {
    layer.attention.gates = Nsa::kParts;
    layer.attention.native.nsa = {.block_counts = 16, .window = 512};
  }
  spec.layers[3].attention.native.nsa.window = 0;
  const auto policy = SparsityPolicy::Parse(plan_text);
  if (!policy.ok()) return policy.status();
  return SparsityPlan::Resolve(*policy, spec, kernels::KvDType::kF16);
}

// A layer that sums attentions has segments of each, in order, which share its pages.
TEST(RankedPattern, PartsOfALayerAreAPatternEach) {
  const auto plan = ResolveGated("{}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->chunk_alignment, 1);
  EXPECT_TRUE(plan->one_numerics_class);
  EXPECT_FALSE(plan->one_softmax());
  ASSERT_EQ(plan->groups.size(), 1u);
  const CacheGroup& group = plan->groups[0];
  EXPECT_EQ(group.name, "full_means");
  EXPECT_TRUE(group.retention.keeps_all());
  EXPECT_EQ(group.page_bytes, 4 * 2 * (2 * 64 * 64 * 2 + 4 * 64 * 2));
  for (size_t l = 0; l < 4; ++l) {
    const LayerPlan& layer = plan->layers[l];
    EXPECT_EQ(layer.parts, 3);
    EXPECT_EQ(layer.num_heads(), 8);
    ASSERT_EQ(layer.segments.size(), 3u);
    std::vector<std::string> names;
    for (int32_t part = 0; part < 3; ++part) {
      const HeadSegment& segment = layer.segments[static_cast<size_t>(part)];
      EXPECT_EQ(segment.part, part);
      EXPECT_EQ(segment.query.count, 8);
      EXPECT_EQ(segment.kv.count, 2);
      names.push_back(plan->patterns[static_cast<size_t>(segment.pattern)]->Describe());
    }
    EXPECT_THAT(names, ::testing::ElementsAre("nsa_compressed", "nsa_selected(16)",
                                              l == 3 ? "nothing" : "window(512)"));
  }
  // The query at 9,999 reads 156 means, 15 blocks and 16 keys of its own, and a window.
  EXPECT_EQ(plan->KeysSeen(0, 9999), 156);
  EXPECT_EQ(plan->KeysSeen(1, 9999), 15 * 64 + 16);
  EXPECT_NEAR(plan->Density(9999), (156 + 976 + 0.75 * 512) / 10'000, 1e-12);
  EXPECT_EQ(plan->KeysSeen(0, 62), 0);
  EXPECT_EQ(plan->KeysSeen(0, 63), 1);
  // Some heads may choose otherwise.
  const auto mixed = ResolveGated(
      R"({"layers": [{"heads": "0-1", "pattern": "nsa", "block_counts": 8, "window_size": 64}]})");
  ASSERT_TRUE(mixed.ok()) << mixed.status();
  EXPECT_EQ(mixed->groups.size(), 1u);
  // All heads share the compressed part; the others are cut behind head 1, and at the KV head.
  ASSERT_EQ(mixed->layers[0].segments.size(), 7u);
  EXPECT_EQ(mixed->layers[0].segments[0].query.count, 8);
  EXPECT_EQ(mixed->layers[0].segments[1].part, 1);
  EXPECT_EQ(mixed->layers[0].segments[1].query.count, 2);
  EXPECT_EQ(mixed->layers[0].segments[3].query.count, 4);
  EXPECT_NE(mixed->digest, plan->digest);
}

TEST(RankedPattern, RefusesOtherPatternsWhereALayerSumsAttentions) {
  EXPECT_THAT(Refusal(R"("pattern": "nsa")"), HasSubstr("sums three attentions by gates"));
  for (const char* pattern : {R"("dense")", R"("window", "window": 64)", R"("infllm_v2")"}) {
    const auto plan = ResolveGated(StrCat(R"({"default": {"pattern": )", pattern, "}}"));
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr("choose native or nsa"));
  }
  for (const char* parameter : {R"("block_counts": 0)", R"("window_size": -1)", R"("topk": 3)"}) {
    EXPECT_EQ(
        ResolveGated(StrCat(R"({"default": {"pattern": "nsa", )", parameter, "}}")).status().code(),
        absl::StatusCode::kInvalidArgument)
        << parameter;
  }
}

// Rows' lists of means are prefixes of one, whatever the runs.
TEST(RankedPattern, MeansAreListedOnce) {
  const auto plan = ResolveGated("{}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  const SparsePattern& pattern = *plan->patterns[0];
  EXPECT_TRUE(pattern.reads_means());
  SelectionBuilder builder;
  const QueryRun runs[] = {{.num_rows = 130, .first_position = 60},
                           {.sequence = 1,
                            .row_begin = 130,
                            .num_rows = 1,
                            .first_position = 5000,
                            .numerics = NumericsClass::kGenerated}};
  pattern.Select(runs, &builder);
  ASSERT_EQ(builder.tiles.size(), 131u);
  EXPECT_EQ(builder.entries.size(), 78u);
  for (size_t t = 0; t < builder.tiles.size(); ++t) {
    const int64_t i = builder.tiles[t].first_position;
    EXPECT_EQ(builder.list_begin[t], 0);
    EXPECT_EQ(builder.list_count[t], (i + 1) / 64);
    for (const int64_t j : {int64_t{0}, i - i % 64 - 1, i - 64, i - 63, i}) {
      EXPECT_EQ(pattern.Visible(0, i, j), j >= 0 && j / 64 < builder.list_count[t])
          << i << " " << j;
    }
  }
}

// Every parameter changes the function, and so the digest.
TEST(RankedPattern, TheDigestCoversEveryParameter) {
  std::set<std::string> digests;
  const std::string rules[] = {
      R"("pattern": "quest", "budget_tokens": 2048)",
      R"("pattern": "quest", "budget_tokens": 2049)",
      R"("pattern": "quest", "fraction": 0.05)",
      R"("pattern": "quest", "fraction": 0.050001)",
      R"("pattern": "quest", "budget_tokens": 2048, "sink_pages": 1)",
      R"("pattern": "quest", "budget_tokens": 2048, "recent_pages": 2)",
      R"("pattern": "block_topk", "budget_tokens": 2048)",
      R"("pattern": "block_topk", "budget_tokens": 2048, "sink_pages": 1)",
      R"("pattern": "block_topk", "budget_tokens": 2048, "per_query_head": true)",
      R"("pattern": "xattention", "threshold": 0.9)",
      R"("pattern": "xattention", "threshold": 0.900001)",
      R"("pattern": "xattention", "threshold": 0.9, "stride": 8)",
      R"("pattern": "xattention", "threshold": 0.9, "sink_pages": 2)",
      R"("pattern": "xattention", "threshold": 0.9, "recent_pages": 2)",
      R"("pattern": "xattention", "threshold": 0.9, "per_query_head": false)",
      R"("pattern": "vertical_slash", "vertical_tokens": 1024, "slash_tokens": 2048)",
      R"("pattern": "vertical_slash", "vertical_tokens": 1088, "slash_tokens": 2048)",
      R"("pattern": "vertical_slash", "vertical_tokens": 1024, "slash_tokens": 2112)",
      R"("pattern": "vertical_slash", "vertical_tokens": 1024, "slash_tokens": 2048,
         "segment": 128)",
      R"("pattern": "vertical_slash", "vertical_tokens": 1024, "slash_tokens": 2048, "gamma": 0.9)",
      R"("pattern": "vertical_slash", "vertical_tokens": 1024, "slash_tokens": 2048, "gamma": 0.8)",
      R"("pattern": "vertical_slash", "vertical_tokens": 1024, "slash_tokens": 2048, "gamma": 0.8,
         "tau": 0.1)",
      R"("pattern": "vertical_slash", "vertical_tokens": 1024, "slash_tokens": 2048, "gamma": 0.8,
         "tau": 0.2)",
      R"("pattern": "spargeattn", "threshold": 0.9)",
      R"("pattern": "spargeattn", "threshold": 0.98)",
      R"("pattern": "spargeattn", "threshold": 0.9, "similarity": 0.5)",
      R"("pattern": "spargeattn", "threshold": 0.9, "sink_pages": 0)",
      R"("pattern": "spargeattn", "threshold": 0.9, "recent_pages": 2)",
      R"("pattern": "spargeattn", "threshold": 0.9, "per_query_head": false)",
      R"("pattern": "infllm_v2")",
      R"("pattern": "infllm_v2", "topk": 65)",
      R"("pattern": "infllm_v2", "init_blocks": 2)",
      R"("pattern": "infllm_v2", "window_size": 1024)",
      R"("pattern": "infllm_v2", "dense_len": 0)",
      R"("pattern": "moba", "chunk_size": 4096, "topk": 3)",
      R"("pattern": "moba", "chunk_size": 4096, "topk": 4)",
      R"("pattern": "moba", "chunk_size": 2048, "topk": 3)",
      R"("pattern": "moba", "chunk_size": 4096, "topk": 3, "generated": true)",
  };
  for (const std::string& rule : rules) {
    const auto plan = Resolve(rule);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_TRUE(digests.insert(plan->digest).second) << rule;
  }
}

TEST(RankedPattern, RefusesBadParametersWithTheirPlace) {
  EXPECT_THAT(Refusal(R"("pattern": "quest")"),
              HasSubstr("layers[0]: pattern 'quest' needs one of 'budget_tokens'"));
  EXPECT_THAT(Refusal(R"("pattern": "quest", "budget_tokens": 0)"),
              HasSubstr("layers[0]: 'budget_tokens' is 0; allowed are 64 to"));
  EXPECT_THAT(Refusal(R"("pattern": "block_topk", "fraction": 0)"),
              HasSubstr("layers[0]: 'fraction' is 0; allowed are 0.001 to 1"));
  EXPECT_THAT(Refusal(R"("pattern": "block_topk", "fraction": 1.5)"), HasSubstr("'fraction' is 1.5"));
  EXPECT_THAT(Refusal(R"("pattern": "block_topk", "fraction": "much")"),
              HasSubstr("'fraction' must be a number"));
  EXPECT_THAT(Refusal(R"("pattern": "quest", "fraction": 0.1, "budget_tokens": 128)"),
              HasSubstr("needs one of"));
  EXPECT_THAT(Refusal(R"("pattern": "quest", "budget_tokens": 128, "sink_pages": 2)"),
              HasSubstr("are 192; raise it"));
  EXPECT_THAT(Refusal(R"("pattern": "quest", "budget_tokens": 128, "recent_pages": 0)"),
              HasSubstr("'recent_pages' is 0"));
  EXPECT_THAT(Refusal(R"("pattern": "quest", "budget_tokens": 128, "sink_page": 1)"),
              HasSubstr("Did you mean 'sink_pages'?"));
  EXPECT_THAT(Refusal(R"("pattern": "block_topk", "fraction": 0.1, "per_query_head": 1)"),
              HasSubstr("'per_query_head' must be true or false"));
  EXPECT_THAT(Refusal(R"("pattern": "xattention")"),
              HasSubstr("layers[0]: pattern 'xattention' needs 'threshold', a number from 0.01 to 1"));
  EXPECT_THAT(Refusal(R"("pattern": "xattention", "threshold": 0)"), HasSubstr("'threshold' is 0"));
  EXPECT_THAT(Refusal(R"("pattern": "xattention", "threshold": 0.9, "stride": 12)"),
              HasSubstr("'stride' is 12; allowed are 4, 8, 16, 32 and 64."));
  EXPECT_THAT(Refusal(R"("pattern": "xattention", "threshold": 0.9, "budget_tokens": 64)"),
              HasSubstr("unknown parameter"));
  EXPECT_THAT(Refusal(R"("pattern": "vertical_slash", "slash_tokens": 64)"),
              HasSubstr("pattern 'vertical_slash' needs 'vertical_tokens'"));
  EXPECT_THAT(Refusal(R"("pattern": "vertical_slash", "vertical_tokens": 0, "slash_tokens": 0)"),
              HasSubstr("are both 0"));
  EXPECT_THAT(Refusal(R"("pattern": "vertical_slash", "gamma": 0.9, "segment": 384)"),
              HasSubstr("'segment' is 384; allowed are powers of two from 128 to 65536."));
  EXPECT_THAT(Refusal(R"("pattern": "vertical_slash", "vertical_tokens": 64, "slash_tokens": 64,
                         "tau": 0.1)"),
              HasSubstr("layers[0]: 'tau' chooses between two ways to reach 'gamma'"));
  EXPECT_THAT(Refusal(R"("pattern": "vertical_slash", "gamma": 0.9, "tau": 2)"),
              HasSubstr("'tau' is 2; allowed are 0.001 to 1"));
  EXPECT_THAT(
      Refusal(R"("pattern": "spargeattn")"),
      HasSubstr("layers[0]: pattern 'spargeattn' needs 'threshold', a number from 0.01 to 1"));
  EXPECT_THAT(Refusal(R"("pattern": "spargeattn", "threshold": 0.9, "similarity": 1.5)"),
              HasSubstr("'similarity' is 1.5; allowed are -1 to 1"));
  EXPECT_THAT(Refusal(R"("pattern": "spargeattn", "threshold": 0.9, "similarty": 0.5)"),
              HasSubstr("Did you mean 'similarity'?"));
  EXPECT_THAT(
      Refusal(R"("pattern": "infllm_v2", "topk": 2, "init_blocks": 2)"),
      HasSubstr("layers[0]: 'topk' is 2, but the first 2 blocks and the query's own are read "
                "in any case; raise it to 3 or more."));
  EXPECT_THAT(Refusal(R"("pattern": "infllm_v2", "block_size": 64)"),
              HasSubstr("unknown parameter"));
  EXPECT_THAT(Refusal(R"("pattern": "moba", "topk": 3)"), HasSubstr("needs 'chunk_size'"));
  EXPECT_THAT(Refusal(R"("pattern": "moba", "topk": 3, "chunk_size": 100)"),
              HasSubstr("'chunk_size' is 100; allowed are multiples of 64"));
  EXPECT_THAT(Refusal(R"("layers": "3-4", "pattern": "quest", "budget_tokens": 128)"),
              HasSubstr("layers[0]: names layer 4; the model has layers 0 to 3"));
}

}  // namespace
}  // namespace longstride::model

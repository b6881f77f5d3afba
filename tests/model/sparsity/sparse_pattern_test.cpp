#include "model/sparsity/sparse_pattern.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace longstride::model {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kHeads = 8;
constexpr int32_t kMaxPositions = 4096;

using Ints = std::vector<int64_t>;

PatternContext Context() {
  return {.heads = {0, kHeads},
          .num_query_heads = kHeads,
          .native = {},
          .max_positions = kMaxPositions};
}

PatternPolicy Policy(const std::string& pattern, std::map<std::string, PolicyValue> params) {
  return {.pattern = pattern, .params = std::move(params), .place = "default"};
}

// A random causal mask whose rows read themselves.
IntRows RandomMask(int64_t block, std::mt19937* random) {
  IntRows rows;
  for (int64_t r = 0; r < kMaxPositions / block; ++r) {
    std::vector<int64_t> row;
    for (int64_t c = 0; c < r; ++c) {
      if ((*random)() % 4 == 0) row.push_back(c);
    }
    row.push_back(r);
    rows.push_back(std::move(row));
  }
  return rows;
}

struct Case {
  std::string name;
  PatternPolicy policy;
  HeadRange heads = {0, kHeads};

  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

std::vector<Case> AllCases() {
  std::mt19937 random(11);
  std::vector<IntRows> per_head;
  for (int32_t h = 0; h < kHeads; ++h) per_head.push_back(RandomMask(32, &random));
  return {
      {"dense", Policy("dense", {})},
      {"window1", Policy("window", {{"window", 1}})},
      {"window5", Policy("window", {{"window", 5}})},
      {"window64", Policy("window", {{"window", 64}})},
      {"window100_sinks4", Policy("window", {{"window", 100}, {"sink_tokens", 4}})},
      {"window512", Policy("window", {{"window", 512}})},
      {"window600_sinks130", Policy("window", {{"window", 600}, {"sink_tokens", 130}})},
      {"chunk1", Policy("chunked", {{"chunk", 1}})},
      {"chunk100", Policy("chunked", {{"chunk", 100}})},
      {"chunk512", Policy("chunked", {{"chunk", 512}})},
      {"strided2", Policy("strided", {{"stride", 2}})},
      {"strided7", Policy("strided", {{"stride", 7}})},
      {"strided128", Policy("strided", {{"stride", 128}})},
      {"strided128_local128", Policy("strided", {{"stride", 128}, {"local", 128}})},
      {"strided9_local20", Policy("strided", {{"stride", 9}, {"local", 20}})},
      {"strided50_local10", Policy("strided", {{"stride", 50}, {"local", 10}})},
      {"dilated2", Policy("dilated", {{"window", 30}})},
      {"dilated7_globals70",
       Policy("dilated", {{"window", 20}, {"dilation", 7}, {"global_tokens", 70}})},
      {"dilated1_globals4",
       Policy("dilated", {{"window", 90}, {"dilation", 1}, {"global_tokens", 4}})},
      {"bigbird", Policy("bigbird", {})},
      {"bigbird_wide", Policy("bigbird", {{"block", 16},
                                          {"window_blocks", 2},
                                          {"global_blocks", 5},
                                          {"random_blocks", 7},
                                          {"seed", 9}})},
      {"bigbird_not_random", Policy("bigbird", {{"block", 32}, {"random_blocks", 0}})},
      {"bigbird_some_heads", Policy("bigbird", {{"block", 32}}), {5, 3}},
      {"local_stride", Policy("local_stride", {{"block", 16}, {"local_blocks", 3}})},
      {"local_stride_wide",
       Policy("local_stride", {{"local_blocks", 1}, {"vert_stride", 16}, {"block", 32}})},
      {"local_stride_same",
       Policy("local_stride",
              {{"block", 16}, {"local_blocks", 2}, {"vert_stride", 5}, {"same_for_heads", true}})},
      {"local_stride_some_heads",
       Policy("local_stride", {{"block", 16}, {"local_blocks", 2}}),
       {3, 2}},
      {"variable", Policy("variable", {})},
      {"variable_wide", Policy("variable", {{"block", 32},
                                            {"local_window_blocks", Ints{1, 7, 3}},
                                            {"global_block_indices", Ints{2, 9, 30}},
                                            {"global_block_end_indices", Ints{4, 10, 37}}})},
      {"variable_windows_alone",
       Policy("variable", {{"local_window_blocks", Ints{5}}, {"global_block_indices", Ints{}}})},
      {"variable_some_heads", Policy("variable", {{"block", 64}}), {3, 2}},
      {"fixed_paper", Policy("fixed", {})},
      {"fixed_one", Policy("fixed", {{"block", 16}, {"local_ctx", 96}, {"num_verts", 1}})},
      {"fixed_wide",
       Policy("fixed", {{"block", 32}, {"local_ctx", 512}, {"num_verts", 4}, {"vertsize", 2}})},
      {"fixed_some_heads", Policy("fixed", {}), {3, 2}},
      {"block64", Policy("block_sparse", {{"block", 64}, {"rows", RandomMask(64, &random)}})},
      {"block128", Policy("block_sparse", {{"block", 128}, {"rows", RandomMask(128, &random)}})},
      {"block32_heads", Policy("block_sparse", {{"block", 32}, {"head_rows", per_head}})},
      {"block32_some_heads",
       Policy("block_sparse", {{"block", 32}, {"head_rows", per_head}}),
       {2, 4}},
  };
}

std::unique_ptr<SparsePattern> Make(const Case& c) {
  PatternContext context = Context();
  context.heads = c.heads;
  auto pattern = MakePattern(c.policy, context);
  EXPECT_TRUE(pattern.ok()) << pattern.status();
  return *std::move(pattern);
}

class SelectionTest : public ::testing::TestWithParam<Case> {};

// The keys that one row of one list head gets, as kernels read a selection.
struct RowKeys {
  std::vector<int64_t> visible;
  int64_t listed = 0;
};
RowKeys Expand(const kernels::KvSelection& s, int32_t list_head, int32_t tile, int64_t i,
               int64_t kv_len) {
  RowKeys keys;
  const int64_t at = int64_t{list_head} * s.num_tiles + tile;
  int32_t previous = -1;
  for (int32_t e = 0; e < s.list_count[at]; ++e) {
    const int64_t index = s.list_begin[at] + e;
    EXPECT_LT(index, s.num_entries);
    const int32_t entry = s.entries[index];
    EXPECT_GT(entry, previous) << "ascending, no duplicates";
    previous = entry;
    keys.listed += s.entry_tokens;
    for (int64_t j = int64_t{entry} * s.entry_tokens; j < int64_t{entry + 1} * s.entry_tokens;
         ++j) {
      if (j < kv_len && kernels::EdgeAllows(s.edges[list_head], i, j)) keys.visible.push_back(j);
    }
  }
  return keys;
}

// KvSelection::max_list_entries vouches for it: what a row alone gets is what it sees.
TEST_P(SelectionTest, ARowAloneListsOnlyEntriesThatItSees) {
  const auto pattern = Make(GetParam());
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  SelectionBuilder builder;
  for (int round = 0; round < 60; ++round) {
    const auto i = static_cast<int64_t>(random() % kMaxPositions);
    builder.Clear();
    const std::vector<QueryRun> runs = {
        {.sequence = 0, .row_begin = 0, .num_rows = 1, .first_position = i}};
    pattern->Select(runs, &builder);
    ASSERT_EQ(builder.tiles.size(), 1u);
    builder.Pad(4);
    const kernels::KvSelection s = builder.View();
    ASSERT_EQ(s.num_tiles, 4);
    for (int32_t h = 0; h < s.num_list_heads; ++h) {
      for (int32_t t = 1; t < 4; ++t) EXPECT_EQ(s.list_count[h * 4 + t], 0);
      EXPECT_LE(s.list_count[h * 4], s.max_list_entries);
      for (int32_t e = 0; e < s.list_count[h * 4]; ++e) {
        const int64_t first = int64_t{s.entries[s.list_begin[h * 4] + e]} * s.entry_tokens;
        bool seen = false;
        for (int64_t j = first; j < first + s.entry_tokens && !seen; ++j) {
          seen = j <= i && kernels::EdgeAllows(s.edges[h], i, j);
        }
        EXPECT_TRUE(seen) << "row " << i << " entry at " << first;
      }
    }
  }
}

// Random positions, chunkings and sequences: what the selection lets a row read is what the
// definition says, every row is in one tile, and little more is listed than is visible.
TEST_P(SelectionTest, MatchesDefinition) {
  const Case& c = GetParam();
  const auto pattern = Make(c);
  const unsigned seed = 77;
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  SelectionBuilder builder;
  for (int round = 0; round < 12; ++round) {
    std::vector<QueryRun> runs;
    int32_t rows = 0;
    const int num_runs = 1 + static_cast<int>(random() % 4);
    for (int s = 0; s < num_runs; ++s) {
      const auto count = static_cast<int32_t>(random() % 3 == 0 ? 1 : 1 + random() % 200);
      const auto first = static_cast<int64_t>(random() % (kMaxPositions - count));
      runs.push_back({s, rows, count, first});
      rows += count;
    }
    builder.Clear();
    pattern->Select(runs, &builder);
    const kernels::KvSelection selection = builder.View();
    const int64_t lists_wanted =
        selection.list_heads == kernels::ListHeads::kShared ? 1 : c.heads.count;
    ASSERT_EQ(selection.num_list_heads, lists_wanted);
    ASSERT_EQ(builder.edges.size(), static_cast<size_t>(lists_wanted));
    std::vector<int> row_seen(static_cast<size_t>(rows), 0);
    for (int32_t t = 0; t < selection.num_tiles; ++t) {
      const kernels::QueryTile& tile = selection.tiles[t];
      ASSERT_GE(tile.num_rows, 1);
      ASSERT_EQ(tile.first_position / selection.query_tile,
                (tile.first_position + tile.num_rows - 1) / selection.query_tile);
      const QueryRun& run = runs[static_cast<size_t>(tile.sequence)];
      ASSERT_EQ(tile.first_position - run.first_position, tile.row_begin - run.row_begin);
      for (int32_t h = 0; h < selection.num_list_heads; ++h) {
        double listed = 0;
        double visible = 0;
        for (int32_t r = 0; r < tile.num_rows; ++r) {
          const int64_t i = int64_t{tile.first_position} + r;
          if (h == 0) ++row_seen[static_cast<size_t>(tile.row_begin + r)];
          const RowKeys keys = Expand(selection, h, t, i, i + 1);
          listed += static_cast<double>(keys.listed);
          visible += static_cast<double>(keys.visible.size());
          const int32_t head = c.heads.first + h;
          std::vector<int64_t> expected;
          for (int64_t j = 0; j <= i; ++j) {
            if (pattern->Visible(head, i, j)) expected.push_back(j);
          }
          ASSERT_EQ(keys.visible, expected) << "head " << head << " position " << i;
        }
        // Edges: the window's (or mask's) begin, the diagonal, the end of the sinks.
        const double edges = pattern->retention().sink_tokens > 0 ? 3 : 2;
        ASSERT_LE(listed, 1.15 * visible + edges * kernels::kPageTokens * tile.num_rows)
            << "tile at " << tile.first_position << " rows " << tile.num_rows;
      }
    }
    EXPECT_THAT(row_seen, ::testing::Each(1));
  }
}

TEST_P(SelectionTest, CountsVisibleKeys) {
  const Case& c = GetParam();
  const auto pattern = Make(c);
  for (const int64_t i : {0, 1, 31, 63, 64, 99, 127, 128, 500, 512, 513, 1023, 2047, 4095}) {
    int64_t count = 0;
    for (int32_t h = c.heads.first; h < c.heads.first + c.heads.count; ++h) {
      EXPECT_TRUE(pattern->Visible(h, i, i)) << "a query reads itself";
      EXPECT_FALSE(pattern->Visible(h, i, i + 1)) << "and nothing later";
      for (int64_t j = 0; j <= i; ++j) count += pattern->Visible(h, i, j) ? 1 : 0;
    }
    EXPECT_NEAR(pattern->VisibleKeys(i), static_cast<double>(count) / c.heads.count, 1e-9) << i;
  }
}

// No query at or after `next` reads a page that retention calls dead.
TEST_P(SelectionTest, RetentionKeepsWhatLaterQueriesRead) {
  const Case& c = GetParam();
  const auto pattern = Make(c);
  const Retention keep = pattern->retention();
  for (int64_t next = 0; next < 1500; next += 37) {
    for (int64_t page = keep.first_dead_page(); page < keep.end_dead_page(next); ++page) {
      for (int64_t j = page * kernels::kPageTokens; j < (page + 1) * kernels::kPageTokens; ++j) {
        for (int64_t i = next; i < next + 300; i += 13) {
          ASSERT_FALSE(pattern->Visible(c.heads.first, i, j)) << "i " << i << " j " << j;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, SelectionTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& info) { return info.param.name; });

// The forms of patterns that encoders have: whole documents, and some rows of one (what the last layer
// is asked for).
TEST(Bidirectional, MatchesDefinition) {
  PatternContext context = Context();
  context.causal = false;
  std::mt19937 random(5);
  const std::pair<int64_t, int64_t> shapes[] = {{0, 0},  {1, 0},   {2, 0},   {9, 0}, {64, 0},
                                                {65, 0}, {500, 0}, {1, 1},   {9, 1}, {9, 70},
                                                {65, 3}, {500, 1}, {500, 64}};
  for (const auto& [window, globals] : shapes) {
    PatternPolicy policy = Policy("dense", {});
    if (window > 0) policy = Policy("window", {{"window", window}, {"global_tokens", globals}});
    auto made = MakePattern(policy, context);
    ASSERT_TRUE(made.ok()) << made.status();
    const SparsePattern& pattern = **made;
    EXPECT_TRUE(pattern.retention().keeps_all());
    SelectionBuilder builder;
    for (const int64_t length : {1, 2, 63, 64, 65, 129, 700}) {
      const auto first = static_cast<int64_t>(random() % length);
      const std::vector<QueryRun> runs = {
          {.sequence = 0, .row_begin = 0, .num_rows = static_cast<int32_t>(length),
           .first_position = 0, .kv_len = length},
          {.sequence = 1, .row_begin = static_cast<int32_t>(length),
           .num_rows = static_cast<int32_t>(length - first), .first_position = first,
           .kv_len = length}};
      builder.Clear();
      pattern.Select(runs, &builder);
      const kernels::KvSelection selection = builder.View();
      int64_t all = 0;
      for (int32_t t = 0; t < selection.num_tiles; ++t) {
        const kernels::QueryTile& tile = selection.tiles[t];
        int64_t listed = 0;
        for (int64_t i = tile.first_position; i < tile.first_position + tile.num_rows; ++i) {
          const RowKeys keys = Expand(selection, 0, t, i, length);
          std::vector<int64_t> expected;
          for (int64_t j = 0; j < length; ++j) {
            const bool sees = window == 0 || std::abs(i - j) < window || i < globals || j < globals;
            ASSERT_EQ(pattern.Visible(0, i, j), sees);
            if (sees) expected.push_back(j);
          }
          ASSERT_EQ(keys.visible, expected) << "window " << window << " of " << length << " at " << i;
          if (tile.sequence == 0) all += static_cast<int64_t>(expected.size());
          listed = keys.listed;
        }
        const int64_t reach = window == 0 || tile.first_position < globals
                                  ? length
                                  : 2 * window + tile.num_rows + globals;
        EXPECT_LE(listed, reach + (globals > 0 ? 3 : 2) * kernels::kPageTokens);
      }
      double summed = 0;
      for (int64_t i = 0; i < length; ++i) summed += pattern.VisibleKeys(i);
      EXPECT_NEAR(summed, static_cast<double>(all), 1e-6);
    }
  }
}

TEST(Bidirectional, CausalPatternsAreRefusedForEncoders) {
  PatternContext context = Context();
  context.causal = false;
  const auto status = MakePattern(Policy("quest", {{"budget", 512}}), context).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(status.ToString(), HasSubstr("encoder"));
  const auto sinks =
      MakePattern(Policy("window", {{"window", 64}, {"sink_tokens", 4}}), context).status();
  EXPECT_THAT(sinks.ToString(), HasSubstr("sink_tokens"));
  const auto globals =
      MakePattern(Policy("window", {{"window", 64}, {"global_tokens", 4}}), Context()).status();
  EXPECT_THAT(globals.ToString(), HasSubstr("global_tokens read ahead"));
  context.native.window = 65;
  auto native = MakePattern(Policy("native", {}), context);
  ASSERT_TRUE(native.ok());
  EXPECT_EQ((*native)->Describe(), "bidirectional_window(65)");
  context.native.global_tokens = 1;
  native = MakePattern(Policy("native", {}), context);
  ASSERT_TRUE(native.ok());
  EXPECT_EQ((*native)->Describe(), "bidirectional_window(65)+globals(1)");
}

TEST(Window, DecodeFarOutTouchesNinePages) {
  const auto pattern = Make({"w", Policy("window", {{"window", 512}})});
  SelectionBuilder builder;
  for (int64_t position = 29990; position < 30120; ++position) {
    builder.Clear();
    const QueryRun run = {0, 0, 1, position};
    pattern->Select({&run, 1}, &builder);
    ASSERT_EQ(builder.tiles.size(), 1u);
    EXPECT_LE(builder.list_count[0], 9);
  }
}

TEST(Dense, ListsOfAPromptShareOneArray) {
  const auto pattern = Make({"d", Policy("dense", {})});
  SelectionBuilder builder;
  const QueryRun run = {0, 0, 512, 29696};
  pattern->Select({&run, 1}, &builder);
  EXPECT_EQ(builder.tiles.size(), 4u);
  EXPECT_EQ(builder.entries.size(), (29696u + 512) / 64);
}

// The dense rules of the Sparse Transformer's released masks, written out.
TEST(Strided, IsTheMaskOfThePaper) {
  for (const int64_t c : {2, 5, 16, 128}) {
    const auto pattern = Make({"s", Policy("strided", {{"stride", c}})});
    for (int64_t i = 0; i < 700; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        ASSERT_EQ(pattern->Visible(0, i, j), (i - j) % c == 0);
      }
    }
  }
}

// The block layout of the released code, built the way it builds it: per head a list of columns.
TEST(Fixed, IsTheBlockLayoutOfTheReleasedCode) {
  const int64_t block = 32, local = 128, verts = 4, vertsize = 1;
  const auto pattern = Make({"f", Policy("fixed", {})});
  const int64_t s = local / block;
  for (int32_t head = 0; head < kHeads; ++head) {
    std::vector<int64_t> from_last;
    for (int64_t column = s - 1; column >= 0; --column) from_last.push_back(column);
    const int64_t group = head % verts;
    const std::vector<int64_t> columns(from_last.begin() + group * vertsize,
                                       from_last.begin() + (group + 1) * vertsize);
    for (int64_t row_block = 0; row_block < 20; ++row_block) {
      for (int64_t key_block = 0; key_block <= row_block; ++key_block) {
        const bool same_region = row_block / s == key_block / s;
        const bool summary =
            std::find(columns.begin(), columns.end(), key_block % s) != columns.end();
        const int64_t i = row_block * block + 7;
        const int64_t j = key_block * block + 7;
        ASSERT_EQ(pattern->Visible(head, i, j), same_region || summary)
            << head << " " << row_block << " " << key_block;
      }
    }
  }
}

// The condition of Phi-3-small's released code, written out.
TEST(LocalStride, IsPhi3SmallsMask) {
  const int64_t block = 16, local = 3, stride = 20;
  const auto pattern =
      Make({"l", Policy("local_stride",
                        {{"block", block}, {"local_blocks", local}, {"vert_stride", stride}})});
  const int64_t step = stride / kHeads;
  ASSERT_GT(step, 1);
  for (int32_t head = 0; head < kHeads; ++head) {
    for (int64_t row = 0; row < 60; ++row) {
      for (int64_t column = 0; column <= row; ++column) {
        const bool want = row - column < local || (column + head * step + 1) % stride == 0;
        ASSERT_EQ(pattern->Visible(head, row * block + block - 1, column * block), want)
            << head << " " << row << " " << column;
      }
    }
  }
}

// The layouts of DeepSpeed's configurations (sparsity_config.py), unidirectional, filled in as it
// fills them.
TEST(Variable, IsDeepSpeedsLayout) {
  constexpr int64_t kBlocks = 50;
  const Ints windows = {1, 7, 3}, begins = {2, 9, 30}, ends = {4, 10, 37};
  for (const bool ranges : {false, true}) {
    std::vector<std::vector<bool>> layout(kBlocks, std::vector<bool>(kBlocks, false));
    int64_t start = 0, size = 0;
    const auto window = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < std::min(end, kBlocks); ++row) {
        for (int64_t column = begin; column <= row; ++column)
          layout[static_cast<size_t>(row)][static_cast<size_t>(column)] = true;
      }
    };
    for (const int64_t w : windows) {
      window(start, start + w);
      start += w;
      size = w;
    }
    for (; start < kBlocks; start += size) window(start, start + size);
    for (size_t g = 0; g < begins.size(); ++g) {
      const int64_t end = ranges ? ends[g] : begins[g] + 1;
      for (int64_t row = begins[g]; row < kBlocks; ++row) {
        for (int64_t column = begins[g]; column < end; ++column)
          layout[static_cast<size_t>(row)][static_cast<size_t>(column)] = true;
      }
    }
    PatternPolicy policy =
        Policy("variable", {{"local_window_blocks", windows}, {"global_block_indices", begins}});
    if (ranges) policy.params["global_block_end_indices"] = ends;
    const auto pattern = Make({"v", policy});
    for (int64_t row = 0; row < kBlocks; ++row) {
      for (int64_t column = 0; column <= row; ++column) {
        ASSERT_EQ(pattern->Visible(0, row * 16 + 15, column * 16),
                  layout[static_cast<size_t>(row)][static_cast<size_t>(column)])
            << ranges << " " << row << " " << column;
      }
    }
  }
}

// Of every length, its last window cut short or not. Where that is shorter than the global blocks,
// DeepSpeed moves them back into the window before: which earlier blocks are read then depends on
// the text's length, which no pattern here does.
TEST(Fixed, IsDeepSpeedsLayout) {
  constexpr int64_t kLocal = 8, kGlobal = 2, kPatterns = 4;
  const auto pattern = Make({"f", Policy("fixed", {{"block", 16},
                                                   {"local_ctx", 16 * kLocal},
                                                   {"num_verts", kPatterns},
                                                   {"vertsize", kGlobal}})});
  int64_t moved_back = 0;
  for (int64_t blocks = 5 * kLocal; blocks <= 6 * kLocal; ++blocks) {
    for (int32_t head = 0; head < kHeads; ++head) {
      const auto size = static_cast<size_t>(blocks);
      std::vector<std::vector<bool>> layout(size, std::vector<bool>(size, false));
      const auto global = [&](int64_t begin) {
        for (int64_t row = begin; row < blocks; ++row) {
          for (int64_t column = begin; column < begin + kGlobal; ++column)
            layout[static_cast<size_t>(row)][static_cast<size_t>(column)] = true;
        }
      };
      for (int64_t i = 0; i < blocks; i += kLocal) {
        for (int64_t row = i; row < std::min(i + kLocal, blocks); ++row) {
          for (int64_t column = i; column <= row; ++column)
            layout[static_cast<size_t>(row)][static_cast<size_t>(column)] = true;
        }
      }
      const int64_t end = blocks - blocks % kLocal;
      const int64_t first = kLocal - (1 + head % kPatterns) * kGlobal;
      for (int64_t i = first; i < end; i += kLocal) global(i);
      if (end < blocks) global(std::min(end + first, blocks - kGlobal));
      for (int64_t row = 0; row < blocks; ++row) {
        for (int64_t column = 0; column <= row; ++column) {
          const bool want = layout[static_cast<size_t>(row)][static_cast<size_t>(column)];
          const bool visible = pattern->Visible(head, row * 16 + 15, column * 16);
          if (row >= end && column < end && column >= blocks - kGlobal && want && !visible) {
            ++moved_back;
            continue;
          }
          ASSERT_EQ(visible, want) << blocks << " " << head << " " << row << " " << column;
        }
      }
    }
  }
  // One length of the nine, whose last window has one block; the heads whose columns are not the
  // window's last.
  EXPECT_EQ(moved_back, kHeads - kHeads / kPatterns);
}

TEST(BigBird, DrawsByHeadRowAndSeedAndCoversWhatLiesBetween) {
  const auto blocks = [](const SparsePattern& pattern, int32_t head, int64_t row) {
    std::vector<int64_t> read;
    for (int64_t c = 1; c <= row - 3; ++c) {
      if (pattern.Visible(head, row * 16, c * 16)) read.push_back(c);
    }
    return read;
  };
  const auto seeded = [](int64_t seed) {
    return Make({"b", Policy("bigbird", {{"block", int64_t{16}}, {"seed", seed}})});
  };
  const auto one = seeded(1), again = seeded(1), other = seeded(2);
  int same_heads = 0, same_rows = 0, same_seeds = 0, rows = 0;
  std::vector<int> hits(100, 0);
  for (int64_t row = 40; row < 100; ++row, ++rows) {
    const auto read = blocks(*one, 0, row);
    ASSERT_EQ(read.size(), 3u);
    EXPECT_EQ(blocks(*again, 0, row), read);
    same_heads += blocks(*one, 1, row) == read;
    same_rows += blocks(*one, 0, row + 1) == read;
    same_seeds += blocks(*other, 0, row) == read;
  }
  EXPECT_LT(same_heads + same_rows + same_seeds, 6);
  for (int32_t head = 0; head < kHeads; ++head) {
    for (int64_t row = 50; row < 100; ++row) {
      for (const int64_t c : blocks(*one, head, row)) ++hits[static_cast<size_t>(c)];
    }
  }
  // 1,200 draws over 47 to 96 columns: every one of the first 40 is expected some 17 times.
  for (size_t c = 1; c < 40; ++c) EXPECT_GT(hits[c], 2) << c;
}

TEST(Dilated, FreesWhatNoLaterQueryReads) {
  const auto pattern =
      Make({"d", Policy("dilated", {{"window", 20}, {"dilation", 7}, {"global_tokens", 3}})});
  EXPECT_EQ(pattern->retention().window, 19 * 7 + 1);
  EXPECT_EQ(pattern->retention().sink_tokens, 3);
  EXPECT_TRUE(pattern->Visible(0, 1000, 1000 - 19 * 7));
  EXPECT_FALSE(pattern->Visible(0, 1000, 1000 - 20 * 7));
  EXPECT_FALSE(pattern->Visible(0, 1000, 999));
  EXPECT_TRUE(pattern->Visible(0, 1000, 2));
}

std::string ErrorOf(const PatternPolicy& policy) {
  const auto pattern = MakePattern(policy, Context());
  EXPECT_FALSE(pattern.ok());
  EXPECT_EQ(pattern.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(pattern.status().message());
}

TEST(Registry, RefusesUnknownPatternsAndParameters) {
  EXPECT_THAT(ErrorOf(Policy("windwo", {})), HasSubstr("Did you mean 'window'?"));
  EXPECT_THAT(ErrorOf(Policy("window", {{"window", 4}, {"sink", 4}})), HasSubstr("'sink'"));
  EXPECT_THAT(ErrorOf(Policy("window", {})), HasSubstr("needs 'window'"));
  EXPECT_THAT(ErrorOf(Policy("window", {{"window", 0}})), HasSubstr("allowed are 1 to"));
  EXPECT_THAT(ErrorOf(Policy("dense", {{"window", 4}})), HasSubstr("takes no parameters"));
  EXPECT_THAT(ErrorOf(Policy("strided", {{"stride", 1}})), HasSubstr("allowed are 2 to"));
  EXPECT_THAT(ErrorOf(Policy("chunked", {})), HasSubstr("needs 'chunk'"));
  EXPECT_THAT(ErrorOf(Policy("dilated", {})), HasSubstr("needs 'window'"));
  EXPECT_THAT(ErrorOf(Policy("dilated", {{"window", 1 << 20}, {"dilation", 1 << 20}})),
              HasSubstr("lower one of them"));
  EXPECT_THAT(ErrorOf(Policy("bigbird", {{"block", 48}})), HasSubstr("16, 32, 64 and 128"));
  EXPECT_THAT(ErrorOf(Policy("bigbird", {{"window_blocks", 0}})), HasSubstr("allowed are 1 to"));
  EXPECT_THAT(ErrorOf(Policy("bigbird", {{"random", 4}})), HasSubstr("'random'"));
  EXPECT_THAT(ErrorOf(Policy("local_stride", {{"vert_stride", 0}})), HasSubstr("allowed are 1 to"));
}

TEST(Registry, RefusesVariableLayoutsThatDoNotAddUp) {
  EXPECT_THAT(ErrorOf(Policy("variable", {{"block", 8}})), HasSubstr("allowed are 16 to 128"));
  EXPECT_THAT(ErrorOf(Policy("variable", {{"local_window_blocks", Ints{}}})),
              HasSubstr("names 0 windows"));
  EXPECT_THAT(ErrorOf(Policy("variable", {{"local_window_blocks", Ints{4, 0}}})),
              HasSubstr("holds 0; allowed are 1 to"));
  EXPECT_THAT(ErrorOf(Policy("variable", {{"global_block_indices", Ints{3, 3}}})),
              HasSubstr("ascending"));
  EXPECT_THAT(ErrorOf(Policy("variable", {{"global_block_indices", Ints{3}},
                                          {"global_block_end_indices", Ints{3}}})),
              HasSubstr("are none"));
  EXPECT_THAT(ErrorOf(Policy("variable", {{"global_block_end_indices", Ints{3, 5}}})),
              HasSubstr("2 ends of 1"));
  EXPECT_THAT(ErrorOf(Policy("variable", {{"local_windows", 4}})), HasSubstr("'local_windows'"));
}

TEST(Registry, RefusesFixedLayoutsThatDoNotAddUp) {
  EXPECT_THAT(ErrorOf(Policy("fixed", {{"block", 48}})), HasSubstr("16, 32, 64 and 128"));
  EXPECT_THAT(ErrorOf(Policy("fixed", {{"local_ctx", 100}})), HasSubstr("multiple of 'block'"));
  EXPECT_THAT(ErrorOf(Policy("fixed", {{"vertsize", 3}})), HasSubstr("must divide"));
  EXPECT_THAT(ErrorOf(Policy("fixed", {{"num_verts", 8}})), HasSubstr("has only 4 groups"));
  EXPECT_THAT(ErrorOf(Policy("fixed", {{"num_verts", 3}})), HasSubstr("8 query heads"));
}

TEST(Registry, RefusesBlockMasksWithHoles) {
  std::mt19937 random(3);
  IntRows rows = RandomMask(128, &random);
  EXPECT_THAT(ErrorOf(Policy("block_sparse", {{"block", 128}})), HasSubstr("needs one of"));
  EXPECT_THAT(ErrorOf(Policy("block_sparse", {{"block", 64}, {"rows", rows}})),
              HasSubstr("has 32 rows; the served context needs 64"));
  IntRows no_diagonal = rows;
  no_diagonal[5].pop_back();
  EXPECT_THAT(ErrorOf(Policy("block_sparse", {{"block", 128}, {"rows", no_diagonal}})),
              HasSubstr("lacks column 5 in row 5"));
  IntRows future = rows;
  future[5].push_back(6);
  EXPECT_THAT(ErrorOf(Policy("block_sparse", {{"block", 128}, {"rows", future}})),
              HasSubstr("names column 6 in row 5"));
  IntRows twice = rows;
  twice[5].push_back(5);
  EXPECT_THAT(ErrorOf(Policy("block_sparse", {{"block", 128}, {"rows", twice}})),
              HasSubstr("twice in row 5"));
  EXPECT_THAT(
      ErrorOf(Policy("block_sparse", {{"block", 128}, {"head_rows", std::vector<IntRows>{rows}}})),
      HasSubstr("has 1 masks; the layer has 8"));
}

TEST(Registry, DescribesDifferentFunctionsDifferently) {
  std::vector<std::string> texts;
  for (const Case& c : AllCases()) texts.push_back(Make(c)->Describe());
  std::sort(texts.begin(), texts.end());
  EXPECT_EQ(std::adjacent_find(texts.begin(), texts.end()), texts.end());
}

}  // namespace
}  // namespace longstride::model

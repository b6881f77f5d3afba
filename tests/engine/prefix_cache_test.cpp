#include "server/engine/prefix_cache.h"

#include <random>
#include <set>

#include "gtest/gtest.h"

namespace longstride::engine {
namespace {

using kernels::kNoPage;
using kernels::kPageTokens;

constexpr int64_t kFullBytes = 100, kWindowBytes = 300;

// One group that keeps everything, one with a window of 128 (2 pages and an edge).
struct Fixture {
  explicit Fixture(int64_t budget = 100'000, model::Retention window = {.window = 128},
                   std::vector<int32_t> host_slots = {})
      : retentions{{}, window},
        allocator({{.num_pages = static_cast<int32_t>(budget / kFullBytes), .page_bytes = kFullBytes},
                   {.num_pages = static_cast<int32_t>(budget / kWindowBytes),
                    .page_bytes = kWindowBytes}},
                  budget),
        cache(&allocator, retentions,
              {.key = {.lo = 1, .hi = 2}, .max_cached_bytes = budget, .host_slots = host_slots}) {
    root = cache.RootKey({});
  }
  ~Fixture() {
    cache.Clear();
    EXPECT_EQ(cache.CheckIntegrity(), absl::OkStatus());
    EXPECT_EQ(allocator.cached_bytes(), 0);
  }

  std::vector<Hash128> Keys(const std::vector<int32_t>& tokens, int32_t num_prompt = 1 << 20) {
    std::vector<Hash128> keys;
    cache.ExtendKeys(root, tokens, num_prompt, &keys);
    return keys;
  }
  // Computes a sequence, offers it with snapshots at `cuts` and gives its pages back.
  std::vector<Hash128> Store(const std::vector<int32_t>& tokens, const std::vector<int32_t>& cuts) {
    const std::vector<Hash128> keys = Keys(tokens);
    const auto n = static_cast<int32_t>(keys.size());
    PageTables pages(2);
    for (int32_t p = 0; p < n; ++p) {
      for (int32_t g = 0; g < 2; ++g) pages[static_cast<size_t>(g)].push_back(allocator.Allocate(g));
    }
    const PrefixCache::Source source{
        .keys = keys, .pages = &pages, .num_prompt_tokens = static_cast<int32_t>(tokens.size())};
    cache.Insert(source, 0, n);
    for (const int32_t cut : cuts) cache.Snapshot(source, cut);
    for (int32_t g = 0; g < 2; ++g) {
      for (const int32_t page : pages[static_cast<size_t>(g)]) allocator.Unref(g, page);
    }
    EXPECT_EQ(cache.CheckIntegrity(), absl::OkStatus());
    return keys;
  }

  std::vector<model::Retention> retentions;
  PageAllocator allocator;
  PrefixCache cache;
  Hash128 root;
};

std::vector<int32_t> Tokens(int32_t n, int32_t first = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (int32_t i = 0; i < n; ++i) tokens[static_cast<size_t>(i)] = first + i * 7 % 1000;
  return tokens;
}

TEST(PrefixCache, FindsOnlyWholePagesAndLeavesOneTokenToCompute) {
  Fixture f;
  const auto keys = f.Store(Tokens(64 * 5), {64 * 4, 64 * 5});
  EXPECT_EQ(f.cache.Find(keys, 64 * 5).tokens, 64 * 5);
  EXPECT_EQ(f.cache.Find(keys, 64 * 5 - 1).tokens, 64 * 4);
  auto longer = Tokens(64 * 5 + 40);
  EXPECT_EQ(f.cache.Find(f.Keys(longer), 64 * 5 + 39).tokens, 64 * 5);
}

TEST(PrefixCache, StopsWhereTheTokensDiffer) {
  Fixture f;
  auto tokens = Tokens(64 * 6);
  f.Store(tokens, {64, 64 * 2, 64 * 3, 64 * 6});
  tokens[64 * 3 + 5] += 1;
  EXPECT_EQ(f.cache.Find(f.Keys(tokens), 64 * 6).tokens, 64 * 3);
}

// A windowed group holds only snapshots: the hit is the longest cut point that has what the next
// query sees.
TEST(PrefixCache, HitsWindowedGroupsOnlyAtTheirSnapshots) {
  Fixture f;
  const auto keys = f.Store(Tokens(64 * 20), {64 * 8, 64 * 16});
  EXPECT_EQ(f.cache.Find(keys, 64 * 20).tokens, 64 * 16);
  EXPECT_EQ(f.cache.Find(keys, 64 * 15).tokens, 64 * 8);
  EXPECT_EQ(f.cache.Find(keys, 64 * 7).tokens, 0);
  // 127 keys before the query: two pages of each snapshot.
  EXPECT_EQ(f.allocator.counts(1).cached, 4);
  EXPECT_EQ(f.allocator.counts(0).cached, 20);
}

TEST(PrefixCache, KeepsSinksWithEachSnapshot) {
  Fixture f(100'000, {.window = 64, .sink_tokens = 65});
  const auto keys = f.Store(Tokens(64 * 10), {64 * 8});
  const auto match = f.cache.Find(keys, 64 * 10);
  EXPECT_EQ(match.tokens, 64 * 8);
  std::vector<size_t> held;
  for (size_t p = 0; p < match.nodes.size(); ++p) {
    if (f.cache.page(match.nodes[p], 1) != kNoPage) held.push_back(p);
  }
  EXPECT_EQ(held, (std::vector<size_t>{0, 1, 7}));
}

TEST(PrefixCache, DependsOnTheRoot) {
  Fixture f;
  const auto tokens = Tokens(64 * 2);
  f.Store(tokens, {64, 64 * 2});
  std::vector<Hash128> other;
  const std::string_view parts[] = {"salt"};
  f.cache.ExtendKeys(f.cache.RootKey(parts), tokens, 1 << 20, &other);
  EXPECT_EQ(f.cache.Find(other, 64 * 2).tokens, 0);
}

TEST(PrefixCache, RootKeyTellsPartsApart) {
  Fixture f;
  const std::string_view a[] = {"ab", "c"}, b[] = {"a", "bc"}, c[] = {"abc"};
  EXPECT_FALSE(f.cache.RootKey(a) == f.cache.RootKey(b));
  EXPECT_FALSE(f.cache.RootKey(a) == f.cache.RootKey(c));
}

TEST(PrefixCache, KeysTellNumericsClassesApartWhereTheyDiffer) {
  PageAllocator allocator({{.num_pages = 10, .page_bytes = 100}}, 1000);
  PrefixCache cache(&allocator, {{}}, {.key = {.lo = 5, .hi = 6}, .one_numerics_class = false});
  const auto tokens = Tokens(64 * 3);
  std::vector<Hash128> prompt, mixed, one_prompt, one_mixed;
  cache.ExtendKeys(cache.RootKey({}), tokens, 192, &prompt);
  cache.ExtendKeys(cache.RootKey({}), tokens, 100, &mixed);
  EXPECT_EQ(prompt[0], mixed[0]);
  EXPECT_FALSE(prompt[1] == mixed[1]);
  EXPECT_FALSE(prompt[2] == mixed[2]);
  PrefixCache one(&allocator, {{}}, {.key = {.lo = 5, .hi = 6}, .one_numerics_class = true});
  one.ExtendKeys(one.RootKey({}), tokens, 192, &one_prompt);
  one.ExtendKeys(one.RootKey({}), tokens, 100, &one_mixed);
  EXPECT_EQ(one_prompt, one_mixed);
}

TEST(PrefixCache, GivesUpTheLeastRecentlyUsedEndFirst) {
  Fixture f;
  const auto old_keys = f.Store(Tokens(64 * 4, 1), {64 * 4});
  const auto new_keys = f.Store(Tokens(64 * 4, 2), {64 * 4});
  // One page of the old one: its end, whose window page goes too.
  EXPECT_EQ(f.cache.Free(1), kFullBytes + kWindowBytes);
  EXPECT_EQ(f.cache.Find(old_keys, 64 * 4).tokens, 0);  // the window's snapshot is broken
  EXPECT_EQ(f.cache.Find(new_keys, 64 * 4).tokens, 64 * 4);
  EXPECT_EQ(f.cache.CheckIntegrity(), absl::OkStatus());
  f.cache.Touch(old_keys);
  f.cache.Free(1);
  EXPECT_EQ(f.cache.Find(new_keys, 64 * 4).tokens, 0);  // now the older one
}

TEST(PrefixCache, NeverFreesReferencedPages) {
  Fixture f;
  const auto keys = f.Store(Tokens(64 * 4, 1), {64 * 4});
  const auto match = f.cache.Find(keys, 64 * 4);
  f.allocator.Ref(0, f.cache.page(match.nodes[3], 0));
  const int64_t others = 3 * kFullBytes + 2 * kWindowBytes;
  EXPECT_EQ(f.cache.Free(1 << 30), others);
  EXPECT_EQ(f.allocator.used_bytes(), kFullBytes);
  EXPECT_EQ(f.allocator.cached_bytes(), 0);
  f.allocator.Unref(0, 3);
}

TEST(PrefixCache, DropsIdleWindowsOfAChainThatIsInUse) {
  Fixture f;
  const auto keys = f.Store(Tokens(64 * 8, 1), {64 * 4, 64 * 8});
  const auto match = f.cache.Find(keys, 64 * 8);
  for (const int32_t node : match.nodes) f.allocator.Ref(0, f.cache.page(node, 0));
  EXPECT_EQ(f.cache.Free(1), kWindowBytes);
  EXPECT_EQ(f.cache.num_nodes(), 8);
  EXPECT_EQ(f.cache.Free(1 << 30), 3 * kWindowBytes);
  for (const int32_t node : match.nodes) f.allocator.Unref(0, node);
}

TEST(PrefixCache, StaysWithinItsShare) {
  PageAllocator allocator({{.num_pages = 100, .page_bytes = 100}}, 10'000);
  PrefixCache cache(&allocator, {{}}, {.key = {}, .max_cached_bytes = 500});
  const auto tokens = Tokens(64 * 20);
  std::vector<Hash128> keys;
  cache.ExtendKeys(cache.RootKey({}), tokens, 1 << 20, &keys);
  PageTables pages(1);
  for (int p = 0; p < 20; ++p) pages[0].push_back(allocator.Allocate(0));
  cache.Insert({.keys = keys, .pages = &pages, .num_prompt_tokens = 64 * 20}, 0, 20);
  cache.Trim();
  EXPECT_EQ(cache.num_nodes(), 20);  // in use: not its own
  for (const int32_t page : pages[0]) allocator.Unref(0, page);
  cache.Trim();
  EXPECT_EQ(allocator.cached_bytes(), 500);
  EXPECT_EQ(cache.Find(keys, 64 * 20).tokens, 64 * 5);
}

// Random use against the definition: a prefix is usable if every page that the next query sees is
// there and holds the right content.
TEST(PrefixCache, MatchesAreAlwaysComplete) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const model::Retention window{.window = static_cast<int32_t>(1 + random() % 300),
                                  .sink_tokens = static_cast<int32_t>(random() % 3 * 40)};
    Fixture f(12'000, window);
    std::vector<std::vector<int32_t>> texts;
    for (int i = 0; i < 4; ++i) texts.push_back(Tokens(64 * 12, static_cast<int32_t>(random() % 2)));
    for (auto& text : texts) {
      for (size_t i = random() % text.size(); i < text.size(); ++i) text[i] += 1;
    }
    for (int round = 0; round < 60; ++round) {
      const auto& text = texts[random() % texts.size()];
      const auto pages = static_cast<int32_t>(1 + random() % 12);
      const std::vector<int32_t> tokens(text.begin(), text.begin() + pages * kPageTokens);
      const int64_t need = pages * (kFullBytes + kWindowBytes);
      const int64_t free = f.allocator.budget_bytes() - f.allocator.cached_bytes();
      if (need > free) f.cache.Free(need - free);
      std::vector<int32_t> cuts;
      for (int i = 0; i < 2; ++i) {
        cuts.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(pages) + 1) *
                       kPageTokens);
      }
      const auto keys = f.Store(tokens, cuts);
      const auto match = f.cache.Find(keys, pages * kPageTokens);
      EXPECT_GE(match.tokens, *std::max_element(cuts.begin(), cuts.end()));
      for (size_t p = 0; p < match.nodes.size(); ++p) {
        EXPECT_NE(f.cache.page(match.nodes[p], 0), kNoPage);
        if (PageIsLive(window, match.tokens, static_cast<int64_t>(p))) {
          EXPECT_NE(f.cache.page(match.nodes[p], 1), kNoPage);
        }
      }
      if (random() % 3 == 0) f.cache.Free(static_cast<int64_t>(random() % 3000));
      ASSERT_EQ(f.cache.CheckIntegrity(), absl::OkStatus());
      ASSERT_EQ(f.allocator.CheckIntegrity(), absl::OkStatus());
    }
  }
}

TEST(PrefixCacheInHostMemory, MovesWhatItWouldGiveUpAndBringsItBack) {
  Fixture f(100'000, {.window = 128}, {6, 6});
  std::vector<int32_t> tokens(4 * kPageTokens);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i % 7);
  const std::vector<Hash128> keys = f.Store(tokens, {4 * kPageTokens});
  const PrefixCache::Match before = f.cache.Find(keys, 1 << 20);
  EXPECT_EQ(before.tokens, 4 * kPageTokens);
  f.cache.Free(1 << 20);
  EXPECT_EQ(f.allocator.cached_bytes(), 0);
  EXPECT_EQ(f.cache.host_slots_used(0), 4);
  EXPECT_EQ(f.cache.CheckIntegrity(), absl::OkStatus());
  const std::vector<model::PageCopy> out = f.cache.TakeCopies();
  EXPECT_EQ(std::ssize(out), 4 + f.cache.host_slots_used(1));
  for (const model::PageCopy& copy : out) EXPECT_TRUE(copy.to_host);
  const PrefixCache::Match match = f.cache.Find(keys, 1 << 20);
  ASSERT_EQ(match.tokens, before.tokens);
  // Another prefix takes the slots; pinned ones stay.
  f.cache.Pin(match.nodes);
  std::vector<int32_t> other(3 * kPageTokens, 5);
  f.Store(other, {});
  f.cache.Free(1 << 20);
  EXPECT_EQ(f.cache.Find(keys, 1 << 20).tokens, before.tokens);
  f.cache.Unpin(match.nodes);
  f.cache.TakeCopies();
  for (const int32_t node : match.nodes) {
    for (int32_t g = 0; g < 2; ++g) {
      if (!f.cache.in_host(node, g)) continue;
      const int32_t page = f.allocator.Allocate(g);
      f.cache.Restore(node, g, page);
      f.allocator.Unref(g, page);
    }
  }
  EXPECT_EQ(f.cache.CheckIntegrity(), absl::OkStatus());
  const std::vector<model::PageCopy> back = f.cache.TakeCopies();
  EXPECT_EQ(back.size(), out.size());
  for (const model::PageCopy& copy : back) EXPECT_FALSE(copy.to_host);
  EXPECT_EQ(f.cache.Find(keys, 1 << 20).tokens, before.tokens);
}

TEST(PrefixCacheInHostMemory, GivesUpTheLeastRecentlyUsedWhereSlotsRunOut) {
  Fixture f(100'000, {.window = 128}, {3, 3});
  const std::vector<Hash128> first = f.Store(std::vector<int32_t>(3 * kPageTokens, 1), {});
  const std::vector<Hash128> second = f.Store(std::vector<int32_t>(2 * kPageTokens, 2), {});
  f.cache.Free(1 << 20);
  EXPECT_EQ(f.allocator.cached_bytes(), 0);
  EXPECT_EQ(f.cache.host_slots_used(0), 3);
  EXPECT_EQ(f.cache.num_nodes(), 3);
  EXPECT_EQ(f.cache.CheckIntegrity(), absl::OkStatus());
}

}  // namespace
}  // namespace longstride::engine

#include "server/engine/page_allocator.h"

#include <map>
#include <random>
#include <set>

#include "gtest/gtest.h"
#include "kernels/paged_kv.h"

namespace longstride::engine {
namespace {

using kernels::kNoPage;

TEST(IdSet, AgreesWithAStdSet) {
  std::mt19937_64 random(1);
  for (const int32_t capacity : {1, 63, 64, 65, 4096, 5000}) {
    IdSet ids(capacity, /*full=*/true);
    std::set<int32_t> expected;
    for (int32_t i = 0; i < capacity; ++i) expected.insert(i);
    for (int step = 0; step < 3000; ++step) {
      const auto id = static_cast<int32_t>(random() % static_cast<uint64_t>(capacity));
      if (expected.contains(id)) {
        ids.Erase(id);
        expected.erase(id);
      } else {
        ids.Insert(id);
        expected.insert(id);
      }
      ASSERT_EQ(ids.size(), std::ssize(expected));
      ASSERT_EQ(ids.Lowest(), expected.empty() ? -1 : *expected.begin());
      ASSERT_EQ(ids.Highest(), expected.empty() ? -1 : *expected.rbegin());
    }
  }
}

PageAllocator TwoGroups(int64_t budget) {
  return PageAllocator({{.num_pages = static_cast<int32_t>(budget / 100), .page_bytes = 100},
                        {.num_pages = static_cast<int32_t>(budget / 300), .page_bytes = 300}},
                       budget);
}

TEST(PageAllocator, ReusesTheLowestFreePageThatHasMemory) {
  PageAllocator pages = TwoGroups(1000);
  EXPECT_EQ(pages.Allocate(0), 0);
  EXPECT_EQ(pages.Allocate(0), 1);
  EXPECT_EQ(pages.Allocate(0), 2);
  pages.Unref(0, 1);
  pages.Unref(0, 0);
  EXPECT_EQ(pages.committed_bytes(), 300);
  EXPECT_EQ(pages.Allocate(0), 0);
  EXPECT_EQ(pages.Allocate(0), 1);
  EXPECT_EQ(pages.committed_bytes(), 300);
}

TEST(PageAllocator, HoldsOneBudgetForAllGroups) {
  PageAllocator pages = TwoGroups(1000);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(pages.Allocate(1), i);
  EXPECT_EQ(pages.Allocate(0), 0);
  EXPECT_EQ(pages.Allocate(0), kNoPage);
  EXPECT_EQ(pages.Allocate(1), kNoPage);
  EXPECT_EQ(pages.used_bytes(), 1000);
}

TEST(PageAllocator, TakesMemoryFromAnotherGroupsFreePages) {
  PageAllocator pages = TwoGroups(1000);
  for (int i = 0; i < 10; ++i) pages.Allocate(0);
  EXPECT_EQ(pages.Allocate(1), kNoPage);
  for (int i = 0; i < 4; ++i) pages.Unref(0, i);
  EXPECT_EQ(pages.Allocate(1), 0);
  const auto decommits = pages.TakeDecommits();
  EXPECT_EQ(decommits[0], (std::vector<int32_t>{3, 2, 1}));
  EXPECT_EQ(pages.committed_bytes(), 1000);
  EXPECT_EQ(pages.CheckIntegrity(), absl::OkStatus());
}

TEST(PageAllocator, DoesNotDecommitAPageThatIsInUseAgain) {
  PageAllocator pages = TwoGroups(600);
  for (int i = 0; i < 6; ++i) pages.Allocate(0);
  for (int i = 3; i < 6; ++i) pages.Unref(0, i);
  EXPECT_EQ(pages.Allocate(1), 0);
  pages.Unref(1, 0);
  EXPECT_EQ(pages.Allocate(0), 3);  // and its memory with it
  const auto decommits = pages.TakeDecommits();
  EXPECT_EQ(decommits[0], (std::vector<int32_t>{5, 4}));
  EXPECT_EQ(decommits[1], (std::vector<int32_t>{0}));
}

TEST(PageAllocator, CountsSharedPagesOnceAndCachedOnesApart) {
  PageAllocator pages = TwoGroups(1000);
  const int32_t page = pages.Allocate(1);
  pages.Ref(1, page);
  EXPECT_EQ(pages.used_bytes(), 300);
  pages.SetCached(1, page);
  pages.Unref(1, page);
  pages.Unref(1, page);
  EXPECT_EQ(pages.used_bytes(), 0);
  EXPECT_EQ(pages.cached_bytes(), 300);
  EXPECT_EQ(pages.counts(1).cached, 1);
  pages.Ref(1, page);
  EXPECT_EQ(pages.cached_bytes(), 0);
  pages.ClearCached(1, page);
  pages.Unref(1, page);
  EXPECT_EQ(pages.Allocate(1), page);
}

TEST(PageAllocator, InjectedFailureHappensOnce) {
  PageAllocator pages = TwoGroups(1000);
  pages.FailAllocationAfter(1);
  EXPECT_EQ(pages.Allocate(0), 0);
  EXPECT_EQ(pages.Allocate(0), kNoPage);
  EXPECT_EQ(pages.Allocate(0), 1);
}

// Random operations against a plain map; every transaction is rolled back half of the time.
TEST(PageAllocator, AgreesWithAPlainModelAndRollsBack) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    PageAllocator pages = TwoGroups(2500);
    using Key = std::pair<int32_t, int32_t>;
    std::map<Key, int32_t> refs;
    std::set<Key> cached;
    const auto bytes = [](const Key& key) { return key.first == 0 ? 100 : 300; };
    for (int round = 0; round < 60; ++round) {
      const bool transaction = random() % 2 == 0;
      const auto refs_before = refs;
      if (transaction) pages.Begin();
      for (int i = 0; i < 12; ++i) {
        const auto g = static_cast<int32_t>(random() % 2);
        int64_t in_use = 0;
        std::set<Key> all = cached;
        for (const auto& [key, count] : refs) all.insert(key);
        for (const Key& key : all) in_use += bytes(key);
        const auto pick = [&](const auto& of) {
          auto it = of.begin();
          std::advance(it, static_cast<ptrdiff_t>(random() % of.size()));
          return *it;
        };
        switch (random() % 5) {
          case 0:
          case 1: {
            const int32_t page = pages.Allocate(g);
            ASSERT_EQ(page == kNoPage, in_use + bytes({g, 0}) > 2500);
            if (page != kNoPage) {
              ASSERT_FALSE(all.contains({g, page}));
              refs[{g, page}] = 1;
            }
            break;
          }
          case 2:
            if (!refs.empty()) {
              const Key key = pick(refs).first;
              pages.Unref(key.first, key.second);
              if (--refs[key] == 0) refs.erase(key);
            }
            break;
          case 3:
            if (!all.empty()) {
              const Key key = pick(all);
              pages.Ref(key.first, key.second);
              ++refs[key];
            }
            break;
          default:
            if (transaction) break;  // the cache takes pages between transactions only
            if (!refs.empty() && random() % 2 == 0) {
              const Key key = pick(refs).first;
              if (cached.insert(key).second) pages.SetCached(key.first, key.second);
            } else if (!cached.empty()) {
              const Key key = pick(cached);
              cached.erase(key);
              pages.ClearCached(key.first, key.second);
            }
        }
      }
      if (transaction) {
        if (random() % 2 == 0) {
          pages.Commit();
        } else {
          pages.Rollback();
          refs = refs_before;
        }
      }
      ASSERT_EQ(pages.CheckIntegrity(), absl::OkStatus());
      int64_t used = 0;
      for (const auto& [key, count] : refs) {
        used += bytes(key);
        ASSERT_EQ(pages.refs(key.first, key.second), count);
      }
      ASSERT_EQ(pages.used_bytes(), used);
    }
  }
}

}  // namespace
}  // namespace longstride::engine

#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/cpu/cpu_info.h"

namespace longstride::kernels::cpu {
namespace {

TEST(ThreadPoolTest, EveryThreadRunsOncePerRegion) {
  for (const int threads : {1, 2, 3, 9}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.num_threads(), threads);
    std::vector<int> calls(threads, 0);  // not atomic: the regions must order the accesses
    for (int region = 1; region <= 500; ++region) {
      pool.Run([&](int t) { ++calls[t]; });
      for (const int c : calls) ASSERT_EQ(c, region);
    }
  }
}

TEST(ThreadPoolTest, ParallelForHandsOutEachIndexOnce) {
  // More threads than processors, on purpose.
  ThreadPool pool(8);
  for (const int64_t count : {0, 1, 2, 7, 1000}) {
    std::vector<int> seen(count, 0);
    pool.ParallelFor(count, [&](int64_t i, int thread) {
      ASSERT_GE(thread, 0);
      ASSERT_LT(thread, 8);
      ++seen[i];
    });
    for (const int s : seen) ASSERT_EQ(s, 1);
  }
}

TEST(ThreadPoolTest, WakesWorkersThatWentToSleep) {
  ThreadPool pool(3);
  int64_t sums[3] = {0, 0, 0};
  for (int i = 0; i < 20; ++i) {
    // Longer than workers spin: the caller computes alone in between.
    volatile int64_t busy = 0;
    for (int j = 0; j < 400000; ++j) busy = busy + j;
    pool.Run([&](int t) { sums[t] += 1; });
  }
  for (const int64_t s : sums) EXPECT_EQ(s, 20);
}

TEST(ThreadPoolTest, PoolsComeAndGo) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(4);
    if (i % 2 == 0) pool.Run([](int) {});
  }
}

TEST(CpuInfoTest, ReadsQuotas) {
  EXPECT_EQ(ProcessorsOfQuota("max 100000"), 0);
  EXPECT_EQ(ProcessorsOfQuota("200000 100000"), 2);
  EXPECT_EQ(ProcessorsOfQuota("150000 100000"), 2);
  EXPECT_EQ(ProcessorsOfQuota("10000 100000"), 1);
  EXPECT_EQ(ProcessorsOfQuota(""), 0);
  EXPECT_EQ(ProcessorsOfQuota("garbage"), 0);
  EXPECT_EQ(ProcessorsOfQuota("100000 0"), 0);
  EXPECT_GE(AvailablePhysicalCores(), 1);
}

}  // namespace
}  // namespace longstride::kernels::cpu

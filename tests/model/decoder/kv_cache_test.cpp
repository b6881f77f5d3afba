#include "model/kv_cache.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference_backend.h"

namespace longstride::model {
namespace {

using ::testing::HasSubstr;

std::vector<CacheGroup> Groups(kernels::KvDType dtype) {
  std::vector<CacheGroup> groups = {
      {.name = "full", .retention = {}, .layers = {1, 3}, .num_kv_heads = 2, .head_dim = 64},
      {.name = "window",
       .retention = {.window = 512},
       .layers = {0, 2, 4},
       .num_kv_heads = 1,
       .head_dim = 128},
      {.name = "ranked",
       .retention = {},
       .layers = {5},
       .num_kv_heads = 3,
       .head_dim = 40,
       .summaries = true},
  };
  for (CacheGroup& g : groups) {
    g.page_bytes = static_cast<int64_t>(g.layers.size()) * LayerPageBytes(g, dtype);
  }
  return groups;
}

struct Fixture {
  std::unique_ptr<kernels::Backend> backend =
      *kernels::MakeBackend(kernels::BackendKind::kReference, {});
  std::unique_ptr<KvCache> cache;
  explicit Fixture(kernels::KvDType dtype, int64_t budget = 4 << 20,
                   std::unique_ptr<kernels::Backend> other = nullptr) {
    if (other != nullptr) backend = std::move(other);
    cache =
        *KvCache::Create(backend.get(), Groups(dtype), {.dtype = dtype, .budget_bytes = budget});
  }
  // Part 0: K, 1: V, 2: summaries.
  char* Page(int32_t group, int32_t layer, int part, int32_t page) {
    const kernels::PagedKv view = cache->View(group, layer);
    void* const parts[] = {view.k, view.v, view.summaries};
    return static_cast<char*>(parts[part]) + page * view.page_stride;
  }
  size_t PartBytes(int32_t group, int32_t layer, int part) {
    const kernels::PagedKv view = cache->View(group, layer);
    return static_cast<size_t>(
        view.num_heads * (part < 2 ? view.head_stride
                                   : kernels::PageSummaryBytes(view.dtype, view.head_dim)));
  }
  int NumParts(int32_t group) const {
    return cache->groups()[static_cast<size_t>(group)].summaries ? 3 : 2;
  }
};

class KvCacheTest : public ::testing::TestWithParam<kernels::KvDType> {};

// Every (group, layer, part, page) has bytes of its own inside the reservation.
TEST_P(KvCacheTest, PagesDoNotOverlap) {
  Fixture f(GetParam());
  for (int32_t g = 0; g < 3; ++g) {
    const CacheGroup& group = f.cache->groups()[static_cast<size_t>(g)];
    EXPECT_EQ(f.cache->num_pages(g), (4 << 20) / group.page_bytes);
    unsigned char tag = 1;
    const kernels::PagedKv view = f.cache->View(g, group.layers[0]);
    EXPECT_EQ(view.page_stride * static_cast<int64_t>(group.layers.size()), group.page_bytes);
    for (const bool check : {false, true}) {
      tag = 1;
      for (const int32_t layer : group.layers) {
        for (int part = 0; part < f.NumParts(g); ++part) {
          const size_t bytes = f.PartBytes(g, layer, part);
          for (int32_t p = 0; p < f.cache->num_pages(g); ++p, ++tag) {
            char* page = f.Page(g, layer, part, p);
            if (!check) {
              std::memset(page, tag, bytes);
            } else {
              for (size_t b = 0; b < bytes; b += bytes / 7) {
                ASSERT_EQ(static_cast<unsigned char>(page[b]), tag);
              }
              ASSERT_EQ(static_cast<unsigned char>(page[bytes - 1]), tag);
            }
          }
        }
      }
    }
  }
}

TEST_P(KvCacheTest, CopiesAPageOfEveryLayer) {
  Fixture f(GetParam());
  for (int32_t g = 0; g < 3; ++g) {
    for (const int32_t layer : f.cache->groups()[static_cast<size_t>(g)].layers) {
      for (int part = 0; part < f.NumParts(g); ++part) {
        std::memset(f.Page(g, layer, part, 3), 10 * part + layer + 1, f.PartBytes(g, layer, part));
      }
    }
    ASSERT_TRUE(f.cache->CopyPage(g, 3, 1).ok());
    for (const int32_t layer : f.cache->groups()[static_cast<size_t>(g)].layers) {
      for (int part = 0; part < f.NumParts(g); ++part) {
        const size_t bytes = f.PartBytes(g, layer, part);
        EXPECT_EQ(f.Page(g, layer, part, 1)[0], 10 * part + layer + 1);
        EXPECT_EQ(f.Page(g, layer, part, 1)[bytes - 1], 10 * part + layer + 1);
        EXPECT_EQ(f.Page(g, layer, part, 2)[0], 0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, KvCacheTest,
                         ::testing::Values(kernels::KvDType::kF32, kernels::KvDType::kF16,
                                           kernels::KvDType::kBF16, kernels::KvDType::kQ8,
                                           kernels::KvDType::kFp8),
                         [](const auto& info) { return kernels::KvDTypeName(info.param); });

TEST(KvCache, DecommittedPagesReadAsZerosAndOthersStay) {
  Fixture f(kernels::KvDType::kF16);  // 32 KiB a page: whole system pages
  const auto bytes = static_cast<size_t>(f.cache->View(0, 1).page_stride);
  for (int32_t p = 0; p < 6; ++p) std::memset(f.Page(0, 3, 0, p), 7, bytes);
  const std::vector<int32_t> pages = {1, 2, 4};
  f.cache->Decommit(0, pages);
  for (int32_t p = 0; p < 6; ++p) {
    const int expected = p == 1 || p == 2 || p == 4 ? 0 : 7;
    EXPECT_EQ(f.Page(0, 3, 0, p)[0], expected) << p;
    EXPECT_EQ(f.Page(0, 3, 0, p)[bytes - 1], expected) << p;
  }
}

TEST(KvCache, ALatentIsStoredOnce) {
  CacheGroup group = {
      .name = "full", .layers = {0, 1}, .num_kv_heads = 1, .head_dim = 576, .latent = true};
  constexpr auto kType = kernels::KvDType::kBF16;
  EXPECT_EQ(LayerPageBytes(group, kType), 64 * 576 * 2);
  group.summaries = true;
  EXPECT_EQ(LayerPageBytes(group, kType), (64 + 3) * 576 * 2);
  group.page_bytes = 2 * LayerPageBytes(group, kType);
  const auto backend = *kernels::MakeBackend(kernels::BackendKind::kReference, {});
  const auto cache = *KvCache::Create(backend.get(), {group},
                                      {.dtype = kType, .budget_bytes = 10 * group.page_bytes});
  const kernels::PagedKv view = cache->View(0, 1);
  EXPECT_EQ(view.k, view.v);
  EXPECT_EQ(static_cast<char*>(view.summaries) - static_cast<char*>(view.k), 64 * 576 * 2);
  EXPECT_EQ(view.page_stride, (64 + 3) * 576 * 2);
}

// Behind everything else of a page, with every type of cache; counted in the budget.
TEST_P(KvCacheTest, IndexKeysLieBesideTheLatents) {
  const kernels::KvDType dtype = GetParam();
  for (const bool summaries : {false, true}) {
    CacheGroup group = {.name = "full_index",
                        .layers = {0, 2},
                        .num_kv_heads = 1,
                        .head_dim = 40,
                        .summaries = summaries,
                        .latent = true,
                        .index_dim = 14};
    const int64_t index_bytes = kernels::KvHeadPageBytes(dtype, 14);
    CacheGroup without = group;
    without.index_dim = 0;
    EXPECT_EQ(LayerPageBytes(group, dtype), LayerPageBytes(without, dtype) + index_bytes);
    group.page_bytes = 2 * LayerPageBytes(group, dtype);
    const auto backend = *kernels::MakeBackend(kernels::BackendKind::kReference, {});
    const auto cache = *KvCache::Create(backend.get(), {group},
                                        {.dtype = dtype, .budget_bytes = 4 * group.page_bytes});
    ASSERT_EQ(cache->num_pages(0), 4);
    const std::vector<int32_t> pages = {0, 1, 2, 3};
    ASSERT_TRUE(cache->Commit(0, pages).ok());
    for (const int32_t layer : {0, 2}) {
      const kernels::PagedKv view = cache->View(0, layer);
      const kernels::PagedKv index = cache->IndexView(0, layer);
      EXPECT_EQ(index.k, index.v);
      EXPECT_EQ(index.num_heads, 1);
      EXPECT_EQ(index.head_dim, 14);
      EXPECT_EQ(index.dtype, dtype);
      EXPECT_EQ(index.page_stride, view.page_stride);
      EXPECT_EQ(index.num_pages, view.num_pages);
      EXPECT_EQ(index.summaries, nullptr);
      EXPECT_EQ(index.k_scale, 1.0f);
      // It ends where the page ends, and begins behind latents and summaries.
      const int64_t begin = static_cast<char*>(index.k) - static_cast<char*>(view.k);
      EXPECT_EQ(begin + index_bytes, view.page_stride);
      EXPECT_GE(begin, kernels::KvHeadPageBytes(dtype, 40) +
                           (summaries ? kernels::PageSummaryBytes(dtype, 40) : 0));
      EXPECT_EQ(begin % 4, 0);
    }
  }
}

TEST(KvCache, RefusesABudgetBelowOnePageOfEachGroup) {
  const auto backend = *kernels::MakeBackend(kernels::BackendKind::kReference, {});
  const auto cache =
      KvCache::Create(backend.get(), Groups(kernels::KvDType::kF16), {.budget_bytes = 1000});
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("1000 bytes"));
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("195328"));
}

TEST(PagesNeeded, CountsWhatAWindowHolds) {
  CacheGroup group;
  EXPECT_EQ(PagesNeeded(group, 0, 1), 1);
  EXPECT_EQ(PagesNeeded(group, 30000, 512), (30512 + 63) / 64);
  group.retention = {.window = 512};
  EXPECT_EQ(PagesNeeded(group, 0, 512), 8);
  EXPECT_LE(PagesNeeded(group, 30000, 1), 9);
  EXPECT_LE(PagesNeeded(group, 30000, 512), 17);
  group.retention = {.window = 512, .sink_tokens = 4};
  EXPECT_LE(PagesNeeded(group, 30000, 1), 10);
}

// Counts what is committed, page by page.
class CountingReservation : public kernels::Buffer::Deleter {
 public:
  void Free(void* data, int64_t bytes) override { std::free(data); }
  absl::Status Commit(void* data, int64_t bytes) override {
    EXPECT_TRUE(parts.insert(data).second) << "committed twice";
    return parts.size() > most ? absl::ResourceExhaustedError("no memory left") : absl::OkStatus();
  }
  void Decommit(void* data, int64_t bytes) override { EXPECT_EQ(parts.erase(data), 1u); }
  std::set<void*> parts;
  size_t most = 1000;
};

class CountingBackend : public kernels::ReferenceBackend {
 public:
  absl::StatusOr<kernels::Buffer> Reserve(int64_t bytes) override {
    return kernels::Buffer(std::malloc(static_cast<size_t>(bytes)), bytes, kernels::Device::kCpu,
                           reservation);
  }
  std::shared_ptr<CountingReservation> reservation = std::make_shared<CountingReservation>();
};

TEST(KvCache, CommitsEachPageOnceUntilItIsGivenBack) {
  CountingBackend backend;
  const auto cache = *KvCache::Create(&backend, Groups(kernels::KvDType::kF16),
                                      {.dtype = kernels::KvDType::kF16, .budget_bytes = 4 << 20});
  const std::vector<int32_t> pages = {3, kernels::kNoPage, 3, 1};
  ASSERT_TRUE(cache->Commit(0, pages).ok());
  EXPECT_EQ(backend.reservation->parts.size(), 4u);  // of two layers
  ASSERT_TRUE(cache->Commit(0, pages).ok());
  ASSERT_TRUE(cache->Commit(1, pages).ok());
  EXPECT_EQ(backend.reservation->parts.size(), 10u);
  const std::vector<int32_t> gone = {3};
  cache->Decommit(0, gone);
  EXPECT_EQ(backend.reservation->parts.size(), 8u);
  ASSERT_TRUE(cache->Commit(0, pages).ok());
  EXPECT_EQ(backend.reservation->parts.size(), 10u);
  backend.reservation->most = 11;
  const std::vector<int32_t> more = {5};
  EXPECT_EQ(cache->Commit(0, more).code(), absl::StatusCode::kResourceExhausted);
}

TEST(KvCache, TakesAnotherBudget) {
  Fixture f(kernels::KvDType::kF16);
  const int32_t before = f.cache->num_pages(0);
  ASSERT_TRUE(f.cache->SetBudget(f.backend.get(), 8 << 20).ok());
  EXPECT_EQ(f.cache->num_pages(0), 2 * before);
  EXPECT_EQ(f.cache->options().budget_bytes, 8 << 20);
  EXPECT_EQ(f.cache->SetBudget(f.backend.get(), 100).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(KvCache, PagesGoToHostSlotsAndComeBack) {
  for (const auto dtype : {kernels::KvDType::kF16, kernels::KvDType::kQ8, kernels::KvDType::kFp8}) {
    Fixture f(dtype);
    ASSERT_TRUE(f.cache->AllocateHostSlots(f.backend.get(), 4 << 20).ok());
    int64_t bytes = 0;
    for (int32_t g = 0; g < 3; ++g) {
      EXPECT_GE(f.cache->num_host_slots(g), 2);
      bytes += f.cache->num_host_slots(g) * f.cache->groups()[static_cast<size_t>(g)].page_bytes;
    }
    EXPECT_LE(bytes, 4 << 20);
    std::vector<PageCopy> out, back;
    const auto fill = [&](int32_t page, int value) {
      for (int32_t g = 0; g < 3; ++g) {
        for (const int32_t layer : f.cache->groups()[static_cast<size_t>(g)].layers) {
          for (int part = 0; part < f.NumParts(g); ++part) {
            std::memset(f.Page(g, layer, part, page), value + g * 20 + layer * 3 + part,
                        f.PartBytes(g, layer, part));
          }
        }
      }
    };
    fill(0, 1);
    fill(1, 100);
    for (int32_t g = 0; g < 3; ++g) {
      for (int32_t page : {0, 1}) {
        out.push_back({.group = g, .page = page, .slot = 1 - page, .to_host = true});
        back.push_back({.group = g, .page = 3 - page, .slot = 1 - page});
      }
    }
    ASSERT_TRUE(f.cache->CopyPages(f.backend.get(), out).ok());
    fill(0, 0);
    fill(1, 0);
    ASSERT_TRUE(f.cache->CopyPages(f.backend.get(), back).ok());
    for (int32_t g = 0; g < 3; ++g) {
      for (const int32_t layer : f.cache->groups()[static_cast<size_t>(g)].layers) {
        for (int part = 0; part < f.NumParts(g); ++part) {
          for (const int32_t page : {0, 1}) {
            const std::vector<char> expected(
                f.PartBytes(g, layer, part),
                static_cast<char>((page == 0 ? 1 : 100) + g * 20 + layer * 3 + part));
            EXPECT_EQ(std::memcmp(f.Page(g, layer, part, 3 - page), expected.data(),
                                  expected.size()),
                      0);
          }
        }
      }
    }
  }
}

// Keys written on the device come back to other pages, past memory that was given back meanwhile.
TEST(KvCache, PagesLeaveAGpuAndComeBack) {
  auto made = kernels::MakeBackend(kernels::BackendKind::kCuda, {});
  if (!made.ok()) GTEST_SKIP() << "no CUDA device can be used";
  Fixture f(kernels::KvDType::kF16, 64 << 20, *std::move(made));
  ASSERT_TRUE(f.cache->AllocateHostSlots(f.backend.get(), 16 << 20).ok());
  constexpr int64_t kWidth = 2 * 64;
  auto buffer = f.backend->Allocate(kernels::kPageTokens * kWidth * 4);
  auto host = f.backend->AllocateHost(kernels::kPageTokens * kWidth * 4);
  ASSERT_TRUE(buffer.ok() && host.ok());
  for (int64_t i = 0; i < kernels::kPageTokens * kWidth; ++i) {
    host->as<float>()[i] = static_cast<float>(i % 2039);
  }
  const kernels::ByteCopy up = {host->data(), buffer->data(), host->bytes()};
  ASSERT_TRUE(f.backend->CopyBytes({&up, 1}).ok());
  const int64_t shape[] = {kernels::kPageTokens, 2, 64};
  const kernels::TensorView rows = kernels::TensorView::Contiguous(
      buffer->data(), kernels::DType::kF32, shape, 3, kernels::Device::kCuda);
  std::vector<int32_t> ids(kernels::kPageTokens, 3), slots(kernels::kPageTokens);
  for (int32_t i = 0; i < kernels::kPageTokens; ++i) slots[static_cast<size_t>(i)] = i;
  ASSERT_TRUE(f.cache->Commit(0, ids).ok());
  ASSERT_TRUE(f.backend->BeginStep({}).ok());
  ASSERT_TRUE(f.backend->KvWrite({.k = rows, .v = rows, .cache = f.cache->View(0, 1),
                                  .page_ids = ids.data(), .slots = slots.data()}).ok());
  ASSERT_TRUE(f.backend->EndStep().ok());
  const auto contents = [&](int32_t page) {
    std::vector<char> bytes(f.PartBytes(0, 1, 0));
    auto to = f.backend->AllocateHost(static_cast<int64_t>(bytes.size()));
    const kernels::ByteCopy down = {f.Page(0, 1, 0, page), to->data(), to->bytes()};
    EXPECT_TRUE(f.backend->CopyBytes({&down, 1}).ok());
    std::memcpy(bytes.data(), to->data(), bytes.size());
    return bytes;
  };
  const std::vector<char> before = contents(3);
  EXPECT_NE(before, std::vector<char>(before.size(), before[0]));
  const PageCopy out = {.group = 0, .page = 3, .slot = 1, .to_host = true};
  ASSERT_TRUE(f.cache->CopyPages(f.backend.get(), {&out, 1}).ok());
  f.cache->Decommit(0, {&ids[0], 1});
  const PageCopy back = {.group = 0, .page = 17, .slot = 1, .to_host = false};
  ASSERT_TRUE(f.cache->CopyPages(f.backend.get(), {&back, 1}).ok());
  EXPECT_EQ(contents(17), before);
}

TEST(KvCache, SaysWhenNoSlotFits) {
  Fixture f(kernels::KvDType::kF16);
  EXPECT_THAT(std::string(f.cache->AllocateHostSlots(f.backend.get(), 1000).message()),
              HasSubstr("raise it, or leave it out"));
}

}  // namespace
}  // namespace longstride::model

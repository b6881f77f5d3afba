#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "config/base/check.h"

namespace longstride::model {
namespace {

// Page ids are int32 and -1 means none.
constexpr int64_t kMaxPages = (int64_t{1} << 31) - 2;

}  // namespace

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(kernels::Backend* backend,
                                                         std::vector<CacheGroup> groups,
                                                         const KvCacheOptions& options) {
  int64_t least = 0;
  for (const CacheGroup& group : groups) {
    LS_CHECK_EQ(group.page_bytes, static_cast<int64_t>(group.layers.size()) *
                                      LayerPageBytes(group, options.dtype));
    least += group.page_bytes;
  }
  if (options.budget_bytes < least) {
    return absl::ResourceExhaustedError(
        StrCat("the KV cache may take ", options.budget_bytes, " bytes, but one page (",
               kernels::kPageTokens, " tokens) of each of the ", groups.size(),
               " cache groups takes ", least, "; raise the memory for the KV cache."));
  }
  std::unique_ptr<KvCache> cache(new KvCache());
  cache->options_ = options;
  for (const CacheGroup& group : groups) {
    const int64_t pages = std::min(options.budget_bytes / group.page_bytes, kMaxPages);
    ASSIGN_OR_RETURN(kernels::Buffer memory, backend->Reserve(pages * group.page_bytes));
    cache->memory_.push_back(std::move(memory));
    cache->num_pages_.push_back(static_cast<int32_t>(pages));
    cache->committed_.emplace_back(static_cast<size_t>(pages), false);
    const int32_t last_layer = *std::max_element(group.layers.begin(), group.layers.end());
    std::vector<int32_t> slots(static_cast<size_t>(last_layer) + 1, -1);
    for (size_t i = 0; i < group.layers.size(); ++i) {
      slots[static_cast<size_t>(group.layers[i])] = static_cast<int32_t>(i);
    }
    cache->layer_slot_.push_back(std::move(slots));
  }
  cache->groups_ = std::move(groups);
  return cache;
}

absl::Status KvCache::SetBudget(kernels::Backend* backend, int64_t bytes) {
  KvCacheOptions options = options_;
  options.budget_bytes = bytes;
  ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> made, Create(backend, groups_, options));
  *this = std::move(*made);
  return absl::OkStatus();
}

int64_t KvCache::LayerBytes(size_t group) const { return PageStride(group) * num_pages_[group]; }

int64_t KvCache::PageStride(size_t group) const {
  return LayerPageBytes(groups_[group], options_.dtype);
}

kernels::PagedKv KvCache::View(int32_t group, int32_t layer) const {
  const auto g = static_cast<size_t>(group);
  const auto l = static_cast<size_t>(layer);
  LS_CHECK(g < groups_.size() && l < layer_slot_[g].size() && layer_slot_[g][l] >= 0);
  char* base = memory_[g].as<char>() + layer_slot_[g][l] * LayerBytes(g);
  const int64_t head_bytes = kernels::KvHeadPageBytes(options_.dtype, groups_[g].head_dim);
  const int64_t k_bytes = head_bytes * groups_[g].num_kv_heads;
  return {
      .k = base,
      .v = groups_[g].latent ? base : base + k_bytes,
      .page_stride = PageStride(g),
      .head_stride = head_bytes,
      .num_pages = num_pages_[g],
      .num_heads = groups_[g].num_kv_heads,
      .head_dim = groups_[g].head_dim,
      .dtype = options_.dtype,
      .segment_means = groups_[g].segment_means,
      .value_mean = groups_[g].value_mean,
      .summaries = groups_[g].summaries ? base + (groups_[g].latent ? 1 : 2) * k_bytes : nullptr};
}

kernels::PagedKv KvCache::IndexView(int32_t group, int32_t layer) const {
  const CacheGroup& g = groups_[static_cast<size_t>(group)];
  LS_CHECK(g.index_dim > 0);
  kernels::PagedKv view = View(group, layer);
  const int64_t bytes = kernels::KvHeadPageBytes(options_.dtype, g.index_dim);
  view.k = view.v = static_cast<char*>(view.k) + view.page_stride - bytes;
  view.head_stride = bytes;
  view.num_heads = 1;
  view.head_dim = g.index_dim;
  view.segment_means = view.value_mean = false;
  view.summaries = nullptr;
  return view;
}

absl::Status KvCache::Commit(int32_t group, std::span<const int32_t> pages) {
  const auto g = static_cast<size_t>(group);
  const int64_t stride = PageStride(g);
  const auto layers = static_cast<int64_t>(groups_[g].layers.size());
  std::vector<bool>& committed = committed_[g];
  for (const int32_t page : pages) {
    if (page == kernels::kNoPage || committed[static_cast<size_t>(page)]) continue;
    for (int64_t layer = 0; layer < layers; ++layer) {
      RETURN_IF_ERROR(memory_[g].Commit(layer * LayerBytes(g) + page * stride, stride));
    }
    committed[static_cast<size_t>(page)] = true;
  }
  return absl::OkStatus();
}

void KvCache::Decommit(int32_t group, std::span<const int32_t> pages) {
  const auto g = static_cast<size_t>(group);
  const int64_t stride = PageStride(g);
  const auto layers = static_cast<int64_t>(groups_[g].layers.size());
  for (size_t begin = 0; begin < pages.size();) {
    // Neighbouring pages go in one call.
    size_t end = begin + 1;
    while (end < pages.size() && pages[end] == pages[end - 1] + 1) ++end;
    LS_CHECK(pages[begin] >= 0 && pages[end - 1] < num_pages_[g]);
    std::fill(committed_[g].begin() + pages[begin], committed_[g].begin() + pages[end - 1] + 1,
              false);
    for (int64_t layer = 0; layer < layers; ++layer) {
      memory_[g].Decommit(layer * LayerBytes(g) + pages[begin] * stride,
                          static_cast<int64_t>(end - begin) * stride);
    }
    begin = end;
  }
}

absl::Status KvCache::AllocateHostSlots(kernels::Backend* backend, int64_t bytes) {
  constexpr int64_t kInterval = 2048 / kernels::kPageTokens;
  std::vector<int64_t> pages;  // of each group, every kInterval pages of a prefix
  int64_t unit = 0;
  for (const CacheGroup& group : groups_) {
    const Retention& r = group.retention;
    int64_t tokens = r.window > 0 ? int64_t{r.window} + r.sink_tokens : 0;
    if (r.chunk > 0) tokens = tokens > 0 ? std::min<int64_t>(tokens, r.chunk) : r.chunk;
    pages.push_back(r.keeps_all() ? kInterval
                                  : std::min(kInterval, tokens / kernels::kPageTokens + 2));
    unit += pages.back() * group.page_bytes;
  }
  std::vector<int32_t> slots;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const double share = static_cast<double>(pages[g]) / static_cast<double>(unit);
    slots.push_back(static_cast<int32_t>(std::min<int64_t>(
        kMaxPages, static_cast<int64_t>(share * static_cast<double>(bytes)))));
    if (slots.back() == 0) {
      return absl::InvalidArgumentError(
          StrCat("host memory for the KV cache is ", bytes, " bytes, but ", kInterval,
                 " pages and their windows take ", unit, "; raise it, or leave it out."));
    }
  }
  std::vector<kernels::Buffer> memory;
  for (size_t g = 0; g < groups_.size(); ++g) {
    ASSIGN_OR_RETURN(kernels::Buffer part,
                     backend->AllocateHost(slots[g] * groups_[g].page_bytes));
    memory.push_back(std::move(part));
  }
  host_ = std::move(memory);
  host_slots_ = std::move(slots);
  return absl::OkStatus();
}

absl::Status KvCache::CopyPages(kernels::Backend* backend, std::span<const PageCopy> copies) {
  std::vector<kernels::ByteCopy> parts;
  for (const PageCopy& copy : copies) {
    const auto g = static_cast<size_t>(copy.group);
    LS_CHECK(copy.page >= 0 && copy.page < num_pages_[g]);
    LS_CHECK(copy.slot >= 0 && copy.slot < host_slots_[g]);
    if (!copy.to_host) RETURN_IF_ERROR(Commit(copy.group, {&copy.page, 1}));
    const int64_t stride = PageStride(g);
    char* page = memory_[g].as<char>() + copy.page * stride;
    char* slot = host_[g].as<char>() + copy.slot * groups_[g].page_bytes;
    for (size_t layer = 0; layer < groups_[g].layers.size(); ++layer) {
      parts.push_back(copy.to_host ? kernels::ByteCopy{page, slot, stride}
                                   : kernels::ByteCopy{slot, page, stride});
      page += LayerBytes(g);
      slot += stride;
    }
  }
  return backend->CopyBytes(parts);
}

absl::Status KvCache::CopyPage(int32_t group, int32_t from, int32_t to) {
  const auto g = static_cast<size_t>(group);
  LS_CHECK(g < groups_.size());
  LS_CHECK(from >= 0 && from < num_pages_[g] && to >= 0 && to < num_pages_[g] && from != to);
  if (memory_[g].device() != kernels::Device::kCpu) {
    return absl::UnimplementedError("pages are copied in host memory only");
  }
  const int64_t stride = PageStride(g);
  const auto layers = static_cast<int64_t>(groups_[g].layers.size());
  for (int64_t layer = 0; layer < layers; ++layer) {
    char* base = memory_[g].as<char>() + layer * LayerBytes(g);
    std::memcpy(base + to * stride, base + from * stride, static_cast<size_t>(stride));
  }
  return absl::OkStatus();
}

}  // namespace longstride::model

// Owns the physical pages of every cache group. Address space for each group's worst case is
// reserved up front; memory is touched only within the engine's byte budget, so groups of different
// page sizes share one budget without a fixed split (docs/decisions/0002).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "config/base/status.h"
#include "kernels/backend.h"
#include "model/cache_group.h"

namespace longstride::model {

struct KvCacheOptions {
  kernels::KvDType dtype = kernels::KvDType::kF16;
  int64_t budget_bytes = 0;  // what all groups' touched pages may take together
};

class KvCache {
 public:
  // Reserves budget_bytes / page_bytes pages for every group. RESOURCE_EXHAUSTED names need and
  // have where not even one page of each group fits.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(kernels::Backend* backend,
                                                         std::vector<CacheGroup> groups,
                                                         const KvCacheOptions& options);

  // Another budget, and room for as many pages. REQUIRES: no page is committed. Errors: Create's.
  absl::Status SetBudget(kernels::Backend* backend, int64_t bytes);

  const std::vector<CacheGroup>& groups() const { return groups_; }
  int32_t num_pages(int32_t group) const { return num_pages_[group]; }
  const KvCacheOptions& options() const { return options_; }

  // The cache of one layer of the group, as kernels see it. `layer` is the model's layer index and
  // must belong to the group.
  kernels::PagedKv View(int32_t group, int32_t layer) const;
  // The index keys of one layer of a group that has them, as keys (and values) of one KV head.
  kernels::PagedKv IndexView(int32_t group, int32_t layer) const;

  // Puts memory behind pages that are about to be written, where they have none yet; kNoPage is
  // skipped. RESOURCE_EXHAUSTED: the device has none left.
  absl::Status Commit(int32_t group, std::span<const int32_t> pages);
  // Gives the memory of free pages back to the system. Contents are lost.
  void Decommit(int32_t group, std::span<const int32_t> pages);
  // Slots for pages' contents in host memory, `bytes` of it for all groups: as many for every group as
  // prefixes of one length need, of windowed groups one window every 2,048 tokens.
  // INVALID_ARGUMENT: not one of each fits. RESOURCE_EXHAUSTED: the system has less.
  absl::Status AllocateHostSlots(kernels::Backend* backend, int64_t bytes);
  int32_t num_host_slots(int32_t group) const {
    return host_slots_.empty() ? 0 : host_slots_[static_cast<size_t>(group)];
  }
  // Between pages and slots; no page or slot is named twice. Puts memory behind pages that are written.
  // Done when it returns.
  absl::Status CopyPages(kernels::Backend* backend, std::span<const PageCopy> copies);
  // Copies a page's contents within a group (copy-on-write).
  absl::Status CopyPage(int32_t group, int32_t from, int32_t to);

 private:
  KvCache() = default;
  // Bytes of one page of one layer, and of all its pages.
  int64_t PageStride(size_t group) const;
  int64_t LayerBytes(size_t group) const;

  std::vector<CacheGroup> groups_;
  KvCacheOptions options_;
  std::vector<int32_t> num_pages_;
  std::vector<std::vector<int32_t>> layer_slot_;  // [group][layer] -> slot in the group, or -1
  std::vector<std::vector<bool>> committed_;      // [group][page]
  // [group]: [layer][page], a page being K [head][64][head_dim], V the same (not in a latent group,
  // whose K is V), where the group has summaries [head][SummaryRows][head_dim], and where it has
  // index keys [64][index_dim].
  std::vector<kernels::Buffer> memory_;
  std::vector<int32_t> host_slots_;    // [group]
  std::vector<kernels::Buffer> host_;  // [group]: [slot][layer], a layer's part as in a page
};

}  // namespace longstride::model

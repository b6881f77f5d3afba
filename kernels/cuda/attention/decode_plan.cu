// Cuts the lists of a decode step into parts, and merges what the parts gave.
#include "kernels/cuda/attention/decode_params.h"
#include "kernels/cuda/device/math.cuh"

namespace longstride::kernels::cuda {
namespace {

constexpr int kPlanThreads = 1024;
constexpr int kPlanBlocks = 16;

struct PlanParams {
  DecodeScratch scratch;
  DecodeLayout layout;
  KvSelection selection;
  const int32_t* kv_lens;
  int32_t max_list_pages;
  int32_t pages_per_entry;
  int32_t query_heads_per_kv_head;
};

__device__ int ListHeadOf(const KvSelection& s, int item_head) {
  return s.list_heads == ListHeads::kShared ? 0 : item_head;
}

__device__ int32_t ListPages(const PlanParams& p, int32_t item) {
  const int32_t tile = item / p.layout.item_heads;
  const int list_head = ListHeadOf(p.selection, item % p.layout.item_heads);
  const int64_t list = static_cast<int64_t>(list_head) * p.selection.num_tiles + tile;
  return max(0, p.selection.list_count[list]) * p.pages_per_entry;
}

// Heads that share a list take turns unit by unit, so that what is read at a time lies together.
__device__ void WriteUnits(const PlanParams& p, int32_t item, int32_t pages, int32_t first) {
  const int32_t tile_index = item / p.layout.item_heads;
  const int item_head = item % p.layout.item_heads;
  const QueryTile tile = p.selection.tiles[tile_index];
  DecodeUnit u;
  u.list_head = ListHeadOf(p.selection, item_head);
  const int64_t list = static_cast<int64_t>(u.list_head) * p.selection.num_tiles + tile_index;
  u.sequence = tile.sequence;
  u.row_begin = tile.row_begin;
  u.num_rows = tile.num_rows;
  u.first_position = tile.first_position;
  u.kv_len = p.kv_lens[tile.sequence];
  u.head = item_head * p.layout.heads_per_item;
  u.kv_head = u.head / p.query_heads_per_kv_head;
  u.reserved = 0;
  const int64_t begin = p.selection.list_begin[list] * p.pages_per_entry;
  const int32_t part = p.layout.parts.Pages(pages), count = p.layout.parts.Count(pages);
  int32_t n = p.layout.shared_lists ? first - item_head * count + item_head : first;
  for (int32_t at = 0; at < pages; at += part, n += p.layout.part_stride()) {
    u.list_at = begin + at;
    u.num_pages = min(part, pages - at);
    p.scratch.units[n] = u;
  }
}

// Every block sums over all items, which is cheap, and writes the units of its share.
__global__ void __launch_bounds__(kPlanThreads) DecodePlanKernel(const PlanParams p) {
  __shared__ int32_t sums[kPlanThreads];
  __shared__ uint32_t cut;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) cut = 0;
  __syncthreads();
  const int32_t run = (p.layout.items + kPlanThreads - 1) / kPlanThreads;
  const int32_t begin = min(p.layout.items, thread * run), end = min(p.layout.items, begin + run);
  int32_t mine = 0;
  for (int32_t i = begin; i < end; ++i) {
    const int32_t pages = ListPages(p, i);
    if (pages > p.max_list_pages) cut = 1;
    mine += p.layout.parts.Count(min(pages, p.max_list_pages));
  }
  sums[thread] = mine;
  __syncthreads();
  for (int step = 1; step < kPlanThreads; step *= 2) {
    const int32_t add = thread >= step ? sums[thread - step] : 0;
    __syncthreads();
    sums[thread] += add;
    __syncthreads();
  }
  int32_t first = sums[thread] - mine;
  for (int32_t i = begin; i < end; ++i) {
    const int32_t pages = min(ListPages(p, i), p.max_list_pages);
    if (i % kPlanBlocks == static_cast<int32_t>(blockIdx.x)) {
      p.scratch.first[i] = first;
      WriteUnits(p, i, pages, first);
    }
    first += p.layout.parts.Count(pages);
  }
  if (blockIdx.x == 0 && thread == kPlanThreads - 1) {
    p.scratch.first[p.layout.items] = sums[thread];
    p.scratch.header->status.status = cut;
    p.scratch.header->num_units = sums[thread];
  }
}

}  // namespace

int64_t DecodeScratchBytes(const AttentionParams& p, int32_t max_list_pages) {
  return LayoutOf(p, max_list_pages).bytes;
}

cudaError_t LaunchDecodePlan(const AttentionParams& a, int32_t max_list_pages, void* scratch,
                             cudaStream_t stream) {
  if (DecodeRefusal(a) != nullptr && DecodeRefusal(a, KernelPath::kPortable) != nullptr) {
    return cudaErrorNotSupported;
  }
  if (a.selection.num_tiles == 0) return cudaSuccess;
  const DecodeLayout layout = LayoutOf(a, max_list_pages);
  const PlanParams p = {DecodeScratch(layout, scratch),
                        layout,
                        a.selection,
                        a.kv_lens,
                        max_list_pages,
                        a.selection.entry_tokens / kPageTokens,
                        static_cast<int32_t>(a.q.shape[1]) / a.cache.num_heads};
  DecodePlanKernel<<<kPlanBlocks, kPlanThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

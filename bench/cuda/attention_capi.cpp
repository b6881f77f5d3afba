// A flat door to the attention kernels for the benchmark script, which times them beside PyTorch's
// on the same tensors. Built as a shared library; not part of the product.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/attention/attention.h"

namespace {

using longstride::kernels::AttentionParams;
using longstride::kernels::Device;
using longstride::kernels::DType;
using longstride::kernels::EdgeRule;
using longstride::kernels::KvDType;
using longstride::kernels::KvHeadPageBytes;
using longstride::kernels::ListHeads;
using longstride::kernels::QueryTile;
using longstride::kernels::TensorView;
using longstride::kernels::cuda::KernelPath;
using longstride::kernels::cuda::PrefillLayout;

// Mirrors the ctypes structure of attention_bench.py: eight-byte fields only.
struct Call {
  void *q, *k, *v, *out, *lse, *table, *kv_lens, *tiles, *list_begin, *list_count, *entries, *edges;
  int64_t rows, query_heads, kv_heads, head_dim, num_pages, table_stride, num_sequences, num_tiles,
      list_heads, num_list_heads, entry_tokens, query_tile, num_entries,
      type,  // 0: bf16, 1: f16, 2: f16 and an e4m3 cache
      value_dim;
  double scale;
};

AttentionParams Params(const Call& c) {
  AttentionParams p;
  const int64_t dims[3] = {c.rows, c.query_heads, c.head_dim};
  const DType dtype = c.type != 0 ? DType::kF16 : DType::kBF16;
  p.q = TensorView::Contiguous(c.q, dtype, dims, 3, Device::kCuda);
  p.out = TensorView::Contiguous(c.out, dtype, dims, 3, Device::kCuda);
  p.lse = static_cast<float*>(c.lse);
  p.cache.k = c.k;
  p.cache.v = c.v;
  p.cache.dtype = c.type == 2 ? KvDType::kFp8 : c.type == 1 ? KvDType::kF16 : KvDType::kBF16;
  p.cache.head_stride = KvHeadPageBytes(p.cache.dtype, static_cast<int32_t>(c.head_dim));
  p.cache.page_stride = p.cache.head_stride * c.kv_heads;
  p.cache.num_pages = static_cast<int32_t>(c.num_pages);
  p.cache.num_heads = static_cast<int32_t>(c.kv_heads);
  p.cache.head_dim = static_cast<int32_t>(c.head_dim);
  p.page_table = {static_cast<const int32_t*>(c.table), c.table_stride,
                  static_cast<int32_t>(c.num_sequences)};
  p.kv_lens = static_cast<const int32_t*>(c.kv_lens);
  p.selection.list_heads = static_cast<ListHeads>(c.list_heads);
  p.selection.num_list_heads = static_cast<int32_t>(c.num_list_heads);
  p.selection.entry_tokens = static_cast<int32_t>(c.entry_tokens);
  p.selection.query_tile = static_cast<int32_t>(c.query_tile);
  p.selection.num_tiles = static_cast<int32_t>(c.num_tiles);
  p.selection.tiles = static_cast<const QueryTile*>(c.tiles);
  p.selection.list_begin = static_cast<const int64_t*>(c.list_begin);
  p.selection.list_count = static_cast<const int32_t*>(c.list_count);
  p.selection.entries = static_cast<const int32_t*>(c.entries);
  p.selection.num_entries = c.num_entries;
  p.selection.edges = static_cast<const EdgeRule*>(c.edges);
  p.value_dim = static_cast<int32_t>(c.value_dim);
  p.scale = static_cast<float>(c.scale);
  return p;
}

KernelPath Path(int portable) { return portable != 0 ? KernelPath::kPortable : KernelPath::kFast; }

cudaStream_t Stream(int64_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace

extern "C" {

int64_t ls_prefill_scratch(const Call* c) {
  using longstride::kernels::cuda::PrefillScratchBytes;
  return std::max(PrefillScratchBytes(Params(*c), PrefillLayout::kPlain),
                  PrefillScratchBytes(Params(*c), PrefillLayout::kPacked));
}
int ls_prefill_plan(const Call* c, int packed, void* scratch, int64_t stream) {
  return longstride::kernels::cuda::LaunchPrefillPlan(
      Params(*c), packed != 0 ? PrefillLayout::kPacked : PrefillLayout::kPlain, scratch,
      Stream(stream));
}
int ls_prefill(const Call* c, int portable, int packed, void* scratch, int64_t stream) {
  return longstride::kernels::cuda::LaunchPrefill(
      Params(*c), packed != 0 ? PrefillLayout::kPacked : PrefillLayout::kPlain, scratch,
      Stream(stream), Path(portable));
}
int64_t ls_decode_scratch(const Call* c, int max_pages) {
  return longstride::kernels::cuda::DecodeScratchBytes(Params(*c), max_pages);
}
int ls_decode_plan(const Call* c, int max_pages, void* scratch, int64_t stream) {
  return longstride::kernels::cuda::LaunchDecodePlan(Params(*c), max_pages, scratch,
                                                     Stream(stream));
}
int ls_decode(const Call* c, int portable, int max_pages, void* scratch, int64_t stream) {
  return longstride::kernels::cuda::LaunchDecode(Params(*c), max_pages, scratch, Stream(stream),
                                                 Path(portable));
}

}  // extern "C"

// Launches the portable tensor-core kernels, and merges the parts that decoding gives.
#include "kernels/cuda/attention/mma.h"

#include "kernels/cuda/attention/latent.h"
#include "kernels/cuda/attention/mma_common.cuh"

namespace longstride::kernels::cuda {
namespace {

constexpr int kMergeThreads = 256;

struct MergeParams {
  DecodeScratch scratch;
  DecodeLayout layout;
  const QueryTile* tiles;
  const float* sinks;
  void* out;
  int64_t out_row_stride, out_head_stride;  // elements
  float* lse;
  int32_t num_heads;
  int32_t head_dim;
  int32_t columns;  // that parts have; those of out behind them become 0
  float v_scale;
};

// One block per (item, row), a thread per channel: parts in ascending order.
template <typename Out>
__global__ void __launch_bounds__(kMergeThreads) MmaMergeKernel(const MergeParams p) {
  const int item = static_cast<int>(blockIdx.x) / p.layout.rows;
  const int row = static_cast<int>(blockIdx.x) % p.layout.rows;
  const QueryTile tile = p.tiles[item / p.layout.item_heads];
  if (row >= tile.num_rows * p.layout.heads_per_item) return;
  const int before = p.scratch.first[item], count = p.scratch.first[item + 1] - before;
  const int item_head = item % p.layout.item_heads;
  const int first = p.layout.shared_lists ? before - item_head * count + item_head : before;
  const int64_t stride = static_cast<int64_t>(p.layout.part_stride()) * p.layout.rows;
  const int64_t at = static_cast<int64_t>(first) * p.layout.rows + row;
  const int head = item_head * p.layout.heads_per_item + row % p.layout.heads_per_item;
  const int64_t out_row = static_cast<int64_t>(tile.row_begin) + row / p.layout.heads_per_item;
  Out* out = static_cast<Out*>(p.out) + out_row * p.out_row_stride + head * p.out_head_stride;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int c = p.columns + thread; c < p.head_dim; c += threads) out[c] = static_cast<Out>(0.0f);
  for (int c = thread; c < p.columns; c += threads) {
    float best = NegativeInfinity(), sum = 0.0f, total = 0.0f;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const float2 n = p.scratch.norms[at + i * stride];
      const float part = p.scratch.parts[(at + i * stride) * p.head_dim + c];
      const float most = fmaxf(best, n.x);
      const float subtract = most == NegativeInfinity() ? 0.0f : most;
      const float keep = Exp2(best - subtract), weight = Exp2(n.x - subtract);
      best = most;
      sum = fmaf(sum, keep, n.y * weight);
      total = fmaf(total, keep, part * weight);
    }
    RowEnd end = EndRow(best * kLn2, sum, p.sinks, head);
    end.factor *= p.v_scale;
    if (p.lse != nullptr && c == 0) p.lse[out_row * p.num_heads + head] = end.lse;
    out[c] = static_cast<Out>(total * end.factor);
  }
}

int Log2(int n) {
  int log = 0;
  while ((1 << log) < n) ++log;
  return log;
}

}  // namespace

cudaError_t LaunchMmaPrefill(const AttentionParams& a, PrefillLayout layout, void* scratch,
                             cudaStream_t stream) {
  if (a.selection.num_tiles == 0) return cudaSuccess;
  MmaPrefillParams p = {};
  p.shape = MakeUnitShape(a, layout);
  p.plan = static_cast<PrefillPlan*>(scratch);
  p.order = reinterpret_cast<const uint32_t*>(p.plan + 1);
  p.pages = a.page_table.pages;
  p.table_stride = a.page_table.stride;
  p.kv_lens = a.kv_lens;
  p.selection = a.selection;
  p.cache = a.cache;
  p.pages_per_entry_log2 = Log2(a.selection.entry_tokens / kPageTokens);
  p.box_heads_log2 = Log2(p.shape.box_heads);
  p.num_heads = static_cast<int32_t>(a.q.shape[1]);
  p.scale = a.scale;
  p.softcap = a.softcap;
  p.sinks = a.sinks;
  p.q = a.q.data;
  p.q_row_stride = a.q.strides[0];
  p.q_head_stride = a.q.strides[1];
  p.out = a.out.data;
  p.out_row_stride = a.out.strides[0];
  p.out_head_stride = a.out.strides[1];
  p.lse = a.lse;
  const auto units =
      static_cast<uint32_t>(a.selection.num_tiles) * static_cast<uint32_t>(p.shape.units_per_tile);
  return FindMmaKernels(a.cache.head_dim)->prefill(a.cache.dtype, p, units, stream);
}

cudaError_t LaunchMmaDecode(const AttentionParams& a, int32_t max_list_pages, void* scratch,
                            cudaStream_t stream, KernelPath latents) {
  if (a.selection.num_tiles == 0) return cudaSuccess;
  const DecodeLayout layout = LayoutOf(a, max_list_pages);
  const DecodeScratch areas(layout, scratch);
  const MmaDecodeParams p = {.scratch = areas,
                             .layout = layout,
                             .entries = a.selection.entries,
                             .edges = a.selection.edges,
                             .pages = a.page_table.pages,
                             .table_stride = a.page_table.stride,
                             .cache = a.cache,
                             .pages_per_entry_log2 = Log2(a.selection.entry_tokens / kPageTokens),
                             .slots = 0,
                             .scale = a.scale,
                             .softcap = a.softcap,
                             .q = a.q.data,
                             .q_row_stride = a.q.strides[0],
                             .q_head_stride = a.q.strides[1]};
  const cudaError_t error =
      IsLatent(a) ? LaunchLatentDecode(a, max_list_pages, scratch, stream, latents)
                  : FindMmaKernels(a.cache.head_dim)->decode(a.cache.dtype, p, stream);
  if (error != cudaSuccess) return error;
  const MergeParams m = {areas,
                         layout,
                         a.selection.tiles,
                         a.sinks,
                         a.out.data,
                         a.out.strides[0],
                         a.out.strides[1],
                         a.lse,
                         static_cast<int32_t>(a.q.shape[1]),
                         a.cache.head_dim,
                         IsLatent(a) ? kLatentValueDim : a.cache.head_dim,
                         a.cache.v_scale};
  const auto blocks = static_cast<unsigned>(layout.items) * static_cast<unsigned>(layout.rows);
  const int threads = std::min(kMergeThreads, (a.cache.head_dim + 31) / 32 * 32);
  switch (a.out.dtype) {
    case DType::kF16:
      MmaMergeKernel<__half><<<blocks, threads, 0, stream>>>(m);
      break;
    case DType::kBF16:
      MmaMergeKernel<__nv_bfloat16><<<blocks, threads, 0, stream>>>(m);
      break;
    default:
      MmaMergeKernel<float><<<blocks, threads, 0, stream>>>(m);
  }
  return cudaGetLastError();
}

cudaError_t LaunchPrefill(const AttentionParams& p, PrefillLayout layout, void* scratch,
                          cudaStream_t stream, KernelPath path) {
  if (PrefillRefusal(p, layout, path) != nullptr) return cudaErrorNotSupported;
  if (IsLatent(p)) {
    return p.selection.num_tiles == 0 ? cudaSuccess
                                      : LaunchLatentPrefill(p, layout, scratch, stream, path);
  }
  return path == KernelPath::kFast ? LaunchFastPrefill(p, layout, scratch, stream)
                                   : LaunchMmaPrefill(p, layout, scratch, stream);
}

cudaError_t LaunchDecode(const AttentionParams& p, int32_t max_list_pages, void* scratch,
                         cudaStream_t stream, KernelPath path) {
  if (DecodeRefusal(p, path) != nullptr) return cudaErrorNotSupported;
  return path == KernelPath::kFast && !IsLatent(p)
             ? LaunchFastDecode(p, max_list_pages, scratch, stream)
             : LaunchMmaDecode(p, max_list_pages, scratch, stream, path);
}

}  // namespace longstride::kernels::cuda

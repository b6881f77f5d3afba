// Launches attention over latents, and its portable kernels.
#include <algorithm>

#include "kernels/cuda/attention/latent.cuh"

namespace longstride::kernels::cuda {
namespace {

using namespace latent;

int Log2(int n) {
  int log = 0;
  while ((1 << log) < n) ++log;
  return log;
}

LatentParams MakeParams(const AttentionParams& a, const DecodeLayout& layout, void* scratch) {
  return {.order = nullptr,
          .parts = DecodeScratch(layout, scratch),
          .layout = layout,
          .shape = {},
          .status = static_cast<uint32_t*>(scratch),  // both plans begin with it
          .slots = 0,
          .pages = a.page_table.pages,
          .table_stride = a.page_table.stride,
          .kv_lens = a.kv_lens,
          .selection = a.selection,
          .cache = a.cache,
          .pages_per_entry_log2 = Log2(a.selection.entry_tokens / kPageTokens),
          .num_heads = static_cast<int32_t>(a.q.shape[1]),
          .scale = a.scale,
          .softcap = a.softcap,
          .sinks = a.sinks,
          .q = a.q.data,
          .q_row_stride = a.q.strides[0],
          .q_head_stride = a.q.strides[1],
          .out = a.out.data,
          .out_row_stride = a.out.strides[0],
          .out_head_stride = a.out.strides[1],
          .lse = a.lse};
}

// Pages that shared memory has room for beside the rest, two at most.
cudaError_t FindSlots(int32_t* slots) {
  int device = 0, room = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *slots = std::min(2, (room - kArrayBytes - kFixedBytes) / Rows::kPageBytes);
  return error;
}

cudaError_t Launch(LatentParams p, int64_t blocks, cudaStream_t stream, KernelPath path) {
  const cudaError_t error = FindSlots(&p.slots);
  if (error != cudaSuccess) return error;
  if (p.slots < 1) return cudaErrorNotSupported;
  if (path == KernelPath::kFast) return LaunchFast(p, blocks, stream);
  switch (p.cache.dtype) {
#if LONGSTRIDE_LATENT_BF16
    case KvDType::kBF16:
      return LaunchOf<__nv_bfloat16, false>(p, blocks, stream);
#endif
#if LONGSTRIDE_LATENT_F16
    case KvDType::kF16:
      return LaunchOf<__half, false>(p, blocks, stream);
#endif
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace

bool HasLatentKernel(KvDType dtype, KernelPath path) {
  if (path == KernelPath::kFast) return latent::HasFast(dtype);
  return (LONGSTRIDE_LATENT_BF16 && dtype == KvDType::kBF16) ||
         (LONGSTRIDE_LATENT_F16 && dtype == KvDType::kF16);
}

bool LatentFits() {
  int32_t slots = 0;
  return FindSlots(&slots) == cudaSuccess && slots > 0;
}

cudaError_t LaunchLatentPrefill(const AttentionParams& a, PrefillLayout layout, void* scratch,
                                cudaStream_t stream, KernelPath path) {
  LatentParams p = MakeParams(a, {}, scratch);
  p.shape = MakeUnitShape(a, layout);
  p.order = reinterpret_cast<const uint32_t*>(static_cast<PrefillPlan*>(scratch) + 1);
  const int64_t units = static_cast<int64_t>(a.selection.num_tiles) * p.shape.units_per_tile;
  return Launch(p, units * (kTileRows / kRows), stream, path);
}

cudaError_t LaunchLatentDecode(const AttentionParams& a, int32_t max_list_pages, void* scratch,
                               cudaStream_t stream, KernelPath path) {
  const DecodeLayout layout = LayoutOf(a, max_list_pages);
  const int64_t most = layout.max_units * ((layout.rows + kRows - 1) / kRows);
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  return Launch(MakeParams(a, layout, scratch), std::min<int64_t>(processors, most), stream, path);
}

}  // namespace longstride::kernels::cuda

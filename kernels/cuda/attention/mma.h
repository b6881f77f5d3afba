// The portable tensor-core attention kernels behind attention.h: one pair of prefill and decode for
// each head size that the build has (LONGSTRIDE_CUDA_HEAD_SIZES). Internal to this folder.
#pragma once

#include "kernels/cuda/attention/decode_params.h"
#include "kernels/cuda/attention/prefill_params.h"

namespace longstride::kernels::cuda {

struct MmaPrefillParams {
  PrefillPlan* plan;
  const uint32_t* order;
  const int32_t* pages;
  int64_t table_stride;
  const int32_t* kv_lens;
  KvSelection selection;
  UnitShape shape;
  PagedKv cache;
  int32_t pages_per_entry_log2;
  int32_t box_heads_log2;
  int32_t num_heads;
  float scale, softcap;
  const float* sinks;
  const void* q;
  int64_t q_row_stride, q_head_stride;  // elements
  void* out;
  int64_t out_row_stride, out_head_stride;
  float* lse;
};

struct MmaDecodeParams {
  DecodeScratch scratch;
  DecodeLayout layout;
  const int32_t* entries;
  const EdgeRule* edges;
  const int32_t* pages;
  int64_t table_stride;
  PagedKv cache;
  int32_t pages_per_entry_log2;
  int32_t slots;
  float scale, softcap;
  const void* q;
  int64_t q_row_stride, q_head_stride;  // elements
};

// The kernels of one head size, for caches of f16, bf16 and e4m3.
struct MmaKernels {
  int32_t head_dim;
  cudaError_t (*prefill)(KvDType dtype, const MmaPrefillParams& p, uint32_t units,
                         cudaStream_t stream);
  cudaError_t (*decode)(KvDType dtype, const MmaDecodeParams& p, cudaStream_t stream);
};

// nullptr: the build has none for that head size.
const MmaKernels* FindMmaKernels(int32_t head_dim);

cudaError_t LaunchMmaPrefill(const AttentionParams& p, PrefillLayout layout, void* scratch,
                             cudaStream_t stream);
// Latents have kernels of both paths; the merge is theirs, too.
cudaError_t LaunchMmaDecode(const AttentionParams& p, int32_t max_list_pages, void* scratch,
                            cudaStream_t stream, KernelPath latents);

// The Hopper kernels behind attention.h.
cudaError_t LaunchFastPrefill(const AttentionParams& p, PrefillLayout layout, void* scratch,
                              cudaStream_t stream);
cudaError_t LaunchFastDecode(const AttentionParams& p, int32_t max_list_pages, void* scratch,
                             cudaStream_t stream);

}  // namespace longstride::kernels::cuda

// Sparse attention on the GPU: one contract (AttentionParams, kernels/op_params.h), two kernels on
// each path.
// Every pointer inside the params is device memory; lists may have been made on the device. Nothing
// here waits for the device or allocates. Calls are safe from any thread; a scratch area belongs to
// one stream at a time.
//
// A call is planned once and launched once per layer that shares selection, page table and lengths:
//   LaunchPrefillPlan(params, layout, scratch, stream);
//   for each layer: LaunchPrefill(params of the layer, layout, scratch, stream);
//
// Results: a row's bits depend on its own query, list and keys only; not on the batch, the grid or
// where a prompt was cut.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/device/kernel_path.h"
#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

// How query rows fill the 128 rows of a tensor-core tile.
enum class PrefillLayout : uint8_t {
  kPlain,   // 128 positions of one query head; any ListHeads
  kPacked,  // 128 / group positions of all query heads of one KV head; kShared and kPerKvHead, and
            // a group size that divides 128
};

// Device memory at the start of a scratch area. `status` stays 0 unless a visible key had no valid
// page; such keys were left out.
struct AttentionStatus {
  uint32_t status = 0;
};

// Why the kernels of a path cannot run these params (a constant sentence), or nullptr if they can:
// q, k, v of one 16-bit type, or f16 and an e4m3 cache, out of q's type (decode: or bf16 or
// float32), head size 64, 128 or 256 (portable: one that the build has, or latents of bf16 or f16),
// entries of 64 or 128 positions, query tiles of 128 rows at most (prefill) or group * rows <= 16
// (decode; not of latents), 16-byte aligned rows and pages. `counters` must be null: the
// selection's maker knows the counts.
const char* PrefillRefusal(const AttentionParams& p, PrefillLayout layout,
                           KernelPath path = KernelPath::kFast);
const char* DecodeRefusal(const AttentionParams& p, KernelPath path = KernelPath::kFast);

// Bytes of scratch for a call of these sizes: selection.num_tiles, q's heads, the cache's heads and
// head size, the page table's stride.
int64_t PrefillScratchBytes(const AttentionParams& p, PrefillLayout layout);

// Plans do not depend on the path. With `again` the plan is made anew for lists that changed, and the
// status word stays; its memory is zero before the first time.
cudaError_t LaunchPrefillPlan(const AttentionParams& p, PrefillLayout layout, void* scratch,
                              cudaStream_t stream, bool again = false);
// Tiles of up to 128 query rows; see AttentionParams. Writes out and lse (where given) of every row
// that a tile covers.
cudaError_t LaunchPrefill(const AttentionParams& p, PrefillLayout layout, void* scratch,
                          cudaStream_t stream, KernelPath path = KernelPath::kFast);

// Bytes of scratch for decoding lists of at most `max_list_pages` pages, for a call of these sizes:
// selection's num_tiles, query_tile and list_heads, q's heads, the cache's heads and head size.
int64_t DecodeScratchBytes(const AttentionParams& p, int32_t max_list_pages);

// `max_list_pages` is what the scratch was sized by; a longer list sets the status word and is cut.
cudaError_t LaunchDecodePlan(const AttentionParams& p, int32_t max_list_pages, void* scratch,
                             cudaStream_t stream);
// Tiles of few query rows (one token, or a few drafts), any number of sequences in one launch. The
// keys of a list are split in parts whose size depends on the list's length alone; parts merge in
// ascending order.
cudaError_t LaunchDecode(const AttentionParams& p, int32_t max_list_pages, void* scratch,
                         cudaStream_t stream, KernelPath path = KernelPath::kFast);

}  // namespace longstride::kernels::cuda

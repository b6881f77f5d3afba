// The order in which prefill's persistent blocks take their work: by section of KV heads that fit
// the L2 cache, then longest list first. Order never changes a result, only the time.
#include "kernels/cuda/attention/decode_params.h"
#include "kernels/cuda/attention/edges.cuh"
#include "kernels/cuda/attention/fp8_sizes.h"
#include "kernels/cuda/attention/latent.h"
#include "kernels/cuda/attention/mma.h"
#include "kernels/cuda/attention/prefill_params.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kPlanThreads = 1024;
constexpr int kLengthClasses = 256;
constexpr int kMaxSections = 32;
constexpr long long kSectionBytes = 24 << 20;  // about half of the L2 of an H100

struct PlanParams {
  PrefillPlan* plan;
  uint32_t *order, *items, *marks;
  KvSelection selection;
  UnitShape shape;
  int32_t most_segments;
  bool shared;
  const int32_t* kv_lens;
  int32_t num_sequences;
  int32_t num_kv_heads;
  int32_t kv_token_bytes;  // K and V of one head
  bool again;
};

struct UnitKey {
  int32_t kv_head;
  int32_t list_head;
  int32_t length;  // entries
};

__device__ UnitKey KeyOf(const PlanParams& p, uint32_t unit) {
  const uint32_t tile = unit / p.shape.units_per_tile;
  const int in_tile = static_cast<int>(unit % p.shape.units_per_tile);
  UnitKey key;
  key.kv_head = in_tile / p.shape.units_per_kv_head;
  key.list_head = p.selection.list_heads == ListHeads::kShared      ? 0
                  : p.selection.list_heads == ListHeads::kPerKvHead ? key.kv_head
                                                                    : in_tile;
  const int64_t list = static_cast<int64_t>(key.list_head) * p.selection.num_tiles + tile;
  key.length = max(0, p.selection.list_count[list]);
  return key;
}

// The segments of the ordered units, one after the other; a thread has one unit at most.
__device__ void ListItems(const PlanParams& p, uint32_t units, uint32_t (&sums)[kPlanThreads]) {
  static_assert(kMostSharedUnits <= kPlanThreads);
  const uint32_t thread = threadIdx.x;
  __syncthreads();  // the order is written, the sums are read
  uint32_t unit = 0, segments = 0;
  if (thread < units) {
    unit = p.order[thread];
    const UnitKey key = KeyOf(p, unit);
    const int32_t pages = key.length * (p.selection.entry_tokens / kPageTokens);
    segments = static_cast<uint32_t>(
        SegmentsOf(p.selection.edges[key.list_head], pages, kSegmentPages, p.most_segments));
  }
  sums[thread] = segments;
  __syncthreads();
  for (uint32_t step = 1; step < kPlanThreads; step *= 2) {
    const uint32_t add = thread >= step ? sums[thread - step] : 0;
    __syncthreads();
    sums[thread] += add;
    __syncthreads();
  }
  const uint32_t begin = sums[thread] - segments;
  for (uint32_t i = 0; i < segments; ++i) p.items[begin + i] = unit | i << 24;
  if (thread == kPlanThreads - 1) p.plan->num_items = sums[thread];
  for (uint32_t i = thread; i < units * (kMathThreads / 32); i += kPlanThreads) p.marks[i] = 0;
}

__global__ void __launch_bounds__(kPlanThreads) PrefillPlanKernel(const PlanParams p) {
  __shared__ uint32_t bins[kMaxSections * kLengthClasses];
  __shared__ uint32_t sums[kPlanThreads];
  __shared__ int32_t longest;
  __shared__ unsigned long long total_keys;
  const int thread = static_cast<int>(threadIdx.x);
  const uint32_t units = static_cast<uint32_t>(p.selection.num_tiles) * p.shape.units_per_tile;
  if (thread == 0) {
    longest = 1;
    total_keys = 0;
    const AttentionStatus status = p.again ? p.plan->status : AttentionStatus{};
    *p.plan = PrefillPlan{};
    p.plan->status = status;
    p.plan->num_units = units;
  }
  for (int i = thread; i < kMaxSections * kLengthClasses; i += kPlanThreads) bins[i] = 0;
  __syncthreads();
  const int64_t lists = static_cast<int64_t>(p.selection.num_list_heads) * p.selection.num_tiles;
  int32_t most = 0;
  for (int64_t i = thread; i < lists; i += kPlanThreads)
    most = max(most, p.selection.list_count[i]);
  atomicMax(&longest, most);
  for (int i = thread; i < p.num_sequences; i += kPlanThreads) {
    atomicAdd(&total_keys, static_cast<unsigned long long>(max(0, p.kv_lens[i])));
  }
  __syncthreads();
  const long long head_bytes = max(1LL, static_cast<long long>(total_keys) * p.kv_token_bytes);
  int heads_per_section = static_cast<int>(
      min(static_cast<long long>(p.num_kv_heads), max(1LL, kSectionBytes / head_bytes)));
  heads_per_section = max(heads_per_section, (p.num_kv_heads + kMaxSections - 1) / kMaxSections);
  const auto bin_of = [&](uint32_t unit) {
    const UnitKey key = KeyOf(p, unit);
    const int rank =
        static_cast<int>(static_cast<int64_t>(key.length) * (kLengthClasses - 1) / longest);
    return key.kv_head / heads_per_section * kLengthClasses + (kLengthClasses - 1 - rank);
  };
  for (uint32_t u = thread; u < units; u += kPlanThreads) atomicAdd(&bins[bin_of(u)], 1u);
  __syncthreads();
  // Exclusive prefix sum over the bins: a run of bins per thread, then the runs.
  constexpr int kRun = kMaxSections * kLengthClasses / kPlanThreads;
  uint32_t run = 0;
  for (int i = 0; i < kRun; ++i) run += bins[thread * kRun + i];
  sums[thread] = run;
  __syncthreads();
  for (int step = 1; step < kPlanThreads; step *= 2) {
    const uint32_t add = thread >= step ? sums[thread - step] : 0;
    __syncthreads();
    sums[thread] += add;
    __syncthreads();
  }
  uint32_t start = sums[thread] - run;
  for (int i = 0; i < kRun; ++i) {
    const uint32_t n = bins[thread * kRun + i];
    bins[thread * kRun + i] = start;
    start += n;
  }
  __syncthreads();
  for (uint32_t u = thread; u < units; u += kPlanThreads) {
    p.order[atomicAdd(&bins[bin_of(u)], 1u)] = u;
  }
  if (p.shared) ListItems(p, units, sums);
}

const char* SharedRefusal(const AttentionParams& p, KernelPath path) {
  const KvSelection& s = p.selection;
  if (p.q.dtype != DType::kBF16 && p.q.dtype != DType::kF16) return "q is neither bf16 nor f16";
  const bool codes = p.cache.dtype == KvDType::kFp8;
  if (codes ? p.q.dtype != DType::kF16
            : p.cache.dtype != (p.q.dtype == DType::kBF16 ? KvDType::kBF16 : KvDType::kF16)) {
    return "the cache's type differs from q's";
  }
  const int d = p.cache.head_dim;
  if (IsLatent(p)) {
    if (!HasLatentKernel(p.cache.dtype, path)) return "the build has no kernels for such latents";
  } else if (path == KernelPath::kPortable) {
    if (FindMmaKernels(d) == nullptr) return "the build has no kernels for this head size";
  } else if (d != 64 && d != 128 && d != 256) {
    return "the head size is not 64, 128 or 256";
  } else if (codes && !HasFastFp8(d)) {
    return "the build has no fp8 kernels for this head size";
  }
  if (p.q.rank != 3 || p.out.rank != 3 || p.q.shape[2] != d || p.out.shape[2] != d) {
    return "q and out must be [rows, heads, head size]";
  }
  if (p.cache.num_heads < 1 || p.q.shape[1] % p.cache.num_heads != 0) {
    return "query heads must be a multiple of KV heads";
  }
  if (s.entry_tokens != 64 && s.entry_tokens != 128)
    return "list entries are not 64 or 128 positions";
  if ((p.q.strides[0] | p.q.strides[1]) % 8 != 0) return "a row of q is not aligned to 16 bytes";
  if ((p.cache.page_stride | p.cache.head_stride) % 16 != 0) {
    return "a page is not aligned to 16 bytes";
  }
  if (p.cache.page_stride >= int64_t{1} << 40 || p.cache.head_stride >= int64_t{1} << 40) {
    return "a stride of the cache is 2^40 bytes or more";
  }
  if (p.counters != nullptr) return "counters are not kept on the device";
  return nullptr;
}

}  // namespace

const char* PrefillRefusal(const AttentionParams& p, PrefillLayout layout, KernelPath path) {
  if (const char* why = SharedRefusal(p, path)) return why;
  if (p.out.dtype != p.q.dtype) return "q and out differ in type";
  if ((p.out.strides[0] | p.out.strides[1]) % 8 != 0) {
    return "a row of out is not aligned to 16 bytes";
  }
  const KvSelection& s = p.selection;
  if (s.query_tile < 1 || s.query_tile > kTileRows) return "query tiles are larger than 128 rows";
  if (layout == PrefillLayout::kPacked) {
    if (s.list_heads == ListHeads::kPerQHead) return "packed tiles need lists per KV head";
    if (kTileRows % (p.q.shape[1] / p.cache.num_heads) != 0) {
      return "the group size does not divide 128";
    }
  }
  return nullptr;
}

const char* DecodeRefusal(const AttentionParams& p, KernelPath path) {
  if (const char* why = SharedRefusal(p, path)) return why;
  if (p.out.dtype != DType::kF32 && p.out.dtype != DType::kBF16 && p.out.dtype != p.q.dtype) {
    return "out is neither float32, bf16 nor of q's type";
  }
  if ((p.out.strides[0] | p.out.strides[1]) % 2 != 0)
    return "a row of out begins at an odd element";
  const int64_t group =
      p.selection.list_heads == ListHeads::kPerQHead ? 1 : p.q.shape[1] / p.cache.num_heads;
  if (!IsLatent(p) && group * p.selection.query_tile > kDecodeRows)
    return "a tile has more than 16 query rows per KV head";
  return nullptr;
}

int64_t PrefillScratchBytes(const AttentionParams& p, PrefillLayout layout) {
  return MakeScratchLayout(p, layout).bytes;
}

cudaError_t LaunchPrefillPlan(const AttentionParams& a, PrefillLayout layout, void* scratch,
                              cudaStream_t stream, bool again) {
  if (PrefillRefusal(a, layout) != nullptr &&
      PrefillRefusal(a, layout, KernelPath::kPortable) != nullptr) {
    return cudaErrorNotSupported;
  }
  const ScratchLayout at = MakeScratchLayout(a, layout);
  const auto words = [&](int64_t offset) {
    return reinterpret_cast<uint32_t*>(static_cast<char*>(scratch) + offset);
  };
  PlanParams p;
  p.plan = static_cast<PrefillPlan*>(scratch);
  p.order = words(at.order);
  p.items = words(at.items);
  p.marks = words(at.marks);
  p.most_segments = at.most_segments;
  p.shared = at.shared;
  p.selection = a.selection;
  p.shape = MakeUnitShape(a, layout);
  p.kv_lens = a.kv_lens;
  p.num_sequences = a.page_table.num_sequences;
  p.num_kv_heads = a.cache.num_heads;
  p.kv_token_bytes =
      static_cast<int32_t>(2 * KvHeadPageBytes(a.cache.dtype, a.cache.head_dim) / kPageTokens);
  p.again = again;
  PrefillPlanKernel<<<1, kPlanThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

// Routing of a mixture of experts, and the sum of what the experts gave. Bound: latency; a step's
// routing reads some kilobytes. Source of the scorings: op_params.h.
#include "kernels/cuda/moe/routing.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace longstride::kernels::cuda {
namespace {

constexpr int kRouteWarps = 4;
constexpr int kLaneExperts = kMaxExperts / 32;
constexpr int kPlaceThreads = 256;
constexpr int kRowThreads = 256;

struct Best {
  float logit;
  int expert;
};

// The larger logit, then the lower expert.
__device__ Best Better(Best a, Best b) {
  if (b.expert < 0) return a;
  if (a.expert < 0) return b;
  if (b.logit > a.logit || (b.logit == a.logit && b.expert < a.expert)) return b;
  return a;
}

__device__ Best WarpBest(Best best) {
  for (int offset = 16; offset > 0; offset /= 2) {
    Best other;
    other.logit = __shfl_xor_sync(0xffffffffu, best.logit, offset);
    other.expert = __shfl_xor_sync(0xffffffffu, best.expert, offset);
    best = Better(best, other);
  }
  return best;
}

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The lane's experts that belong to the row's groups, by the scores of all; bit i: expert lane + 32 * i.
__device__ uint32_t InChosenGroups(const MoeRouting& r, const float* mine, uint32_t open) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int size = r.experts / r.groups.count;
  uint32_t allowed = 0;
  for (int chosen = 0; chosen < r.groups.chosen; ++chosen) {
    Best group = {0.0f, -1};
    for (int g = 0; g < r.groups.count; ++g) {
      Best first = {0.0f, -1};
      uint32_t in_group = 0;
#pragma unroll
      for (int i = 0; i < kLaneExperts; ++i) {
        const int e = lane + 32 * i;
        if (e / size != g || !(open >> i & 1)) continue;
        in_group |= 1u << i;
        first = Better(first, {mine[i], e});
      }
      first = WarpBest(first);
      float score = first.logit;
      if (r.groups.best == 2) {
        Best second = {0.0f, -1};
#pragma unroll
        for (int i = 0; i < kLaneExperts; ++i) {
          const int e = lane + 32 * i;
          if (in_group >> i & 1 && e != first.expert) second = Better(second, {mine[i], e});
        }
        score += WarpBest(second).logit;
      }
      const bool taken = __any_sync(0xffffffffu, (allowed & in_group) != 0);
      if (!taken) group = Better(group, {score, g});
    }
#pragma unroll
    for (int i = 0; i < kLaneExperts; ++i) {
      if (open >> i & 1 && (lane + 32 * i) / size == group.expert) allowed |= 1u << i;
    }
  }
  return allowed;
}

// One warp a row; a lane holds every 32nd expert. NaN ranks below everything.
__global__ void __launch_bounds__(kRouteWarps * 32) RouteRows(const MoeRouting r) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = int64_t{blockIdx.x} * kRouteWarps + threadIdx.x / 32;
  if (row >= r.rows) return;
  const float* logits = r.logits + row * r.logits_stride;
  float mine[kLaneExperts];
  uint32_t open = 0;  // bit i: expert lane + 32 * i is not chosen yet
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    const int e = lane + 32 * i;
    mine[i] = __int_as_float(0xff800000);
    if (e < r.experts) {
      open |= 1u << i;
      const float logit = logits[e];
      if (logit == logit) {
        mine[i] = logit;
        if (r.scoring == ExpertScoring::kSigmoid) {
          mine[i] = Sigmoid(logit) + (r.selection_bias == nullptr ? 0.0f : r.selection_bias[e]);
        }
      }
    }
  }
  if (r.groups.chosen < r.groups.count) open = InChosenGroups(r, mine, open);
  float max = 0.0f, chosen_sum = 0.0f, my_weight = 0.0f;
  for (int rank = 0; rank < r.top_k; ++rank) {
    Best best = {0.0f, -1};
#pragma unroll
    for (int i = 0; i < kLaneExperts; ++i) {
      if (open >> i & 1) best = Better(best, {mine[i], lane + 32 * i});
    }
    best = WarpBest(best);
    if (best.expert % 32 == lane) open &= ~(1u << (best.expert / 32));
    if (rank == 0) max = best.logit;
    float weight = expf(best.logit - max);
    if (r.scoring == ExpertScoring::kSigmoidInput) weight = Sigmoid(best.logit);
    if (r.scoring == ExpertScoring::kSigmoid) weight = Sigmoid(logits[best.expert]);
    chosen_sum += weight;
    if (lane == 0) {
      r.pair_expert[row * r.top_k + rank] = best.expert;
      r.pair_weight[row * r.top_k + rank] = weight;
      atomicAdd(&r.counts[best.expert], 1);
    }
  }
  if (r.scoring == ExpertScoring::kSigmoidInput) return;
  float divisor = chosen_sum;
  if (r.scoring == ExpertScoring::kSigmoid) divisor = r.renormalize ? chosen_sum + 1e-20f : 1.0f;
  if (r.scoring == ExpertScoring::kSoftmaxThenTopK && !r.renormalize) {
#pragma unroll
    for (int i = 0; i < kLaneExperts; ++i) {
      if (lane + 32 * i < r.experts) my_weight += expf(mine[i] - max);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      my_weight += __shfl_xor_sync(0xffffffffu, my_weight, offset);
    }
    divisor = my_weight;
  }
  if (lane == 0) {
    for (int rank = 0; rank < r.top_k; ++rank) {
      float& weight = r.pair_weight[row * r.top_k + rank];
      weight = weight / divisor * r.weight_scale;
    }
  }
}

// One block: where each expert's rows begin, and the tiles of all.
__global__ void __launch_bounds__(kMaxExperts) PlanGroups(const MoeRouting r) {
  __shared__ int32_t row_sum[kMaxExperts], tile_sum[kMaxExperts];
  const int e = static_cast<int>(threadIdx.x);
  const int count = e < r.experts ? r.counts[e] : 0;
  const int padded = (count + 7) / 8 * 8, tiles = (count + r.tile_rows - 1) / r.tile_rows;
  row_sum[e] = padded;
  tile_sum[e] = tiles;
  __syncthreads();
  for (int step = 1; step < kMaxExperts; step *= 2) {
    const int rows_before = e >= step ? row_sum[e - step] : 0;
    const int tiles_before = e >= step ? tile_sum[e - step] : 0;
    __syncthreads();
    row_sum[e] += rows_before;
    tile_sum[e] += tiles_before;
    __syncthreads();
  }
  const int begin = row_sum[e] - padded, first_tile = tile_sum[e] - tiles;
  r.begin[e] = begin;
  for (int t = 0; t < tiles; ++t) {
    GroupTile tile;
    tile.group = e;
    tile.row_begin = begin + t * r.tile_rows;
    tile.rows = min(r.tile_rows, count - t * r.tile_rows);
    r.tiles[first_tile + t] = tile;
  }
  if (e == kMaxExperts - 1) *r.num_tiles = tile_sum[e];
}

// One block an expert: its pairs in ascending order.
__global__ void __launch_bounds__(kPlaceThreads) PlacePairs(const MoeRouting r) {
  __shared__ int32_t warp_counts[kPlaceThreads / 32];
  const int expert = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t pairs = r.rows * r.top_k;
  if (r.counts[expert] == 0) return;
  int next = r.begin[expert];
  for (int64_t first = 0; first < pairs; first += kPlaceThreads) {
    const int64_t pair = first + threadIdx.x;
    const bool here = pair < pairs && r.pair_expert[pair] == expert;
    const uint32_t ballot = __ballot_sync(0xffffffffu, here);
    if (lane == 0) warp_counts[warp] = __popc(ballot);
    __syncthreads();
    int at = next + __popc(ballot & ((1u << lane) - 1));
    for (int w = 0; w < kPlaceThreads / 32; ++w) {
      if (w < warp) at += warp_counts[w];
      next += warp_counts[w];
    }
    if (here) {
      r.pair_position[pair] = at;
      r.source_rows[at] = static_cast<int32_t>(pair / r.top_k);
      if (r.factors != nullptr) r.factors[at] = r.pair_weight[pair];
    }
    __syncthreads();
  }
}

__global__ void FillTables(const __grid_constant__ WeightTables tables, const uint8_t** out) {
  for (int t = 0; t < kMaxTables; ++t) {
    out[t * kMaxExperts + threadIdx.x] = tables.weights[t][threadIdx.x];
  }
}

__device__ float ToFloat(float v) { return v; }
__device__ float ToFloat(__half v) { return __half2float(v); }
__device__ float ToFloat(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ void FromFloat(float v, float* out) { *out = v; }
__device__ void FromFloat(float v, __half* out) { *out = __float2half(v); }
__device__ void FromFloat(float v, __nv_bfloat16* out) { *out = __float2bfloat16(v); }

template <typename X>
__global__ void __launch_bounds__(kRowThreads)
    GatherFloats(const TensorView x, const MoeRouting r, float* out) {
  const int64_t row = blockIdx.x;
  const int64_t source = r.source_rows[row];
  if (source < 0) return;
  const float factor = r.factors == nullptr ? 1.0f : r.factors[row];
  const auto* from = static_cast<const X*>(x.data) + source * x.strides[0];
  for (int64_t c = threadIdx.x; c < x.shape[1]; c += kRowThreads) {
    out[row * x.shape[1] + c] = ToFloat(from[c]) * factor;
  }
}

template <typename Out>
__global__ void __launch_bounds__(kRowThreads)
    Combine(const MoeRouting r, const MoeCombine c, bool scale_input) {
  const int64_t row = blockIdx.x, dim = c.out.shape[1];
  auto* out = static_cast<Out*>(c.out.data) + row * c.out.strides[0];
  for (int64_t i = threadIdx.x; i < dim; i += kRowThreads) {
    float sum = 0.0f;
    for (int rank = 0; rank < r.top_k; ++rank) {
      const int64_t pair = row * r.top_k + rank;
      const float weight = scale_input ? 1.0f : r.pair_weight[pair];
      sum += weight * c.expert_out[r.pair_position[pair] * dim + i];
    }
    FromFloat(c.accumulate ? ToFloat(out[i]) + sum : sum, &out[i]);
  }
}

}  // namespace

cudaError_t LaunchRouting(const MoeRouting& r, cudaStream_t stream) {
  cudaError_t error = cudaMemsetAsync(r.counts, 0, kMaxExperts * sizeof(int32_t), stream);
  if (error != cudaSuccess) return error;
  error = cudaMemsetAsync(r.source_rows, 0xff, static_cast<size_t>(r.sorted_rows) * sizeof(int32_t),
                          stream);
  if (error != cudaSuccess) return error;
  const auto blocks = static_cast<unsigned>((r.rows + kRouteWarps - 1) / kRouteWarps);
  RouteRows<<<blocks, kRouteWarps * 32, 0, stream>>>(r);
  PlanGroups<<<1, kMaxExperts, 0, stream>>>(r);
  PlacePairs<<<static_cast<unsigned>(r.experts), kPlaceThreads, 0, stream>>>(r);
  return cudaGetLastError();
}

cudaError_t LaunchFillTables(const WeightTables& tables, const uint8_t** out, cudaStream_t stream) {
  FillTables<<<1, kMaxExperts, 0, stream>>>(tables, out);
  return cudaGetLastError();
}

cudaError_t LaunchGatherFloats(const TensorView& x, const MoeRouting& r, float* out,
                               cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(r.sorted_rows);
  switch (x.dtype) {
    case DType::kF32: GatherFloats<float><<<rows, kRowThreads, 0, stream>>>(x, r, out); break;
    case DType::kF16: GatherFloats<__half><<<rows, kRowThreads, 0, stream>>>(x, r, out); break;
    case DType::kBF16:
      GatherFloats<__nv_bfloat16><<<rows, kRowThreads, 0, stream>>>(x, r, out);
      break;
    default: return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

cudaError_t LaunchCombine(const MoeCombine& c, cudaStream_t stream) {
  const MoeRouting& r = *c.routing;
  const bool scale_input = r.scoring == ExpertScoring::kSigmoidInput;
  const auto rows = static_cast<unsigned>(r.rows);
  switch (c.out.dtype) {
    case DType::kF32: Combine<float><<<rows, kRowThreads, 0, stream>>>(r, c, scale_input); break;
    case DType::kF16: Combine<__half><<<rows, kRowThreads, 0, stream>>>(r, c, scale_input); break;
    case DType::kBF16:
      Combine<__nv_bfloat16><<<rows, kRowThreads, 0, stream>>>(r, c, scale_input);
      break;
    default: return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

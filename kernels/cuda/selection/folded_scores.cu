// Scores of folded queries and keys (page_shares.h): a matrix product whose result stays in shared memory,
// a tile of 128 rows and 128 groups of keys at a time, and is reduced there page by page. The product is
// computed once for the logarithms of the pages' sums, from which those of the rows follow, and for
// columns and diagonals once more. Keys are read from the paged cache: `fold` consecutive keys of a head
// lie side by side, so a group of them is a row of the second operand as it stands.
// Tensor cores (f16 and bf16; sm_80 and later): three stages of 64 channels by background copies, four
// warps of 64 x 64; bound by the L2 and the tensor cores. Other caches: float32, on ordinary cores.
// An element's sum runs over ascending channels whatever the grid.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/pipeline.cuh"
#include "kernels/cuda/selection/page_shares.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kColumns = 128;
constexpr int kPitch = kColumns + 1;  // of the tile of scores, floats
constexpr int kTileBytes = kBlockRows * kPitch * 4;
constexpr int kNever = 0x7fffffff;

struct Params {
  SelectPagesParams p;
  ShareLaunch s;
  int32_t group;    // query heads of a KV head
  int64_t q_row;    // strides of q in bytes
  int64_t q_head;
  int32_t q_bytes;  // of an element
  float factor;     // of a raw product, for exponentials to base 2
  float* columns;
  float* diagonals;
};

// What a block's threads know of its operands, in shared memory.
struct Operands {
  const char* q[kBlockRows];    // the last row of the group
  int32_t first_t[kBlockRows];  // the first of the group's rows, from behind, that exists
  int32_t visible[kBlockRows];  // the last group of keys that the row sees, or -1
  int32_t out[kBlockRows];      // index of the row among all of the launch
  const char* page[kColumns];   // the head's keys of the page
  int32_t slot[kColumns];       // of the group's first key
  int32_t limit[kColumns];      // keys of the group that exist
  int32_t whole;                // 1: all of the rows and keys do
};

__device__ __forceinline__ void FindOperands(const Params& a, Operands& o) {
  bool whole = true;
  const RowBlock block = a.s.blocks[blockIdx.x];
  const int32_t kv_head = static_cast<int32_t>(blockIdx.z);
  const QueryTile first = a.s.probes[block.first_probe];
  const int32_t last_pair = block.first_head + block.num_pairs - 1;
  const QueryTile last = a.s.probes[block.first_probe + last_pair / a.group];
  const int32_t end = last.first_position + last.num_rows;
  const auto heads = static_cast<int32_t>(a.p.q.shape[1]);
  for (int r = static_cast<int>(threadIdx.x); r < kBlockRows; r += static_cast<int>(blockDim.x)) {
    const int32_t pair = r / a.s.groups + block.first_head, n = r % a.s.groups;
    o.visible[r] = -1;
    o.first_t[r] = kNever;
    o.q[r] = static_cast<const char*>(a.s.half_q != nullptr ? a.s.half_q : a.p.q.data);
    o.out[r] = 0;
    if (pair > last_pair) {
      whole = false;
      continue;
    }
    const int32_t probe = block.first_probe + pair / a.group;
    const int32_t head = kv_head * a.group + pair % a.group;
    const QueryTile tile = a.s.probes[probe];
    if (n * a.s.fold >= tile.num_rows) {
      whole = false;
      continue;
    }
    const int32_t row = n * a.s.fold + a.s.fold - 1;
    o.q[r] += (static_cast<int64_t>(tile.row_begin) + row) * a.q_row + head * a.q_head;
    o.first_t[r] = max(0, row - (tile.num_rows - 1));
    whole = whole && o.first_t[r] == 0;
    o.visible[r] = tile.first_position / a.s.fold + n;
    o.out[r] = (probe * heads + head) * a.s.groups + n;
  }
  const int32_t* pages = a.p.page_table.pages + first.sequence * a.p.page_table.stride;
  for (int c = static_cast<int>(threadIdx.x); c < kColumns; c += static_cast<int>(blockDim.x)) {
    const int64_t key = (static_cast<int64_t>(blockIdx.y) * kColumns + c) * a.s.fold;
    o.page[c] = static_cast<const char*>(a.p.cache.k);
    o.slot[c] = static_cast<int32_t>(key % kPageTokens);
    o.limit[c] = 0;
    const int32_t id = key < end ? pages[key / kPageTokens] : kNoPage;
    if (id < 0 || id >= a.p.cache.num_pages) {
      whole = false;
      continue;
    }
    o.page[c] += id * a.p.cache.page_stride + kv_head * a.p.cache.head_stride;
    o.limit[c] = static_cast<int32_t>(end - key < a.s.fold ? end - key : a.s.fold);
    whole = whole && o.limit[c] == a.s.fold;
  }
  whole = __syncthreads_and(whole);
  if (threadIdx.x == 0) o.whole = whole;
  __syncthreads();
}

// A row of the tile as it is kept: scores to base 2, -inf where the row does not see the group.
struct ScoresOfRow {
  int64_t seen;  // columns of the block from the first on
  float factor;
  __device__ __forceinline__ ScoresOfRow(const Params& a, const Operands& o, int row)
      : seen(o.visible[row] + 1 - static_cast<int64_t>(blockIdx.y) * kColumns), factor(a.factor) {}
  __device__ __forceinline__ float Kept(float product, int column, bool there) const {
    return there && column < seen ? product * factor : NegativeInfinity();
  }
};
// The same, its weights of attention; none where the row's scores are no numbers.
struct WeightsOfRow {
  ScoresOfRow scores;
  float log;
  __device__ __forceinline__ WeightsOfRow(const Params& a, const Operands& o, int row)
      : scores(a, o, row), log(o.visible[row] >= 0 ? a.s.row_logs[o.out[row]] : 0.0f) {
    if (!(fabsf(log) < -NegativeInfinity())) scores.seen = 0;
  }
  __device__ __forceinline__ float Kept(float product, int column, bool there) const {
    return Exp2(scores.Kept(product, column, there) - log);
  }
};

// Whether any row of the block sees a group of this block.
__device__ __forceinline__ bool SeesNothing(const Params& a) {
  const RowBlock block = a.s.blocks[blockIdx.x];
  const QueryTile last =
      a.s.probes[block.first_probe + (block.first_head + block.num_pairs - 1) / a.group];
  // Pages up to the last candidate are written even where no row sees them.
  const int32_t end = (last.first_position + last.num_rows - 1) / kPageTokens * kPageTokens;
  return static_cast<int64_t>(blockIdx.y) * kColumns * a.s.fold > end + kPageTokens - 1;
}

// --- tensor cores --------------------------------------------------------------------------------

template <typename T>
struct MmaScores {
  static constexpr int kThreads = 128;
  static constexpr int kDepth = 64;  // channels of a stage: 128 bytes of a row
  static constexpr int kOperandBytes = kBlockRows * kDepth * 2;
  static constexpr int kStageBytes = 2 * kOperandBytes;
  static constexpr int kMaxStages = 3;

  static __device__ __forceinline__ uint32_t At(int row, int chunk) {
    return static_cast<uint32_t>(row * kDepth * 2 + ((chunk ^ (row & 7)) << 4));
  }

  template <typename Row>
  static __device__ __forceinline__ void Compute(const Params& a, const Operands& o, int stages,
                                                 float* tile) {
    const uint32_t shared = SharedAddress(tile);
    const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
    const int dim = a.p.cache.head_dim, width = dim * a.s.fold;
    const int steps = (width + kDepth - 1) / kDepth;
    // A thread copies one chunk of 8 channels of every 16th row.
    const int chunk = thread % 8, first_row = thread / 8;
    const uint32_t at = At(first_row, chunk);
    int t = chunk * 8 / dim, d = chunk * 8 % dim;
    int64_t q_shift = 0;
    // Copies a part of a step's stage: rows first_row + 16 i of both operands.
    const auto load = [&](int step, int i) {
      if (step >= steps) return;
      const uint32_t to = shared + step % stages * kStageBytes + at + i * 16 * kDepth * 2;
      const int row = first_row + i * 16, w = step * kDepth + chunk * 8;
      bool q_real = w < width, key_real = q_real;
      if (!o.whole) {
        q_real = q_real && t >= o.first_t[row];
        key_real = key_real && t < o.limit[row];
      }
      CopyAsync16(to, o.q[row] + (q_real ? q_shift : 0), q_real ? 16 : 0);
      CopyAsync16(to + kOperandBytes, o.page[row] + (key_real ? (o.slot[row] * dim + w) * 2 : 0),
                  key_real ? 16 : 0);
    };
    const auto next_channels = [&] {
      for (d += kDepth; d >= dim; d -= dim) ++t;
      q_shift = d * 2 - t * a.q_row;
    };
    q_shift = d * 2 - t * a.q_row;
    float acc[4][8][4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[m][n][e] = 0.0f;
      }
    }
    const int row0 = (warp & 1) * 64, column0 = (warp >> 1) * 64;
    const int r = lane & 7, i8 = lane >> 3;
    constexpr int kSteps = kDepth / 16, kLoads = kBlockRows / 16;
    for (int step = 0; step < stages - 1; ++step) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) load(step, i);
      next_channels();
      CommitCopies();
    }
    uint32_t q[2][4][4], b[2][4][4];
    const auto fragments = [&](uint32_t from, int k, int to) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        LoadMatrix4(q[to][m], from + At(row0 + m * 16 + (lane & 15), k * 2 + (lane >> 4)));
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        LoadMatrix4(b[to][n], from + kOperandBytes +
                                  At(column0 + n * 16 + (i8 >> 1) * 8 + r, k * 2 + (i8 & 1)));
      }
    };
    for (int step = 0; step < steps; ++step) {
      WaitCopies(stages - 2);
      __syncthreads();  // this stage is there, and nobody reads the one before any more
      const uint32_t from = shared + step % stages * kStageBytes;
      fragments(from, 0, 0);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        if (k + 1 < kSteps) fragments(from, k + 1, (k + 1) % 2);
#pragma unroll
        for (int i = k * kLoads / kSteps; i < (k + 1) * kLoads / kSteps; ++i) {
          load(step + stages - 1, i);
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
          for (int m = 0; m < 4; ++m) {
            Mma16x8x16<T>(acc[m][2 * n], q[k % 2][m], b[k % 2][n]);
            Mma16x8x16<T>(acc[m][2 * n + 1], q[k % 2][m], b[k % 2][n] + 2);
          }
        }
      }
      next_channels();
      CommitCopies();
    }
    WaitCopies<0>();
    __syncthreads();  // the stages become the tile
    uint32_t there = 0;  // bit n * 2 + e: this thread's columns
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      there |= (o.limit[column0 + n / 2 * 8 + lane % 4 * 2 + n % 2] > 0 ? 1u : 0u) << n;
    }
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      const int row = row0 + m / 2 * 16 + lane / 4 + m % 2 * 8;
      const Row kept(a, o, row);
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        const int column = column0 + n / 2 * 8 + lane % 4 * 2 + n % 2;
        tile[row * kPitch + column] =
            kept.Kept(acc[m / 2][n / 2][m % 2 * 2 + n % 2], column, there >> n & 1);
      }
    }
    __syncthreads();
  }
};

// --- ordinary cores ------------------------------------------------------------------------------

__device__ __forceinline__ float KeyOf(const Params& a, const char* page, int32_t slot, int32_t d) {
  const int64_t at = static_cast<int64_t>(slot) * a.p.cache.head_dim + d;
  switch (a.p.cache.dtype) {
    case KvDType::kF32:
      return reinterpret_cast<const float*>(page)[at];
    case KvDType::kF16:
      return __half2float(reinterpret_cast<const __half*>(page)[at]);
    case KvDType::kBF16:
      return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(page)[at]);
    case KvDType::kFp8:
      return FromE4m3(reinterpret_cast<const uint8_t*>(page)[at]);
    case KvDType::kQ8: {
      const auto* scales = reinterpret_cast<const float*>(
          page + static_cast<int64_t>(kPageTokens) * a.p.cache.head_dim);
      return static_cast<float>(reinterpret_cast<const int8_t*>(page)[at]) * scales[slot];
    }
  }
  return 0.0f;
}

struct FloatScores {
  static constexpr int kThreads = 256;
  static constexpr int kDepth = 16;

  template <typename Row>
  static __device__ __forceinline__ void Compute(const Params& a, const Operands& o, int,
                                                 float* tile) {
    float* q = tile;                         // [kDepth, kPitch]
    float* keys = tile + kDepth * kPitch;    // the same
    const int thread = static_cast<int>(threadIdx.x), dim = a.p.cache.head_dim;
    const int width = dim * a.s.fold;
    float acc[8][8] = {};
    for (int k0 = 0; k0 < width; k0 += kDepth) {
      const int k = thread % kDepth, w = k0 + k, t = w / dim, d = w % dim;
      __syncthreads();
      for (int row = thread / kDepth; row < kBlockRows; row += kThreads / kDepth) {
        q[k * kPitch + row] =
            w < width && t >= o.first_t[row]
                ? *reinterpret_cast<const float*>(o.q[row] - t * a.q_row + d * 4)
                : 0.0f;
        keys[k * kPitch + row] = w < width && t < o.limit[row]
                                     ? KeyOf(a, o.page[row], o.slot[row] + t, d)
                                     : 0.0f;
      }
      __syncthreads();
      for (int i = 0; i < kDepth; ++i) {
        float x[8], y[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          x[j] = q[i * kPitch + thread / 16 + 16 * j];
          y[j] = keys[i * kPitch + thread % 16 + 16 * j];
        }
#pragma unroll
        for (int m = 0; m < 8; ++m) {
#pragma unroll
          for (int n = 0; n < 8; ++n) acc[m][n] = fmaf(x[m], y[n], acc[m][n]);
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      const int row = thread / 16 + 16 * m;
      const Row kept(a, o, row);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int column = thread % 16 + 16 * n;
        tile[row * kPitch + column] = kept.Kept(acc[m][n], column, o.limit[column] > 0);
      }
    }
    __syncthreads();
  }
};

// --- what is kept --------------------------------------------------------------------------------

template <typename Scores>
__global__ void __launch_bounds__(Scores::kThreads) PageLogKernel(const Params a, int stages) {
  extern __shared__ __align__(128) float tile[];
  __shared__ Operands o;
  if (SeesNothing(a)) return;
  FindOperands(a, o);
  Scores::template Compute<ScoresOfRow>(a, o, stages, tile);
  const int per_page = kPageTokens / a.s.fold, pages = kColumns / per_page;
  for (int i = static_cast<int>(threadIdx.x); i < kBlockRows * pages; i += Scores::kThreads) {
    const int row = i % kBlockRows, column = i / kBlockRows * per_page;
    const int64_t page = static_cast<int64_t>(blockIdx.y) * pages + i / kBlockRows;
    if (o.visible[row] < 0 || page >= a.s.max_pages) continue;
    const float* scores = tile + row * kPitch + column;
    float best = NegativeInfinity();
    for (int c = 0; c < per_page; ++c) best = fmaxf(best, scores[c]);
    const float subtract = best == NegativeInfinity() ? 0.0f : best;
    float sum = 0.0f;
    for (int c = 0; c < per_page; ++c) sum += Exp2(scores[c] - subtract);
    a.s.page_logs[o.out[row] * a.s.max_pages + page] = subtract + log2f(sum);
  }
}

// Columns and diagonals of probes of up to 64 rows: weights of attention, summed over the rows.
template <typename Scores>
__global__ void __launch_bounds__(Scores::kThreads) ProbeKernel(const Params a, int stages) {
  extern __shared__ __align__(128) float tile[];
  __shared__ Operands o;
  if (SeesNothing(a)) return;
  FindOperands(a, o);
  Scores::template Compute<WeightsOfRow>(a, o, stages, tile);
  constexpr int kPages = kColumns / kPageTokens, kUnits = kBlockRows / kProbeRows;
  for (int i = static_cast<int>(threadIdx.x); i < kUnits * kColumns; i += Scores::kThreads) {
    const int first = i / kColumns * kProbeRows, column = i % kColumns;
    const int64_t m = static_cast<int64_t>(blockIdx.y) * kColumns + column;
    if (o.visible[first] < 0 || m >= a.s.max_pages * kPageTokens) continue;
    float sum = 0.0f;
    for (int r = 0; r < kProbeRows; ++r) sum += tile[(first + r) * kPitch + column];
    a.columns[o.out[first] / kProbeRows * (a.s.max_pages * kPageTokens) + m] = sum;
  }
  for (int i = static_cast<int>(threadIdx.x); i < kUnits * kPages * kDiagonalSlots;
       i += Scores::kThreads) {
    const int slot = i % kDiagonalSlots, at = i / kDiagonalSlots;
    const int first = at / kPages * kProbeRows, column = at % kPages * kPageTokens;
    const int64_t page = static_cast<int64_t>(blockIdx.y) * kPages + at % kPages;
    if (o.visible[first] < 0 || page >= a.s.max_pages) continue;
    const int ahead = slot - (kPageTokens - 1);  // row - column
    float sum = 0.0f;
    for (int c = max(0, -ahead); c < min(kPageTokens, kProbeRows - ahead); ++c) {
      sum += tile[(first + c + ahead) * kPitch + column + c];
    }
    a.diagonals[(o.out[first] / kProbeRows * a.s.max_pages + page) * kDiagonalSlots + slot] = sum;
  }
}

__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// A warp for each folded row.
__global__ void __launch_bounds__(256) RowLogKernel(const Params a, int64_t rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const QueryTile tile = a.s.probes[row / a.s.groups / a.p.q.shape[1]];
  const auto n = static_cast<int32_t>(row % a.s.groups);
  if (n * a.s.fold >= tile.num_rows || tile.num_rows == 1) return;
  const int32_t pages = (tile.first_position + tile.num_rows - 1) / kPageTokens + 1;
  const float* logs = a.s.page_logs + row * a.s.max_pages;
  float best = NegativeInfinity();
  for (int32_t i = lane; i < pages; i += 32) best = fmaxf(best, logs[i]);
  best = WarpMax(best);
  const float subtract = best == NegativeInfinity() ? 0.0f : best;
  float sum = 0.0f;
  for (int32_t i = lane; i < pages; i += 32) sum += Exp2(logs[i] - subtract);
  sum = WarpSum(sum);
  if (lane == 0) a.s.row_logs[row] = subtract + log2f(sum);
}

Params MakeParams(const SelectPagesParams& p, const ShareLaunch& s) {
  Params a = {};
  a.p = p;
  a.s = s;
  a.group = static_cast<int32_t>(p.q.shape[1]) / p.cache.num_heads;
  const bool half = s.half_q != nullptr;
  a.q_bytes = half ? 2 : 4;
  a.q_row = (half ? p.q.shape[1] * p.q.shape[2] : p.q.strides[0]) * a.q_bytes;
  a.q_head = (half ? p.q.shape[2] : p.q.strides[1]) * a.q_bytes;
  a.factor = p.scale / static_cast<float>(s.fold) * kLog2E;
  return a;
}

template <typename Scores>
cudaError_t LaunchTiles(void (*kernel)(Params, int), const Params& a, int stages, int bytes,
                        cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t columns = (a.s.max_pages * kPageTokens / a.s.fold + kColumns - 1) / kColumns;
  const dim3 blocks(static_cast<unsigned>(a.s.num_blocks), static_cast<unsigned>(columns),
                    static_cast<unsigned>(a.p.cache.num_heads));
  kernel<<<blocks, Scores::kThreads, static_cast<size_t>(bytes), stream>>>(a, stages);
  return cudaGetLastError();
}

template <typename T>
cudaError_t LaunchMma(void (*kernel)(Params, int), const Params& a, cudaStream_t stream) {
  using Scores = MmaScores<T>;
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error != cudaSuccess) return error;
  const int fixed = static_cast<int>(sizeof(Operands)) + 1024;  // what the kernel and system take
  const int stages =
      Scores::kMaxStages * Scores::kStageBytes + fixed <= most ? Scores::kMaxStages : 2;
  return LaunchTiles<Scores>(kernel, a, stages, std::max(stages * Scores::kStageBytes, kTileBytes),
                             stream);
}

template <bool kProbes>
cudaError_t LaunchProducts(const Params& a, cudaStream_t stream) {
  if (a.s.num_blocks == 0) return cudaSuccess;
  if (a.s.half_q == nullptr) {
    return LaunchTiles<FloatScores>(
        kProbes ? ProbeKernel<FloatScores> : PageLogKernel<FloatScores>, a, 0, kTileBytes, stream);
  }
  if (a.p.cache.dtype == KvDType::kBF16) {
    using Scores = MmaScores<__nv_bfloat16>;
    return LaunchMma<__nv_bfloat16>(kProbes ? ProbeKernel<Scores> : PageLogKernel<Scores>, a,
                                    stream);
  }
  using Scores = MmaScores<__half>;
  return LaunchMma<__half>(kProbes ? ProbeKernel<Scores> : PageLogKernel<Scores>, a, stream);
}

}  // namespace

cudaError_t LaunchPageLogs(const SelectPagesParams& p, const ShareLaunch& s, cudaStream_t stream) {
  const Params a = MakeParams(p, s);
  const cudaError_t error = LaunchProducts<false>(a, stream);
  if (error != cudaSuccess || s.num_blocks == 0) return error;
  const int64_t rows = s.num_probes * p.q.shape[1] * s.groups;
  RowLogKernel<<<static_cast<unsigned>((rows + 7) / 8), 256, 0, stream>>>(a, rows);
  return cudaGetLastError();
}

cudaError_t LaunchProbes(const SelectPagesParams& p, const ShareLaunch& s, float* columns,
                         float* diagonals, cudaStream_t stream) {
  Params a = MakeParams(p, s);
  a.columns = columns;
  a.diagonals = diagonals;
  return LaunchProducts<true>(a, stream);
}

}  // namespace longstride::kernels::cuda

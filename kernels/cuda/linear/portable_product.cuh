// Products with 16-bit and block-format weights on every chip from sm_80 on: warp-level tensor-core
// instructions fed by copies of ordinary threads. The same packed weights, operands and epilogue as
// the Hopper kernels, but an order of summation of its own: K in ascending steps of 16 columns into
// one accumulator, never split, for every format, number of rows and shape of tile.
//
// out^T = W x^T: weight rows are the M side of the instruction, activation rows its N side. A stage
// of the ring holds some steps of 64 columns of both; fragments of weights come from shared memory
// as they are, or are decoded in registers (block_formats.cuh), once for all tokens of a warp.
//
// Bound: memory for few rows; beyond some 300, the rate of the warp-level instruction (about 0.6 of
// the warpgroup one's on Hopper).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/linear/block_formats.cuh"
#include "kernels/cuda/linear/product_args.cuh"

namespace longstride::kernels::cuda {

// A block's tile and how its warps share it.
template <int kRows_, int kTokens_, int kWarpRows_, int kWarpTokens_, int kStageBlocks_,
          int kBlocksPerProcessor_>
struct PortableShape {
  static constexpr int kRows = kRows_, kTokens = kTokens_;
  static constexpr int kWarpRows = kWarpRows_, kWarpTokens = kWarpTokens_;
  static constexpr int kStageBlocks = kStageBlocks_;  // steps of 64 columns in a slot of the ring
  static constexpr int kBlocksPerProcessor = kBlocksPerProcessor_;
  static constexpr int kTokenWarps = kTokens / kWarpTokens;
  static constexpr int kThreads = kRows / kWarpRows * kTokenWarps * 32;
  static constexpr int kSlices = kWarpRows / 16, kColumns = kWarpTokens / 8;
  static constexpr int kTokenBytes = kTokens * 128;  // of one step
  static_assert(kRows % kUnitRows == 0 && kRows % kWarpRows == 0 && kTokens % kWarpTokens == 0);
};

struct PortableArgs {
  ProductArgs product;  // without tensor maps
  const uint16_t* x;
  int64_t x_pitch;
  int32_t x_cols;
};

// Rows of 128 bytes, 16-byte chunks swizzled by row: conflict-free for LoadMatrix4.
__device__ __forceinline__ uint32_t SwizzledAt(int row, int chunk) {
  return static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4));
}

// f16 and bf16: atoms lie in shared memory as they do in the packed weight.
template <typename T>
struct DenseWeights {
  using Operand = T;
  template <int kRows>
  static constexpr int kStepBytes = kRows * 128;

  template <typename Shape>
  static __device__ __forceinline__ void Copy(const ProductArgs& p, const uint8_t* weight,
                                              int n_begin, int block, uint32_t to) {
    const int atoms = (p.n + kAtomRows - 1) / kAtomRows, first = n_begin / kAtomRows;
#pragma unroll
    for (int i = 0; i < Shape::kRows * 8; i += Shape::kThreads) {
      const int chunk = i + static_cast<int>(threadIdx.x), atom = first + chunk / 64;
      const bool real = atom < atoms;
      const uint8_t* from =
          weight + (int64_t{real ? atom : 0} * p.k_blocks + block) * kAtomBytes + chunk % 64 * 16;
      CopyAsync16(to + chunk * 16, from, real ? 16 : 0);
    }
  }
  // The 16 rows from `row` of a step.
  struct Slice {
    uint32_t at;
    int row, chunk;
    __device__ __forceinline__ void Open(uint32_t step_at, int from_row, int lane) {
      at = step_at;
      row = from_row + (lane & 15);
      chunk = lane >> 4;
    }
    __device__ __forceinline__ void Fragment(int step, uint32_t (&a)[4]) const {
      LoadMatrix4(a, at + SwizzledAt(row, step * 2 + chunk));
    }
  };
};

template <DType kType>
struct BlockWeights {
  using Format = BlockFormat<kType>;
  using Operand =
      std::conditional_t<OperandType(kType) == DType::kBF16, __nv_bfloat16, __half>;
  // Pieces of one unit that one step of 64 columns needs, side by side in shared memory.
  static constexpr int kCodeBytes = 512 * Format::kCodeWords;
  static constexpr int kHighBytes = 512 * Format::kHighWords;
  static constexpr int kScalesBytes = Format::kIsK ? 256 : 32 * Format::kScaleBytes;
  static constexpr int kSuperBytes = !Format::kIsK ? 0 : kType == DType::kQ6_K ? 128 : 256;
  static constexpr int kUnitStepBytes = kCodeBytes + kHighBytes + kScalesBytes + kSuperBytes;
  static_assert(kUnitStepBytes % 16 == 0 && Format::kUnitBytes % 16 == 0);
  template <int kRows>
  static constexpr int kStepBytes = kRows / kUnitRows * kUnitStepBytes;

  template <typename Shape>
  static __device__ __forceinline__ void Copy(const ProductArgs& p, const uint8_t* weight,
                                              int n_begin, int block, uint32_t to) {
    const int units = (p.k_blocks + Format::kUnitBlocks - 1) / Format::kUnitBlocks;
    const int in_unit = block % Format::kUnitBlocks;
    for (int u = 0; u < Shape::kRows / kUnitRows; ++u) {
      const int row_unit = n_begin / kUnitRows + u;
      const bool real = row_unit * kUnitRows < p.n;
      const uint8_t* unit =
          weight + (int64_t{real ? row_unit : 0} * units + block / Format::kUnitBlocks) *
                       Format::kUnitBytes;
      for (int at = static_cast<int>(threadIdx.x) * 16; at < kUnitStepBytes;
           at += Shape::kThreads * 16) {
        CopyAsync16(to + u * kUnitStepBytes + at, unit + SourceAt(in_unit, at), real ? 16 : 0);
      }
    }
  }
  struct Slice {
    typename Format::Block block;
    __device__ __forceinline__ void Open(uint32_t step_at, int from_row, int lane) {
      const typename Format::Place place(step_at + from_row / kUnitRows * kUnitStepBytes,
                                         from_row % kUnitRows / 16, lane, 1);
      Format::Load(place, 0, 0, &block);
    }
    __device__ __forceinline__ void Fragment(int step, uint32_t (&a)[4]) const {
      Format::Decode(block, step, a);
    }
  };

 private:
  static __device__ __forceinline__ int SourceAt(int in_unit, int at) {
    if (at < kCodeBytes) return in_unit * kCodeBytes + at;
    at -= kCodeBytes;
    if (at < kHighBytes) return Format::kHighAt + in_unit * kHighBytes + at;
    at -= kHighBytes;
    if (at < kScalesBytes) return Format::kScalesAt + (Format::kIsK ? in_unit * 256 : 0) + at;
    return Format::kSuperAt + at - kScalesBytes;
  }
};

template <typename Weights, typename Shape>
class PortableTile {
 public:
  static constexpr int kStepBytes =
      Shape::kTokenBytes + Weights::template kStepBytes<Shape::kRows>;
  static constexpr int kStageBytes = kStepBytes * Shape::kStageBlocks;
  using Operand = typename Weights::Operand;

  __device__ PortableTile(const PortableArgs& a, const RowTile& tile, int n_begin, uint32_t shared)
      : a_(a),
        tile_(tile),
        n_begin_(n_begin),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x) % 32),
        row_(static_cast<int>(threadIdx.x) / 32 / Shape::kTokenWarps * Shape::kWarpRows),
        token_(static_cast<int>(threadIdx.x) / 32 % Shape::kTokenWarps * Shape::kWarpTokens) {}

  __device__ __forceinline__ void Run() {
    const int slots = a_.product.stages, blocks = a_.product.k_blocks;
    const int stages = (blocks + Shape::kStageBlocks - 1) / Shape::kStageBlocks;
    for (int s = 0; s < slots - 1; ++s) CopyStage(s, stages, s);
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum_[i][c][e] = 0.0f;
      }
    }
    int slot = 0;
    for (int s = 0; s < stages; ++s) {
      WaitCopies(slots - 2);
      __syncthreads();  // this stage is there, and nobody reads the one before any more
      CopyStage(s + slots - 1, stages, slot == 0 ? slots - 1 : slot - 1);
      const uint32_t stage = shared_ + slot * kStageBytes;
      const int here = min(Shape::kStageBlocks, blocks - s * Shape::kStageBlocks);
      for (int b = 0; b < here; ++b) Multiply(stage + b * kStepBytes);
      if (++slot == slots) slot = 0;
    }
    Store();
  }

 private:
  __device__ __forceinline__ void CopyStage(int stage, int stages, int slot) {
    if (stage < stages) {
      const uint32_t to = shared_ + slot * kStageBytes;
      for (int i = 0; i < Shape::kStageBlocks; ++i) {
        const int block = stage * Shape::kStageBlocks + i;
        if (block >= a_.product.k_blocks) break;
        CopyTokens(block, to + i * kStepBytes);
        Weights::template Copy<Shape>(a_.product, tile_.weight, n_begin_, block,
                                      to + i * kStepBytes + Shape::kTokenBytes);
      }
    }
    CommitCopies();
  }

  // Rows and columns that do not exist become zero.
  __device__ __forceinline__ void CopyTokens(int block, uint32_t to) {
    constexpr int kStride = Shape::kThreads / 8;
    const int chunk = static_cast<int>(threadIdx.x) % 8;
    const int column = block * kBlockColumns + chunk * 8;
    const int bytes = max(0, min(16, (a_.x_cols - column) * 2));
    const uint16_t* x = a_.x + (bytes > 0 ? column : 0);
#pragma unroll
    for (int i = 0; i < Shape::kTokens; i += kStride) {
      const int row = i + static_cast<int>(threadIdx.x) / 8;
      if (Shape::kTokens % kStride != 0 && row >= Shape::kTokens) break;
      const bool real = row < tile_.rows;
      CopyAsync16(to + SwizzledAt(row, chunk),
                  x + (int64_t{tile_.row_begin} + (real ? row : 0)) * a_.x_pitch, real ? bytes : 0);
    }
  }

  // B fragments of 16 columns of K: of all the warp's tokens, or, for 8 tokens, of two steps.
  __device__ __forceinline__ void LoadTokens(uint32_t at, int step,
                                             uint32_t (&b)[Shape::kColumns][2]) {
    const int r = lane_ & 7, i = lane_ >> 3;
    if constexpr (Shape::kColumns == 1) {
      if (step % 2 == 0) LoadMatrix4(pair_, at + SwizzledAt(token_ + r, step * 2 + i));
      b[0][0] = pair_[step % 2 * 2];
      b[0][1] = pair_[step % 2 * 2 + 1];
    } else {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; c += 2) {
        LoadMatrix4(b[c], at + SwizzledAt(token_ + c * 8 + (i >> 1) * 8 + r, step * 2 + (i & 1)));
      }
    }
  }

  // One step of 64 columns.
  __device__ __forceinline__ void Multiply(uint32_t at) {
    typename Weights::Slice slices[Shape::kSlices];
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
      slices[i].Open(at + Shape::kTokenBytes, row_ + i * 16, lane_);
    }
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t b[Shape::kColumns][2];
      LoadTokens(at, step, b);
#pragma unroll
      for (int i = 0; i < Shape::kSlices; ++i) {
        uint32_t a[4];
        slices[i].Fragment(step, a);
#pragma unroll
        for (int c = 0; c < Shape::kColumns; ++c) Mma16x8x16<Operand>(sum_[i][c], a, b[c]);
      }
    }
  }

  __device__ __forceinline__ void Store() {
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int token = token_ + c * 8 + (lane_ & 3) * 2 + (e & 1);
          const int n = n_begin_ + row_ + i * 16 + (lane_ >> 2) + (e & 2) * 4;
          if (token < tile_.rows && n < a_.product.n) {
            StoreResult(a_.product, tile_, token, n, sum_[i][c][e]);
          }
        }
      }
    }
  }

  const PortableArgs& a_;
  const RowTile& tile_;
  const int n_begin_;
  const uint32_t shared_;
  const int lane_, row_, token_;
  float sum_[Shape::kSlices][Shape::kColumns][4];
  uint32_t pair_[4];
};

template <typename Weights, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerProcessor)
    PortableProduct(const __grid_constant__ PortableArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  const ProductArgs& p = a.product;
  // Tiles of activations that share their weights through the second-level cache run together.
  constexpr int kBand = 8;
  const int row_tiles = (p.n + Shape::kRows - 1) / Shape::kRows;
  const int index = static_cast<int>(blockIdx.x);
  const int band = index / (kBand * row_tiles), in_band = index % (kBand * row_tiles);
  const int band_tiles = min(kBand, p.max_tiles - band * kBand);
  const RowTile tile = FindRowTile<Shape::kTokens>(p, band * kBand + in_band % band_tiles);
  if (tile.rows == 0) return;
  PortableTile<Weights, Shape>(a, tile, in_band / band_tiles * Shape::kRows, SharedAddress(shared))
      .Run();
}

template <typename Weights, typename Shape>
cudaError_t LaunchPortable(const Product& product, cudaStream_t stream) {
  constexpr int kStageBytes = PortableTile<Weights, Shape>::kStageBytes;
  PortableArgs a = {MakeProductArgs(product), static_cast<const uint16_t*>(product.x.data),
                    product.x.pitch, static_cast<int32_t>(product.x.cols)};
  ProductArgs& p = a.product;
  if (product.groups == nullptr) p.max_tiles = (p.rows + Shape::kTokens - 1) / Shape::kTokens;
  int device = 0, most = 0, per_processor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  error =
      cudaDeviceGetAttribute(&per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (error != cudaSuccess) return error;
  // Room for as many blocks as registers allow, if two stages of each fit; 1 KB is the system's.
  const int shared_out = per_processor / Shape::kBlocksPerProcessor - 1024;
  const int budget = shared_out >= 2 * kStageBytes && shared_out < most ? shared_out : most;
  if (budget < 2 * kStageBytes) return cudaErrorNotSupported;
  const int slots = budget / kStageBytes;
  p.stages = slots < kMaxPendingCopies + 2 ? slots : kMaxPendingCopies + 2;
  const auto kernel = PortableProduct<Weights, Shape>;
  const int bytes = p.stages * kStageBytes;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t blocks = CeilDiv(product.n, Shape::kRows) * p.max_tiles;
  if (blocks == 0) return cudaSuccess;
  kernel<<<static_cast<unsigned>(blocks), Shape::kThreads, bytes, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

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

#include <type_traits>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/linear/block_formats.cuh"
#include "kernels/cuda/linear/product_args.cuh"

namespace longstride::kernels::cuda {

// A block's tile and how its warps share it.
template <int kRows_, int kTokens_, int kWarpRows_, int kWarpTokens_, int kStageBlocks_,
          int kMostBlocks_>
struct PortableShape {
  static constexpr int kRows = kRows_, kTokens = kTokens_;
  static constexpr int kWarpRows = kWarpRows_, kWarpTokens = kWarpTokens_;
  static constexpr int kStageBlocks = kStageBlocks_;  // steps of 64 columns in a slot of the ring
  static constexpr int kMostBlocks = kMostBlocks_;  // on a multiprocessor
  static constexpr int kTokenWarps = kTokens / kWarpTokens;
  static constexpr int kThreads = kRows / kWarpRows * kTokenWarps * 32;
  static constexpr int kSlices = kWarpRows / 16, kColumns = kWarpTokens / 8;
  static constexpr int kTokenBytes = kTokens * 128;  // of one step
  static_assert((kRows == 16 || kRows % kUnitRows == 0) && kRows % kWarpRows == 0 &&
                kTokens % kWarpTokens == 0);
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
    const int thread = static_cast<int>(threadIdx.x);
    const uint8_t* from = weight + int64_t{block} * kAtomBytes + thread % 64 * 16;
#pragma unroll
    for (int i = 0; i < Shape::kRows * 8; i += Shape::kThreads) {
      // Atoms beyond the last are not read.
      const int atom = first + (i + thread) / 64, inside = Shape::kThreads < 64 ? i % 64 * 16 : 0;
      CopyAsync16(to + (i + thread) * 16, from + int64_t{atom} * p.k_blocks * kAtomBytes + inside,
                  atom < atoms ? 16 : 0);
    }
  }
  // The 16 rows from `row` of a step: `Ask` before a fragment is wanted, `Take` where it is.
  struct Slice {
    uint32_t at;
    __device__ __forceinline__ void Open(uint32_t step_at) { at = step_at; }
    __device__ __forceinline__ void Ask(int row, int lane, int step, uint32_t (&a)[4]) const {
      LoadMatrix4(a, at + SwizzledAt(row + (lane & 15), step * 2 + (lane >> 4)));
    }
    __device__ __forceinline__ void Take(int step, uint32_t (&a)[4]) const {}
  };
};

template <DType kType>
struct BlockWeights {
  using Format = BlockFormat<kType>;
  using Operand =
      std::conditional_t<OperandType(kType) == DType::kBF16, __nv_bfloat16, __half>;
  // What one step of 64 columns needs of the 16-row slices of a unit, piece by piece.
  static constexpr int kCodeBytes = 128 * Format::kCodeWords;
  static constexpr int kHighBytes = 128 * Format::kHighWords;
  static constexpr int kScalesBytes = Format::kIsK ? 64 : 8 * Format::kScaleBytes;
  static constexpr int kSuperBytes = !Format::kIsK ? 0 : kType == DType::kQ6_K ? 32 : 64;
  static constexpr int kSliceBytes = kCodeBytes + kHighBytes + kScalesBytes + kSuperBytes;
  static_assert(kSliceBytes % 16 == 0 && Format::kUnitBytes % 16 == 0);
  template <int kRows>
  static constexpr int kStepBytes = kRows / 16 * kSliceBytes;

  template <typename Shape>
  static __device__ __forceinline__ void Copy(const ProductArgs& p, const uint8_t* weight,
                                              int n_begin, int block, uint32_t to) {
    constexpr int kSlices = Shape::kRows < kUnitRows ? 1 : 4;  // of each unit
    constexpr int kUnitBytes = kSlices * kSliceBytes;          // side by side in shared memory
    constexpr int kCount = Shape::kRows / 16 * kSliceBytes / 16;
    const int units = (p.k_blocks + Format::kUnitBlocks - 1) / Format::kUnitBlocks;
    const int first = kSlices == 4 ? 0 : n_begin % kUnitRows / 16;
    const int in_unit = block % Format::kUnitBlocks;
    const uint8_t* unit = weight + (int64_t{n_begin / kUnitRows} * units +
                                    block / Format::kUnitBlocks) * Format::kUnitBytes;
#pragma unroll
    for (int i = 0; i < kCount; i += Shape::kThreads) {
      const int chunk = i + static_cast<int>(threadIdx.x);
      if (kCount % Shape::kThreads != 0 && chunk >= kCount) break;
      const int u = chunk * 16 / kUnitBytes, at = chunk * 16 % kUnitBytes;
      const Source source = SourceOf<kSlices>(at);
      // Units beyond the last are not read.
      CopyAsync16(to + chunk * 16,
                  unit + int64_t{u} * units * Format::kUnitBytes + source.at +
                      first * source.slice + in_unit * source.block,
                  n_begin + u * kUnitRows < p.n ? 16 : 0);
    }
  }
  struct Slice {
    typename Format::Block block;
    __device__ __forceinline__ void Open(uint32_t slice_at, int in_unit, int lane, int slices) {
      Format::Load(typename Format::Place(slice_at, in_unit, lane, 1, slices), 0, 0, &block);
    }
    __device__ __forceinline__ void Ask(int row, int lane, int step, uint32_t (&a)[4]) const {}
    __device__ __forceinline__ void Take(int step, uint32_t (&a)[4]) const {
      Format::Decode(block, step, a);
    }
  };

 private:
  // Where a byte of the pieces lies in a unit: from slice 0 and block 0 of it, and how far the next
  // slice and the next block are.
  struct Source {
    int at, slice, block;
  };
  template <int kSlices>
  static __device__ __forceinline__ Source SourceOf(int at) {
    if (at < kSlices * kCodeBytes) return {at, kCodeBytes, 4 * kCodeBytes};
    at -= kSlices * kCodeBytes;
    if (at < kSlices * kHighBytes) return {Format::kHighAt + at, kHighBytes, 4 * kHighBytes};
    at -= kSlices * kHighBytes;
    if (at < kSlices * kScalesBytes) {
      return {Format::kScalesAt + at, kScalesBytes, Format::kIsK ? 256 : 0};
    }
    return {Format::kSuperAt + at - kSlices * kScalesBytes, kSuperBytes, 0};
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
    for (int s = 0; s < slots; ++s) CopyStage(s, stages, s);
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum_[i][c][e] = 0.0f;
      }
    }
    WaitCopies(slots - 1);
    __syncthreads();
    Open(shared_);
    Ask(0);
    Take(0);
    int slot = 0;
    for (int s = 0; s < stages; ++s) {
      const uint32_t stage = shared_ + slot * kStageBytes;
      const int here = min(Shape::kStageBlocks, blocks - s * Shape::kStageBlocks);
      for (int b = 0; b < here; ++b) {
#pragma unroll
        for (int step = 0; step < 3; ++step) Multiply(step);
        // The fragments of this block's last step are in registers.
        const bool more = b + 1 < here, last = s + 1 == stages;
        if (!more && !last) {
          WaitCopies(slots - 2);
          __syncthreads();  // the next stage is there, and nobody reads this one any more
        }
        const int next = slot + 1 == slots ? 0 : slot + 1;
        Open(more ? stage + (b + 1) * kStepBytes : last ? stage : shared_ + next * kStageBytes);
        Multiply(3);
        if (!more) CopyStage(s + slots, stages, slot);
        if (!more) slot = next;
      }
    }
    WaitCopies<0>();
    Store();
  }

 private:
  __device__ __forceinline__ void CopyStage(int stage, int stages, int slot) const {
    if (stage < stages) {
      const uint32_t to = shared_ + slot * kStageBytes;
#pragma unroll
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

  // Rows and columns that do not exist become zero and are not read.
  __device__ __forceinline__ void CopyTokens(int block, uint32_t to) const {
    constexpr int kStride = Shape::kThreads / 8;
    const int thread = static_cast<int>(threadIdx.x), chunk = thread % 8;
    const int column = block * kBlockColumns + chunk * 8;
    const int bytes = max(0, min(16, (a_.x_cols - column) * 2));
    const uint16_t* x =
        a_.x + (int64_t{tile_.row_begin} + thread / 8) * a_.x_pitch + column;
#pragma unroll
    for (int i = 0; i < Shape::kTokens; i += kStride) {
      const int row = i + thread / 8;
      if (Shape::kTokens % kStride != 0 && row >= Shape::kTokens) break;
      CopyAsync16(to + SwizzledAt(row, chunk), x + i * a_.x_pitch, row < tile_.rows ? bytes : 0);
    }
  }

  // Begins with a step of 64 columns.
  __device__ __forceinline__ void Open(uint32_t at) {
    at_ = at;
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
      if constexpr (std::is_same_v<typename Weights::Slice, typename DenseWeights<Operand>::Slice>) {
        slices_[i].Open(at + Shape::kTokenBytes);
      } else {
        constexpr int kSlices = Shape::kRows < kUnitRows ? 1 : 4;
        const int slice = row_ / 16 + i;
        slices_[i].Open(at + Shape::kTokenBytes +
                            slice / kSlices * (kSlices * Weights::kSliceBytes),
                        slice % kSlices, lane_, kSlices);
      }
    }
  }
  // Reads the fragments of a step of 16 columns from shared memory.
  __device__ __forceinline__ void Ask(int step) {
    const int r = lane_ & 7, i = lane_ >> 3;
    auto& b = b_[step & 1];
    if constexpr (Shape::kColumns == 1) {  // 8 tokens: two steps at once
      if (step % 2 == 0) {
        uint32_t both[4];
        LoadMatrix4(both, at_ + SwizzledAt(token_ + r, step * 2 + i));
        b[0][0] = both[0], b[0][1] = both[1];
        later_[0] = both[2], later_[1] = both[3];
      } else {
        b[0][0] = later_[0], b[0][1] = later_[1];
      }
    } else {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; c += 2) {
        uint32_t both[4];
        LoadMatrix4(both,
                    at_ + SwizzledAt(token_ + c * 8 + (i >> 1) * 8 + r, step * 2 + (i & 1)));
        b[c][0] = both[0], b[c][1] = both[1];
        b[c + 1][0] = both[2], b[c + 1][1] = both[3];
      }
    }
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
      slices_[i].Ask(row_ + i * 16, lane_, step, w_[step & 1][i]);
    }
  }
  // Decodes those of weights that are in registers.
  __device__ __forceinline__ void Take(int step) {
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) slices_[i].Take(step, w_[step & 1][i]);
  }
  // Adds a step's products while the next one's fragments are on their way.
  __device__ __forceinline__ void Multiply(int step) {
    Ask((step + 1) % 4);
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; ++c) {
        Mma16x8x16<Operand>(sum_[i][c], w_[step & 1][i], b_[step & 1][c]);
      }
    }
    Take((step + 1) % 4);
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
  uint32_t at_ = 0;  // of the step of 64 columns
  typename Weights::Slice slices_[Shape::kSlices];
  uint32_t w_[2][Shape::kSlices][4], b_[2][Shape::kColumns][2], later_[2];
};

template <typename Weights, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMostBlocks)
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
  const int64_t blocks = CeilDiv(product.n, Shape::kRows) * p.max_tiles;
  if (blocks == 0) return cudaSuccess;
  int device = 0, most = 0, per_processor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  error =
      cudaDeviceGetAttribute(&per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (error != cudaSuccess) return error;
  // Shared memory for as many blocks as a multiprocessor has to do, if two stages of each fit; 1 KB of
  // each is the system's.
  const int64_t each = CeilDiv(blocks, product.multiprocessors);
  const int together = static_cast<int>(each < Shape::kMostBlocks ? each : Shape::kMostBlocks);
  const int share = per_processor / together - 1024;
  const int budget = share >= 2 * kStageBytes && share < most ? share : most;
  if (budget < 2 * kStageBytes) return cudaErrorNotSupported;
  const int slots = budget / kStageBytes;
  p.stages = slots < kMaxPendingCopies + 1 ? slots : kMaxPendingCopies + 1;
  const auto kernel = PortableProduct<Weights, Shape>;
  const int bytes = p.stages * kStageBytes;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(blocks), Shape::kThreads, bytes, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

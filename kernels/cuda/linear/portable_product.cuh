// Products with 16-bit and block-format weights on every chip from sm_80 on: warp-level tensor-core
// instructions fed by copies of ordinary threads. The same packed weights, operands and epilogue as
// the Hopper kernels, but an order of summation of its own: K in ascending steps of 16 columns into
// one accumulator, never split, for every format, number of rows and shape of tile.
//
// out^T = W x^T: weight rows are the M side of the instruction, activation rows its N side. A stage
// of the ring holds some steps of 64 columns of both; fragments of weights come from shared memory
// as they are, or are decoded in registers (block_formats.cuh), once for all tokens of a warp.
//
// Bound: memory for few dense rows, one warp's instructions for few rows of block formats; for many
// rows the reading of fragments from shared memory and the rate of the warp-level instruction.
#pragma once

#include <cuda_runtime_api.h>

#include <type_traits>

#include "kernels/cuda/linear/portable_weights.cuh"

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

// The steps of 8 activation rows one after the other. Rows and columns that do not exist become
// zero and are not read.
class TokenStream {
 public:
  __device__ __forceinline__ TokenStream(const PortableArgs& a, const RowTile& tile, int lane)
      : to_{SwizzledAt(lane / 8, lane % 8), SwizzledAt(lane / 8 + 4, lane % 8)},
        has_{lane / 8 < tile.rows, lane / 8 + 4 < tile.rows},
        from_(a.x + (int64_t{tile.row_begin} + lane / 8) * a.x_pitch + lane % 8 * 8),
        down_(4 * a.x_pitch),
        bytes_((a.x_cols - lane % 8 * 8) * 2) {}
  __device__ __forceinline__ void Next(uint32_t to) {
    const int bytes = max(0, min(16, bytes_));
    CopyAsync16(to + to_[0], from_, has_[0] ? bytes : 0);
    CopyAsync16(to + to_[1], from_ + down_, has_[1] ? bytes : 0);
    from_ += kBlockColumns;
    bytes_ -= kBlockColumns * 2;
  }

 private:
  const uint32_t to_[2];
  const bool has_[2];
  const uint16_t* from_;
  const int64_t down_;
  int bytes_;  // of the row from here on
};

struct NoStream {};

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
        tokens_(MakeTokens()),
        weights_(MakeWeights()),
        row_(static_cast<int>(threadIdx.x) / 32 / Shape::kTokenWarps * Shape::kWarpRows),
        token_(static_cast<int>(threadIdx.x) / 32 % Shape::kTokenWarps * Shape::kWarpTokens) {}

  __device__ __forceinline__ void Run() {
    const int slots = a_.product.stages, blocks = a_.product.k_blocks;
    const int stages = (blocks + Shape::kStageBlocks - 1) / Shape::kStageBlocks;
    for (int s = 0; s < slots; ++s) CopyStage(s, s);
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
      const int next = slot + 1 == slots ? 0 : slot + 1;
      [[maybe_unused]] const int before = slot == 0 ? slots - 1 : slot - 1;
      for (int b = 0; b < here; ++b) {
#pragma unroll
        for (int step = 0; step < 3; ++step) {
          Multiply(step);
          if constexpr (kStreams) {
            // While the product runs: a block of the stage that takes the slot of the one before.
            const int ahead = (s + slots - 1) * Shape::kStageBlocks + b;
            if (step == 0 && s > 0 && ahead < blocks) {
              CopyBlock(ahead, shared_ + before * kStageBytes + b * kStepBytes);
            }
          }
          Take(step + 1);
        }
        // The fragments of this block's last step are in registers.
        const bool more = b + 1 < here, last = s + 1 == stages;
        if (kStreams && !more && s > 0) CommitCopies();
        if (!more && !last) {
          WaitCopies(slots - 2);
          __syncthreads();  // the next stage is there, and nobody reads this one any more
        }
        Open(more ? stage + (b + 1) * kStepBytes : last ? stage : shared_ + next * kStageBytes);
        Multiply(3);
        if (!kStreams && !more) CopyStage(s + slots, slot);
        Take(0);
      }
      slot = next;
    }
    WaitCopies<0>();
    Store();
  }

 private:
  // One warp with few rows, whose time is its own instructions.
  static constexpr bool kStreams = Shape::kThreads == 32;
  static_assert(!kStreams || (Shape::kRows == 16 && Shape::kTokens == 8));
  __device__ __forceinline__ auto MakeTokens() const {
    if constexpr (kStreams) {
      return TokenStream(a_, tile_, lane_);
    } else {
      return NoStream();
    }
  }
  __device__ __forceinline__ auto MakeWeights() const {
    if constexpr (kStreams) {
      return typename Weights::Stream(a_.product, tile_.weight, n_begin_, lane_);
    } else {
      return NoStream();
    }
  }

  __device__ __forceinline__ void CopyStage(int stage, int slot) {
#pragma unroll
    for (int i = 0; i < Shape::kStageBlocks; ++i) {
      const int block = stage * Shape::kStageBlocks + i;
      if (block >= a_.product.k_blocks) break;
      CopyBlock(block, shared_ + slot * kStageBytes + i * kStepBytes);
    }
    CommitCopies();
  }
  // Blocks come in ascending order, each once.
  __device__ __forceinline__ void CopyBlock(int block, uint32_t to) {
    if constexpr (kStreams) {
      tokens_.Next(to);
      weights_.Next(to + Shape::kTokenBytes);
    } else {
      CopyTokens(block, to);
      Weights::template Copy<Shape>(a_.product, tile_.weight, n_begin_, block,
                                    to + Shape::kTokenBytes);
    }
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
      if constexpr (std::is_same_v<Weights, DenseWeights<Operand>>) {
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
  const int lane_;
  std::conditional_t<kStreams, TokenStream, NoStream> tokens_;
  std::conditional_t<kStreams, typename Weights::Stream, NoStream> weights_;
  const int row_, token_;
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
  p.k_blocks = static_cast<int32_t>(CeilDiv(product.x.cols, kBlockColumns));
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
  // Shared memory for as many blocks as a multiprocessor has to do, if two stages of each fit; 1 KB
  // of each is the system's.
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
